"""The recipe system: the same text is the same value in a file and after a flag, and bounds are said in words."""

import argparse
from dataclasses import dataclass, field, make_dataclass
from typing import Literal

import pytest

from dinov3_hf.errors import Refused
from dinov3_hf.models.configuration_dinov3 import SIZES
from dinov3_hf.recipe import (
    Recipe,
    add_recipe_flags,
    build_recipe,
    check_output,
    described,
    recipe_from_flags,
    write_recipe,
)
from dinov3_hf.recipe.fields import Bounds, convert, describe_type
from dinov3_hf.recipe.yaml_text import parse, read_mapping
from dinov3_hf.training.arguments import ModelArguments


@dataclass
class ThingArguments:
    """Things."""

    source: list[str] = described("what is read", [], positional=True)
    name: str | None = described("its name", None, common=True)
    count: int | None = described("how many", 3, at_least=1, at_most=9)
    rate: float = described("how fast", 0.5, above=0, at_most=1, common=True)
    shares: list[float] = described("parts", [], at_least=0, below=1)
    rows: list[list[int]] = described("rows of numbers", [], at_least=1)
    kind: Literal["no", "some"] | None = described("which", "no")
    quick: bool = described("be quick", False)


ThingRecipe = make_dataclass(
    "ThingRecipe", [("things", ThingArguments, field(default_factory=ThingArguments))], bases=(Recipe,)
)


def from_flags(*argv):
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser, ThingRecipe)
    return recipe_from_flags(parser.parse_args(list(argv)), ThingRecipe).things


def from_file(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text, "utf-8")
    return build_recipe(ThingRecipe, str(tmp_path / "r.yaml")).things


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("+7", 7),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("0b1", "0b1"),
        *((word, word) for word in ("yes", "no", "on", "off", "y", "N", "nan", "inf", "<<", "=")),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, None) for word in ("null", "Null", "NULL", "~", "")),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = parse(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["0.1", "1e-1", "1.0E-1", "1"])
def test_numbers_are_alike_in_files_and_flags(text, tmp_path):
    assert from_file(tmp_path, f"rate: {text}").rate == from_flags("--rate", text).rate == float(text)


@pytest.mark.parametrize("text", ["null", "~", "Null"])
def test_null_is_alike_in_files_and_flags(text, tmp_path):
    for name in ("name", "count", "kind"):
        assert getattr(from_file(tmp_path, f"{name}: {text}"), name) is None
        assert getattr(from_flags(f"--{name}", text), name) is None
        assert getattr(from_file(tmp_path, f"{name}:"), name) is None
        # An empty flag comes from a variable that is not set.
        with pytest.raises(Refused, match=f"^{name}: got ''"):
            from_flags(f"--{name}", "")


def test_lists_are_typed_as_words_or_in_brackets():
    assert from_flags("--shares", "0.1", "0.2").shares == from_flags("--shares", "[0.1, 0.2]").shares == [0.1, 0.2]
    assert from_flags("--shares", "[]").shares == [] and from_flags("--shares", "0.3").shares == [0.3]
    assert from_flags("--rows", "[1, 2]").rows == [[1, 2]]
    assert from_flags("--rows", "[[1, 2], [3]]").rows == from_flags("--rows", "[1, 2]", "[3]").rows == [[1, 2], [3]]
    assert from_flags("--source", "[a]").source == ["[a]"] and from_flags("--source", "[]").source == []


def test_a_positional_value_is_the_flag_without_its_name():
    assert from_flags("a", "b").source == from_flags("--source", "a", "b").source == ["a", "b"]
    with pytest.raises(Refused, match=r"source: got \['b'\], accepted: once, and it is \['a'\] already"):
        from_flags("a", "--source", "b")


@pytest.mark.parametrize(
    ("hint", "bounds", "words"),
    [
        (int, {"at_least": 1}, "a whole number of at least 1"),
        (float, {"above": 0, "at_most": 1}, "a number above 0, up to 1"),
        (float, {"at_least": 0, "below": 1}, "a number from 0 to below 1"),
        (float, {"at_least": 0, "at_most": 1}, "a number from 0 to 1"),
        (float, {"below": 2}, "a number below 2"),
        (list[float], {"above": 0}, "a list of numbers above 0"),
        (list[list[int]], {"at_least": 1}, "a list of lists of whole numbers of at least 1"),
        (int | None, {}, "a whole number or null"),
        (Literal["a", "b"] | None, {}, "a, b or null"),
        (list[str], {}, "a list of texts"),
    ],
)
def test_what_is_accepted_is_said_in_words(hint, bounds, words):
    assert describe_type(hint, Bounds(**bounds)) == words


def test_the_nearest_choice_and_key_are_named(tmp_path):
    with pytest.raises(Refused, match="kind: got 'sone', accepted: no, some or null; did you mean some?"):
        convert("kind", "sone", Literal["no", "some"] | None)
    with pytest.raises(Refused, match="unknown field 'raet' in .*; did you mean rate?"):
        from_file(tmp_path, "raet: 1")


def test_values_given_in_python_are_checked_alike(tmp_path):
    assert build_recipe(ThingRecipe, source=tmp_path, rate=1).things.source == [str(tmp_path)]
    for given in ({"rate": 0}, {"rate": float("nan")}, {"count": True}, {"name": "\t"}, {"rows": [[0]]}):
        with pytest.raises(Refused, match=f"^{next(iter(given))}: got "):
            ThingRecipe(ThingArguments(**given)).validate()


def test_what_is_written_is_read_as_the_same(tmp_path):
    words = ["1e-3", "0o7", "yes", "null", "~", "010", "1:30", "a: b", "# c", " - d", "ü", "2026-01-01", ".5", "0x1"]
    recipe = build_recipe(ThingRecipe, source=words, rate=1e-5, count=None, shares=[0.0, 0.25], rows=[[1], [2, 3]])
    write_recipe(tmp_path / "run", recipe)
    assert read_mapping(tmp_path / "run" / "recipe.yaml", "config") == recipe.as_flat_dict()
    assert build_recipe(ThingRecipe, str(tmp_path / "run" / "recipe.yaml")) == recipe


def test_help_shows_what_is_common_and_help_all_everything(capsys):
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser, ThingRecipe)
    common = parser.format_help()
    assert "--rate" in common and "above 0, up to 1" in " ".join(common.split()) and "--rows" not in common
    assert "show all 8 flags, 5 more than listed here" in " ".join(common.split())
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--help-all"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--rows", "--rate", "--quick", "Things."))


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path):
    check_output(tmp_path / "a" / "b")
    check_output(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_read_only_mount_is_refused(tmp_path, monkeypatch):
    def read_only(*given, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(Refused, match="^output_dir: '.*new': Read-only file system, accepted: a folder that can be"):
        check_output(tmp_path / "new")


def test_the_sizes_are_those_of_the_configuration():
    hint = ModelArguments.__annotations__["size"]
    assert set(SIZES) == {size for part in hint.__args__ for size in getattr(part, "__args__", ())}
