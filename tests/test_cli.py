"""The command line: help, versions, and refusals of one line."""

import pytest

from dinov3_hf import __version__
from dinov3_hf.cli import VERBS, main


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
    # These verbs have nothing to set but what they are given.
    assert "--config" in shown or verb in ("compare", "export", "demo")


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
