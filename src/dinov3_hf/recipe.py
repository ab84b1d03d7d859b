"""Recipes from a YAML file and the command line, every key and value checked before any work starts."""

import argparse
import dataclasses
import difflib
import functools
import sys
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal

from .errors import Refused


# The recipe of a run, resolved, in its folder.
RECIPE_FILE = "recipe.yaml"


def described(text: str, default=dataclasses.MISSING, **kwargs):
    """Return a dataclass field with its help text; a list is copied for each instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text, **kwargs})
    return field(default=default, metadata={"help": text, **kwargs})


def require(condition: bool, name: str, value, accepted: str) -> None:
    """Raise `Refused`, naming the field, its value and what is accepted, unless the condition holds."""
    if not condition:
        raise Refused(f"{name}: got {value!r}, accepted: {accepted}")


class Recipe:
    """A dataclass of groups of fields, each of which refuses what contradicts itself."""

    def validate(self):
        for group in dataclasses.fields(self):
            getattr(self, group.name).validate()
        return self

    def check_given(self, values: Mapping[str, object]) -> None:
        """Refuse a field that was set though nothing that was chosen reads it; by default every field is read."""

    def as_flat_dict(self) -> dict:
        """Return every field of every group in one dictionary, as a recipe file holds them."""
        return {key: value for group in dataclasses.asdict(self).values() for key, value in group.items()}


def groups_of(recipe_class: type) -> dict[str, type]:
    """Return the groups of fields of a recipe, by name."""
    return {group.name: group.default_factory for group in dataclasses.fields(recipe_class)}


def fields_of(recipe_class: type) -> dict[str, dataclasses.Field]:
    """Return every field of every group of a recipe, by name."""
    return {item.name: item for group in groups_of(recipe_class).values() for item in dataclasses.fields(group)}


@functools.cache
def hints_of(recipe_class: type) -> dict:
    """Return the type of every field of a recipe, by name."""
    groups = groups_of(recipe_class).values()
    return {name: hint for group in groups for name, hint in typing.get_type_hints(group).items()}


def folder_of(recipe_class: type) -> Path:
    """Return the folder of the recipes that come with the package: beside the module that defines the class."""
    return Path(sys.modules[recipe_class.__module__].__file__).parent / "recipes"


def _list(value) -> list:
    if not isinstance(value, list | tuple):
        raise TypeError(value)
    return list(value)


def _text(value) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _whole(value) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return value


# Element types of the lists that fields take: how one is read, and what the list is called.
LISTS = {
    float: (float, "list of numbers"),
    int: (_whole, "list of whole numbers"),
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


def convert(name: str, value, hint):
    """Return `value` as the type `hint` of the recipe field `name`, or raise one line that says what is accepted."""
    for part in _alternatives(hint):
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
    raise ValueError(f"{name}: got {value!r}, accepted: {describe_type(hint)}")


def nearest(name: str, known) -> str:
    """Return a hint with the known name nearest to a mistyped one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def read_recipe(name_or_path: str, recipe_class: type) -> dict:
    """Read a recipe by its name (a file of `folder_of`) or path, checking every key and value.

    Raises FileNotFoundError for a missing recipe and ValueError for an unknown key or a value of the wrong type.
    """
    import yaml

    path, folder, known = Path(name_or_path), folder_of(recipe_class), fields_of(recipe_class)
    if not path.suffix:
        path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        known = sorted(item.stem for item in folder.glob("*.yaml"))
        raise FileNotFoundError(
            f"config: no recipe {name_or_path!r}, accepted: a YAML file or one of {', '.join(known)}"
        )
    values = yaml.safe_load(path.read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a {type(values).__name__}, accepted: one `field: value` a line")
    for key in values:
        if key not in known:
            raise ValueError(f"config: unknown field {key!r} in {path}{nearest(str(key), known)}")
    return {key: convert(key, value, hints_of(recipe_class)[key]) for key, value in values.items()}


def build_recipe(recipe_class: type, config: str | None = None, **overrides):
    """Build a validated recipe: defaults, then the recipe file `config`, then single fields."""
    values, known = read_recipe(config, recipe_class) if config else {}, fields_of(recipe_class)
    for key, value in overrides.items():
        if key not in known:
            raise ValueError(f"unknown field {key!r}{nearest(key, known)}")
        values[key] = convert(key, value, hints_of(recipe_class)[key])
    groups = {}
    for group, factory in groups_of(recipe_class).items():
        names = {item.name for item in dataclasses.fields(factory)}
        groups[group] = factory(**{key: value for key, value in values.items() if key in names})
    recipe = recipe_class(**groups).validate()
    recipe.check_given(values)
    return recipe


def add_recipe_flags(parser, recipe_class: type) -> None:
    """Add `--config` and one flag for each recipe field to an argparse parser."""
    parser.add_argument("--config", help="recipe: a name from the package or a YAML file; flags override its fields")
    hints = hints_of(recipe_class)
    for group, factory in groups_of(recipe_class).items():
        section = parser.add_argument_group(group, factory.__doc__)
        for item in dataclasses.fields(factory):
            many = typing.get_origin(hints[item.name]) is list
            nargs = "+" if many else "?" if hints[item.name] is bool else None
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
                help=f"{item.metadata['help']} [{describe_type(hints[item.name])}; default {shown}]".replace(
                    "%", "%%"
                ),
            )
            if hints[item.name] is bool:
                no = "--no-" + item.name.replace("_", "-")
                section.add_argument(no, dest=item.name, action="store_const", const="false", help=argparse.SUPPRESS)


def recipe_from_flags(arguments, recipe_class: type):
    """Build the recipe from parsed flags; values are read as in a recipe file (`null`, `true`, numbers)."""
    import yaml

    hints = hints_of(recipe_class)
    given = {name: getattr(arguments, name) for name in hints if getattr(arguments, name, None) is not None}
    parsed = {}
    for name, text in given.items():
        if isinstance(text, list):
            parsed[name] = text if hints[name] == list[str] else [yaml.safe_load(item) for item in text]
        else:
            # A path or hub id stays the text it is: YAML would read `10` or `no` as something else.
            is_text = str in _alternatives(hints[name]) and text != "null"
            parsed[name] = text if is_text else yaml.safe_load(text)
    return build_recipe(recipe_class, arguments.config, **parsed)


def check_run_folder(folder: Path, recipe: Recipe, may_change: Collection[str] = ()) -> bool:
    """Say whether the folder of a run holds one to go on with, by the recipe's `resume` and `overwrite`.

    Raises FileExistsError where a run is there and neither is asked for, `Refused` where the run to resume had another
    recipe, in a field that may not change.
    """
    import yaml

    file, now = Path(folder) / RECIPE_FILE, recipe.as_flat_dict()
    if not file.is_file() or now["overwrite"]:
        return False
    if not now["resume"]:
        raise FileExistsError(
            f"output_dir: {folder} already holds a run, accepted: another folder, --resume or --overwrite"
        )
    before = yaml.safe_load(file.read_text())
    changed = sorted(name for name in now if name not in may_change and before.get(name) != now[name])
    if changed:
        shown = ", ".join(f"{name} (was {before.get(name)}, now {now[name]})" for name in changed)
        raise Refused(
            f"resume: the recipe differs from the run in {folder}: {shown}; accepted: the same recipe, or --overwrite"
        )
    return True


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the resolved recipe of a run into its folder, which is made if need be."""
    import yaml

    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / RECIPE_FILE).write_text(yaml.safe_dump(recipe.as_flat_dict(), sort_keys=False))
