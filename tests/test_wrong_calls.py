"""Every wrong call is one line that names the field, exits 2 and writes nothing."""

import dataclasses
import math
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from dinov3_hf.cli import VERBS, main
from dinov3_hf.recipe import fields_of, hints_of
from dinov3_hf.recipe.fields import bounds_of

from .wrong_calls import (
    RECIPES,
    RIGHT,
    SINGLE,
    generated,
    make_files,
    numbers_in,
    of_configs,
    of_data,
    of_models,
    of_outputs,
    recipe_of,
)


# Where the work begins that a wrong call must not reach.
WORK = {
    **dict.fromkeys(("pretrain", "distill", "align", "quickstart"), "dinov3_hf.training.engine.loop.train"),
    "finetune": "dinov3_hf.finetuning.trainer.FinetuneTrainer.train",
    "evaluate": "dinov3_hf.evaluation.run.measure",
    "demo": "dinov3_hf.spaces.layout.launch",
}
QUICK = [*SINGLE, *of_outputs()]
GENERATED, CONFIG_CALLS = generated(), of_configs()


def named(call) -> str:
    return " ".join([call[0], *(value[:40] for value in call[1])]).encode("ascii", "backslashreplace").decode()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    make_files(folder)
    return folder


def listing(folder: Path) -> dict:
    return {path: path.is_dir() or path.lstat().st_mtime_ns for path in folder.rglob("*")}


def check(call, folder: Path, capfd, monkeypatch) -> None:
    """Make a call in a folder; fail unless it is refused in one line that names the field, with nothing written."""
    verb, flags, expected = call
    monkeypatch.chdir(folder)
    # Should a call be accepted, it would train for minutes, or be served until somebody ends it.
    work = [WORK[verb]] if verb in WORK and (verb != "demo" or find_spec("gradio")) else []
    for name in work:
        monkeypatch.setattr(name, lambda *given, **options: pytest.fail(f"{call} was accepted"))
    before = listing(folder)
    capfd.readouterr()
    try:
        code = main([verb, *flags])
    except SystemExit as stop:
        code = stop.code
    shown = capfd.readouterr()
    # Reading data has a progress bar, which is drawn over.
    lines = [line for line in shown.err.split("\n") if line and "\r" not in line]
    assert code == 2, f"{call}: exit {code}: {shown.err[-300:]}"
    assert len(lines) == 1 and lines[0].startswith(f"dinov3 {verb}: error: "), shown.err
    message = lines[0].removeprefix(f"dinov3 {verb}: error: ")
    assert message.startswith(expected) or f"argument {expected}" in message, f"{call}: {message}"
    assert re.search("accepted|unknown|expected|must be|did you mean", message), message
    assert listing(folder) == before


@pytest.mark.parametrize("call", QUICK, ids=named)
def test_refused_in_one_line(call, files, capfd, monkeypatch):
    check(call, files, capfd, monkeypatch)


@pytest.mark.parametrize("call", of_models(), ids=named)
def test_wrong_models_are_refused(call, files, capfd, monkeypatch):
    check(call, files, capfd, monkeypatch)


@pytest.mark.parametrize("call", of_data(), ids=named)
def test_wrong_data_are_refused(call, files, capfd, monkeypatch):
    check(call, files, capfd, monkeypatch)


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", RECIPES)
def test_every_field_refuses_what_it_cannot_take(verb, every, files, capfd, monkeypatch):
    """One test a verb, of hundreds of calls: by default some of them, of every kind and most fields."""
    calls = [(name, [*RIGHT[verb], *flags], expected) for name, flags, expected in GENERATED if name == verb]
    for call in calls[::every]:
        check(call, files, capfd, monkeypatch)


@pytest.mark.parametrize(
    "verb", ["pretrain", "compare", *(pytest.param(verb, marks=pytest.mark.slow) for verb in RECIPES)]
)
def test_wrong_recipe_files_are_refused(verb, files, capfd, monkeypatch):
    for call in (call for call in CONFIG_CALLS if call[0] == verb):
        check(call, files, capfd, monkeypatch)


def test_there_are_wrong_calls_of_every_verb():
    calls = [*QUICK, *of_models(), *of_data(), *GENERATED, *CONFIG_CALLS]
    assert {call[0] for call in calls} == set(VERBS) and len(calls) > 4000


def test_every_number_of_every_recipe_has_bounds_or_may_be_any():
    """A number without bounds is one of which every finite value makes sense."""
    free = {"image_mean", "ignore_index"}
    for verb in RECIPES:
        hints = hints_of(recipe_of(verb))
        for name, item in fields_of(recipe_of(verb)).items():
            bounds = [value for value in dataclasses.astuple(bounds_of(item)) if value is not None]
            assert not numbers_in(hints[name]) or bounds or name in free, f"{verb}: {name}"
            assert all(math.isfinite(value) for value in bounds)
