"""Progress as lines where nobody watches a bar, and the commands that a run ends with."""

import shlex
import sys

import pytest
from tqdm import tqdm

from dinov3_hf import terminal
from dinov3_hf.cli import build_parser, main
from dinov3_hf.terminal import progress_bar, resumed


class Clock:
    """A clock that each item of work moves on by so many seconds."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(terminal.time, "monotonic", lambda: self.now)

    def work(self, items, seconds):
        for item in items:
            self.now += seconds
            yield item


@pytest.mark.parametrize("seconds, lines", [(0.001, 1), (0.25, 25), (3.0, 251)])
def test_a_log_gets_a_line_every_ten_seconds(seconds, lines, monkeypatch, capsys):
    """1000 items; the last line is the end's. Items of three seconds have a line at every fourth."""
    clock = Clock(monkeypatch)
    bar = progress_bar(range(1000), desc="features", unit="image", mininterval=0, miniters=1)
    assert list(clock.work(bar, seconds)) == list(range(1000))
    shown = capsys.readouterr().err
    assert "\r" not in shown and "\x1b" not in shown
    written = shown.splitlines()
    assert abs(len(written) - lines) <= 1
    assert all(line.startswith("features: ") for line in written)
    assert written[-1].startswith("features: 100% 1000/1000 image [")


def test_other_lines_go_between_and_numbers_are_shown(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with progress_bar(total=3, desc="train", unit="step") as bar:
        for step in clock.work(range(3), 4):
            bar.update()
            bar.set_postfix(loss=f"{step:.1f}")
            tqdm.write(f"alarm {step}", file=sys.stderr)
    written = capsys.readouterr().err.splitlines()
    assert [line for line in written if line.startswith("alarm")] == ["alarm 0", "alarm 1", "alarm 2"]
    assert written[-1].startswith("train: 100% 3/3 step [") and written[-1].endswith("loss=2.0]")
    assert len(written) == 5


def test_a_terminal_keeps_its_bar_and_none_is_shown_where_none_is_wanted(monkeypatch, capsys):
    list(progress_bar(range(5), desc="quiet", disable=True))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress_bar(range(5), desc="bar"))
    assert "\rbar: 100%|" in capsys.readouterr().err


def test_a_stopped_run_is_resumed_by_what_was_typed():
    assert resumed("pretrain", ["--data", "my images", "--overwrite"]) == [
        "pretrain",
        "--data",
        "my images",
        "--resume",
    ]


def test_commands_are_printed_as_they_must_be_typed_and_by_one_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [".venv/bin/dinov3", "pretrain"])
    terminal.print_next(["demo", "dense_features", "--model", "my run/model"])
    head, line = capsys.readouterr().out.splitlines()
    assert head == "next:" and shlex.split(line) == [
        ".venv/bin/dinov3",
        "demo",
        "dense_features",
        "--model",
        "my run/model",
    ]
    monkeypatch.setenv("RANK", "1")
    terminal.print_next(["demo"])
    assert capsys.readouterr().out == ""


def test_the_next_commands_of_a_run_are_accepted(tmp_path, capsys, monkeypatch):
    """A run of a few steps names an evaluation, and that runs as it was printed."""
    pytest.importorskip("accelerate")
    monkeypatch.setattr(sys, "argv", ["dinov3"])
    sizes = "--hidden-size 16 --num-hidden-layers 1 --num-attention-heads 2 --intermediate-size 32 --patch-size 8"
    steps = "--steps 2 --lr-warmup-steps 0 --teacher-temperature-warmup-steps 0 --freeze-last-layer-steps 0"
    run = f"pretrain --config tiny_cpu {sizes} {steps} --batch-size 4 --num-images 16 --output-dir"
    assert main([*run.split(), str(tmp_path / "a run")]) == 0
    shown = capsys.readouterr().out.splitlines()
    evaluate, demo = map(shlex.split, shown[shown.index("next:") + 1 :])
    assert main([*evaluate[1:], "--num-train", "24", "--num-test", "12", "--k", "3"]) == 0
    assert "verdict: the model is better than all baselines in " in capsys.readouterr().out
    assert (tmp_path / "a run" / "evaluation" / "results.json").is_file()
    assert demo[:3] == ["dinov3", "demo", "dense_features"] and build_parser().prog == "dinov3"
