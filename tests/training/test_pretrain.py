"""`dinov3 pretrain` from end to end, at the smallest size that is still the real thing."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dinov3_hf.cli import main

from ..processes import fork_workers


TINY = [
    "--config", "tiny_cpu", "--hidden-size", "32", "--num-hidden-layers", "2", "--num-attention-heads", "2",
    "--intermediate-size", "64", "--dino-head-num-prototypes", "16", "--ibot-head-num-prototypes", "16",
    "--global-crop-size", "32", "--local-crop-size", "16", "--local-crops", "2", "--batch-size", "4",
    "--steps", "6", "--lr-warmup-steps", "1", "--log-every", "1", "--save-every", "3", "--num-workers", "0",
    "--shuffle-block", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(12):
        pixels = rng.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{index:02d}.jpg")
    return path


def run(folder, output, *flags):
    return main(["pretrain", *TINY, "--data", str(folder), "--output-dir", str(output), *flags])


def losses(output):
    return [
        (line["step"], line["loss"]) for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    ]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    assert run(folder, output) == 0
    return output


def test_run_leaves_everything_behind(finished):
    assert [step for step, _ in losses(finished)] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(loss) for _, loss in losses(finished))
    assert {"recipe.yaml", "versions.json", "metrics.jsonl", "checkpoints", "model"} <= {
        item.name for item in finished.iterdir()
    }
    assert [item.name for item in sorted((finished / "checkpoints").iterdir())] == ["step_00000003", "step_00000006"]
    assert {"torch", "dinov3_hf", "git", "command"} <= set(json.loads((finished / "versions.json").read_text()))


def test_stock_transformers_reads_the_teacher(finished):
    from transformers import AutoImageProcessor, AutoModel, DINOv3ViTModel

    from dinov3_hf import Dinov3Model

    reference, processor = (
        AutoModel.from_pretrained(finished / "model"),
        AutoImageProcessor.from_pretrained(finished / "model"),
    )
    assert type(reference) is DINOv3ViTModel and dict(processor.size) == {"height": 32, "width": 32}
    pixels = processor(Image.new("RGB", (64, 48), "red"), return_tensors="pt")
    ours = Dinov3Model.from_pretrained(finished / "model")
    with torch.inference_mode():
        assert torch.allclose(reference(**pixels).last_hidden_state, ours(**pixels).last_hidden_state, atol=1e-5)


def test_exported_weights_are_the_teachers(finished):
    from dinov3_hf.training.engine.checkpointing import TENSORS, list_checkpoints

    (file,) = (list_checkpoints(finished)[-1] / TENSORS).glob("*.safetensors")
    state = {name.removeprefix("objective."): tensor for name, tensor in load_file(file).items()}
    weights = load_file(finished / "model" / "model.safetensors")
    moved = 0
    for name, value in weights.items():
        assert torch.equal(state[f"teacher.dinov3.{name}"], value)
        moved += not torch.equal(state[f"student.dinov3.{name}"], value)
    assert moved > 0
    heads = load_file(finished / "model" / "heads.safetensors")
    assert any(name.startswith("dino_head.") for name in heads) and any(
        name.startswith("ibot_head.") for name in heads
    )


@pytest.mark.parametrize("workers", ["0", "2"])
def test_interrupted_run_equals_uninterrupted(folder, finished, tmp_path, workers, monkeypatch):
    """Stopped by a signal after step 4, killed after step 5, then finished: the same losses and weights to the bit."""
    from dinov3_hf.training.self_distillation import SelfDistillation

    fork_workers(monkeypatch)
    whole = finished
    if workers != "0":
        whole = tmp_path / "whole"
        assert run(folder, whole, "--num-workers", workers) == 0
    plain, cut = SelfDistillation.after_step, tmp_path / "cut"
    flags = ("--resume", "--num-workers", workers)

    def stop(self, step, values):
        plain(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def crash(self, step, values):
        plain(self, step, values)
        if step == 4:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(SelfDistillation, "after_step", stop)
        assert run(folder, cut, *flags) == 143
        assert losses(cut) == losses(whole)[:4]
        patch.setattr(SelfDistillation, "after_step", crash)
        with pytest.raises(RuntimeError, match="killed"):
            run(folder, cut, *flags)
    assert run(folder, cut, *flags) == 0
    assert losses(cut) == losses(whole)
    for file in ("model.safetensors", "heads.safetensors"):
        before, after = load_file(whole / "model" / file), load_file(cut / "model" / file)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_occupied_folder_is_refused_resumed_or_overwritten(folder, finished, tmp_path, capsys):
    import shutil

    output = tmp_path / "copy"
    shutil.copytree(finished, output)
    assert run(folder, output) == 2
    assert "already holds a run, accepted: another folder, --resume or --overwrite" in capsys.readouterr().err
    assert run(folder, output, "--resume", "--lr", "5e-4") == 2
    assert "the recipe differs" in (shown := capsys.readouterr().err) and "lr (was 0.002, now 0.0005)" in shown
    assert run(folder, output, "--resume") == 0
    assert losses(output) == losses(finished)
    assert run(folder, output, "--overwrite", "--seed", "1") == 0
    assert losses(output) != losses(finished)


def test_bad_images_are_skipped_counted_and_reported(folder, tmp_path, capsys):
    import shutil

    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    (mixed / "broken.jpg").write_bytes((folder / "00.jpg").read_bytes()[:200])
    assert run(mixed, tmp_path / "out", "--max-bad-images", "0.5") == 0
    out = capsys.readouterr().out
    count = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])["bad_images"]
    assert count >= 1 and f"{count} of them could not be decoded" in out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--global-crop-size", "30"], "global_crop_size"),
        (["--num-attention-heads", "16"], "num_attention_heads=16"),
        (["--size", "vitx"], "'vitx'"),
    ],
)
def test_wrong_input_is_refused_before_any_work(folder, tmp_path, capsys, flags, message):
    assert run(folder, tmp_path / "out", *flags) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_scenes_are_the_default_source(tmp_path):
    assert main(["pretrain", *TINY, "--num-images", "64", "--steps", "2", "--output-dir", str(tmp_path / "out")]) == 0
    assert len(losses(tmp_path / "out")) == 2


def test_tensorboard_gets_the_metrics(folder, tmp_path):
    pytest.importorskip("tensorboard")
    assert run(folder, tmp_path / "out", "--report-to", "tensorboard", "--steps", "2") == 0
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))


def test_a_tracker_that_is_not_installed_is_refused(folder, tmp_path, capsys, monkeypatch):
    from dinov3_hf.training import arguments

    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    assert run(folder, tmp_path / "out", "--report-to", "trackio") == 2
    assert "report_to: got 'trackio', accepted: none, or after pip install trackio" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_goes_on_from_weights_without_heads_and_reports_drift(finished, folder, tmp_path, capsys):
    """Weights without heads: only new heads are trained for a tenth of the steps; the card names the origin."""
    start = tmp_path / "start"
    start.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (start / name).write_bytes((finished / "model" / name).read_bytes())
    output = tmp_path / "out"
    flags = ["--init-from", str(start), "--probe-data", "scenes", "--probe-images", "50", "--steps", "10"]
    assert run(folder, output, *flags, "--probe-every", "5", "--save-every", "5") == 0
    assert "only the heads are trained in the first 1 steps" in capsys.readouterr().out
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["backbone_lr"] > 0 for line in lines[:2]] == [False, True]
    assert {"knn", "rankme", "cls_patch_cosine", "knn_drift"} <= lines[4].keys() and "knn" not in lines[3]
    assert {"prototype_usage", "assignment_entropy", "teacher_entropy", "grad_norm_backbone"} <= lines[0].keys()
    card = (output / "model" / "README.md").read_text()
    assert card.startswith("---") and "starting from" in card and "start" in card


def test_sharded_and_wrong_group_sizes_are_refused(folder, tmp_path, capsys, monkeypatch):
    assert run(folder, tmp_path / "out", "--koleo-distributed", "--koleo-group-size", "6") == 2
    assert "koleo_group_size: got 6, accepted: a multiple of batch_size (4)" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert run(folder, tmp_path / "out") == 2
    assert "fsdp_version: got 1, accepted: 2" in capsys.readouterr().err


def test_images_of_one_batch_train_without_neighbours(folder, tmp_path):
    """Local batch 1: KoLeo has no neighbour and gives 0 with a warning, never inf."""
    with pytest.warns(UserWarning, match="at least two images"):
        assert run(folder, tmp_path / "out", "--batch-size", "1", "--steps", "2") == 0
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path / "out"))
