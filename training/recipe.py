"""Recipes from a YAML file and the command line, every key and value checked before any work starts."""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Literal

from .arguments import PretrainRecipe


RECIPES = Path(__file__).parent / "recipes"
GROUPS = {group.name: group.default_factory for group in dataclasses.fields(PretrainRecipe)}
FIELDS = {item.name: item for group in GROUPS.values() for item in dataclasses.fields(group)}
HINTS = {name: hint for group in GROUPS.values() for name, hint in typing.get_type_hints(group).items()}


def _list(value) -> list:
    if not isinstance(value, list | tuple):
        raise TypeError(value)
    return list(value)


def _text(value) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


# Element types of the lists that fields take: how one is read, and what the list is called.
LISTS = {
    float: (float, "list of numbers"),
    str: (_text, "list of texts"),
    list[int]: (lambda item: [int(number) for number in _list(item)], "list of lists of whole numbers"),
}


def _alternatives(hint) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def describe_type(hint) -> str:
    """Say in words which values a field takes."""
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    parts = []
    for part in _alternatives(hint):
        if typing.get_origin(part) is Literal:
            parts += [str(value) for value in typing.get_args(part)]
        elif typing.get_origin(part) is list:
            parts.append(LISTS[typing.get_args(part)[0]][1])
        else:
            parts.append(names[part])
    return ", ".join(parts[:-1]) + " or " + parts[-1] if len(parts) > 1 else parts[0]


def convert(name: str, value):
    """Return `value` as the type of the recipe field `name`, or raise one line that says what is accepted."""
    for part in _alternatives(HINTS[name]):
        if part is type(None) and value is None:
            return None
        if part is float and isinstance(value, str):
            # YAML 1.1 reads 1e-3 (no dot) as text.
            try:
                return float(value)
            except ValueError:
                continue
        if part is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if typing.get_origin(part) is Literal and value in typing.get_args(part):
            return value
        if typing.get_origin(part) is list:
            # One source needs no brackets.
            value = [value] if part == list[str] and isinstance(value, str) else value
            try:
                return [LISTS[typing.get_args(part)[0]][0](item) for item in _list(value)]
            except (TypeError, ValueError):
                continue
        if part in (int, str, bool) and type(value) is part:
            return value
    raise ValueError(f"{name}: got {value!r}, accepted: {describe_type(HINTS[name])}")


def nearest(name: str, known) -> str:
    """Return a hint with the known name nearest to a mistyped one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def read_recipe(name_or_path: str) -> dict:
    """Read a recipe by its name (a file in `recipes/`) or path, checking every key and value.

    Raises FileNotFoundError for a missing recipe and ValueError for an unknown key or a value of the wrong type.
    """
    import yaml

    path = Path(name_or_path)
    if not path.suffix:
        path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = sorted(item.stem for item in RECIPES.glob("*.yaml"))
        raise FileNotFoundError(
            f"config: no recipe {name_or_path!r}, accepted: a YAML file or one of {', '.join(known)}"
        )
    values = yaml.safe_load(path.read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a {type(values).__name__}, accepted: one `field: value` a line")
    for key in values:
        if key not in FIELDS:
            raise ValueError(f"config: unknown field {key!r} in {path}{nearest(str(key), FIELDS)}")
    return {key: convert(key, value) for key, value in values.items()}


def build_recipe(config: str | None = None, **overrides) -> PretrainRecipe:
    """Build a validated recipe: defaults, then the recipe file `config`, then single fields."""
    values = read_recipe(config) if config else {}
    for key, value in overrides.items():
        if key not in FIELDS:
            raise ValueError(f"unknown field {key!r}{nearest(key, FIELDS)}")
        values[key] = convert(key, value)
    groups = {}
    for group, factory in GROUPS.items():
        names = {item.name for item in dataclasses.fields(factory)}
        groups[group] = factory(**{key: value for key, value in values.items() if key in names})
    return PretrainRecipe(**groups).validate()


def add_recipe_flags(parser) -> None:
    """Add `--config` and one flag for each recipe field to an argparse parser."""
    parser.add_argument("--config", help="recipe: a name from the package or a YAML file; flags override its fields")
    for group, factory in GROUPS.items():
        section = parser.add_argument_group(group, factory.__doc__)
        for item in dataclasses.fields(factory):
            many = typing.get_origin(HINTS[item.name]) is list
            nargs = "+" if many else "?" if HINTS[item.name] is bool else None
            default = item.default if item.default is not dataclasses.MISSING else item.default_factory()
            shown = (
                " ".join(map(str, default))
                if many
                else "null"
                if default is None
                else str(default).lower()
                if isinstance(default, bool)
                else default
            )
            section.add_argument(
                "--" + item.name.replace("_", "-"),
                nargs=nargs,
                const="true" if nargs == "?" else None,
                default=None,
                metavar="X",
                help=f"{item.metadata['help']} [{describe_type(HINTS[item.name])}; default {shown}]".replace(
                    "%", "%%"
                ),
            )


def recipe_from_flags(arguments) -> PretrainRecipe:
    """Build the recipe from parsed flags; values are read as in a recipe file (`null`, `true`, numbers)."""
    import yaml

    given = {name: getattr(arguments, name) for name in FIELDS if getattr(arguments, name, None) is not None}
    parsed = {}
    for name, text in given.items():
        if isinstance(text, list):
            parsed[name] = text if HINTS[name] == list[str] else [yaml.safe_load(item) for item in text]
        else:
            # A path or hub id stays the text it is: YAML would read `10` or `no` as something else.
            is_text = str in _alternatives(HINTS[name]) and text != "null"
            parsed[name] = text if is_text else yaml.safe_load(text)
    return build_recipe(arguments.config, **parsed)
