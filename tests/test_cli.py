"""The command line: help, versions, and refusals of one line."""

import errno

import pytest

from dinov3_hf import __version__
from dinov3_hf.cli import VERBS, main
from dinov3_hf.commands import export
from dinov3_hf.errors import Failed, Refused


def test_help_lists_every_verb(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    shown = capsys.readouterr().out
    # A demo writes nothing.
    assert stop.value.code == 0 and ("--output-dir" in shown or verb == "demo")
    assert "--config" in shown


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            ["pretrian"],
            f"verb: got 'pretrian', accepted: {', '.join(VERBS)}; did you mean pretrain?",
        ),
        (["pretrain", "--momentun", "1"], "unknown flag --momentun; did you mean --momentum?"),
    ],
)
def test_wrong_words_are_refused_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and message in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    "argv, message",
    [
        (["pretrain", "--steps", "many"], "steps: got 'many', accepted: a whole number of at least 1"),
        (["pretrain", "--config", "nowhere"], "config: no recipe 'nowhere'"),
    ],
)
def test_wrong_values_are_refused_in_one_line(argv, message, capsys):
    assert main(argv) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Refused("model: got 1,\n accepted: 2"), 2, "model: got 1, accepted: 2"),
        (Failed("disk: full; the last is step_1"), 3, "disk: full; the last is step_1"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 3, "No space left on device: x; what was written"),
        (ModuleNotFoundError("No module named 'peft.x'", name="peft.x"), 2, "pip install 'dinov3-hf[finetune]'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_end_has_its_exit_code_and_one_line(error, code, message, capsys, monkeypatch):
    monkeypatch.setattr(export, "run", lambda arguments: raise_(error))
    assert main(["export"]) == code
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("shapes"), FileNotFoundError("x"), KeyError("y"), ImportError("z"), ModuleNotFoundError(name="q")],
)
def test_a_bug_of_ours_is_no_refusal(error, monkeypatch):
    monkeypatch.setattr(export, "run", lambda arguments: raise_(error))
    with pytest.raises(type(error)):
        main(["export"])


def raise_(error):
    raise error
