"""Recipes: dataclass fields that are also YAML keys and command-line flags, checked by the same rule.

A field is declared with `described`: its help, its default, its bounds, and whether `--help` shows it. `convert` (in
`fields`) checks a value, whether it comes from Python, YAML or a flag. Existing libraries do not fit: the errors of
pydantic take several lines and suggest no nearest name, and libraries that make flags of dataclasses (jsonargparse,
transformers' HfArgumentParser) nest keys, have no bounds, or do not check YAML.
"""

import argparse
import dataclasses
import errno
import functools
import inspect
import os
import tempfile
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from ..errors import Refused
from .fields import (
    Bounds,
    Hint,
    Value,
    bounds_of,
    convert,
    describe_type,
    described,
    is_clean,
    is_list,
    nearest,
    require,
    shown,
    takes_text,
)


__all__ = [
    "RECIPE_FILE",
    "Recipe",
    "add_recipe_flags",
    "build_recipe",
    "check_output",
    "check_run_folder",
    "convert",
    "described",
    "fields_of",
    "folder_of",
    "groups_of",
    "hints_of",
    "make_folder",
    "nearest",
    "read_number",
    "recipe_from_flags",
    "require",
    "write_recipe",
]

# The file in the folder of a run that holds its recipe, every field with its value.
RECIPE_FILE = "recipe.yaml"
# Slow, because annotations are evaluated; the cache is by group, as mypy takes no `type[Recipe]` for hashable.
_hints_of_group = functools.cache(typing.get_type_hints)
RecipeT = TypeVar("RecipeT", bound="Recipe")
Number = TypeVar("Number", int, float)


class Recipe:
    """A dataclass of groups of fields; a group may have a `validate` that refuses contradictory values."""

    # Given to every subclass by `dataclass`.
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def check_fields(self) -> None:
        """Refuse values that their fields do not accept; convert the others to the fields' types."""
        hints = hints_of(type(self))
        for name, item in fields_of(type(self)).items():
            group = next(group for group in vars(self).values() if hasattr(group, name))
            value = convert(name, getattr(group, name), hints[name], bounds_of(item))
            # A list may be empty only if it is so by default.
            require(value != [] or default_of(item) == [], name, value, "at least one")
            setattr(group, name, value)

    def validate(self) -> Self:
        """Check every field, then every group, and return the recipe."""
        self.check_fields()
        for group in vars(self).values():
            if hasattr(group, "validate"):
                group.validate()
        return self

    def check_given(self, values: Mapping[str, object]) -> None:
        """Refuse fields that the user set but the chosen options do not use; by default every field is used."""

    def as_flat_dict(self) -> dict[str, Value]:
        """Return every field of every group in one dictionary, as a recipe file holds them."""
        return {key: value for group in dataclasses.asdict(self).values() for key, value in group.items()}


def groups_of(recipe_class: type[Recipe]) -> dict[str, type]:
    """Return the groups of fields of a recipe, by name."""
    # Each is made by its own class, which `Field` takes for any function.
    return {group.name: cast(type, group.default_factory) for group in dataclasses.fields(recipe_class)}


def fields_of(recipe_class: type[Recipe]) -> dict[str, dataclasses.Field]:
    """Return every field of every group of a recipe, by name."""
    return {item.name: item for group in groups_of(recipe_class).values() for item in dataclasses.fields(group)}


def hints_of(recipe_class: type[Recipe]) -> dict[str, Hint]:
    """Return the type of every field of a recipe, by name."""
    groups = groups_of(recipe_class).values()
    return {name: hint for group in groups for name, hint in _hints_of_group(group).items()}


def default_of(item: dataclasses.Field) -> Value:
    """Return the default of a field."""
    if item.default is not dataclasses.MISSING:
        return item.default
    assert item.default_factory is not dataclasses.MISSING, "every field has a default"
    return item.default_factory()


def folder_of(recipe_class: type[Recipe]) -> Path:
    """Return the folder of the package's own recipes: it is next to the module that defines the class."""
    return Path(inspect.getfile(recipe_class)).parent / "recipes"


def read_recipe(name_or_path: str, recipe_class: type[Recipe]) -> dict[str, Value]:
    """Read a recipe by its name (a file of `folder_of`) or path, and check keys and values; raises `Refused`."""
    from .yaml_text import read_mapping

    path, folder, known = Path(name_or_path), folder_of(recipe_class), fields_of(recipe_class)
    if not path.suffix and len(path.parts) < 2:
        path = folder / f"{name_or_path}.yaml"
    if not is_clean(name_or_path) or not os.path.isfile(path):
        names = [item.stem for item in sorted(folder.glob("*.yaml"))]
        accepted = "a YAML file" + (f" or one of {', '.join(names)}" if names else "")
        what = "a folder" if os.path.isdir(name_or_path) else "no recipe"
        raise Refused(f"config: {what} {shown(name_or_path)}, accepted: {accepted}")
    values, hints = read_mapping(path, "config"), hints_of(recipe_class)
    for key in values:
        if key not in known:
            raise Refused(f"config: unknown field {key!r} in {path}{nearest(str(key), known)}")
    return {key: convert(key, value, hints[key], bounds_of(known[key])) for key, value in values.items()}


def build_recipe(recipe_class: type[RecipeT], config: str | None = None, **overrides: object) -> RecipeT:
    """Build a validated recipe from defaults, overridden by the recipe file `config`, then by single fields."""
    values = read_recipe(config, recipe_class) if config is not None else {}
    known, hints = fields_of(recipe_class), hints_of(recipe_class)
    for key, value in overrides.items():
        if key not in known:
            raise Refused(f"unknown field {key!r}{nearest(key, known)}")
        values[key] = convert(key, value, hints[key], bounds_of(known[key]))
    groups = {}
    for group, factory in groups_of(recipe_class).items():
        names = {item.name for item in dataclasses.fields(factory)}
        groups[group] = factory(**{key: value for key, value in values.items() if key in names})
    recipe = recipe_class(**groups).validate()
    recipe.check_given(values)
    return recipe


class _HelpAll(argparse.Action):
    """Print the help of all flags, group by group; `--help` shows only the common ones."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        parts: list[Any] = [*parser._actions, *parser._action_groups]
        for part in parts:
            if full := getattr(part, "full_help", None):
                part.help, part.description = full, full
        parser.print_help()
        parser.exit()


def add_recipe_flags(parser: argparse.ArgumentParser, recipe_class: type[Recipe]) -> None:
    """Add `--config`, `--help-all` and one flag for each recipe field to a parser; `--help` shows the common ones."""
    known, hints = fields_of(recipe_class), hints_of(recipe_class)
    rare = sum(not item.metadata.get("common") for item in known.values())
    parser.add_argument(
        "--help-all",
        action=_HelpAll,
        nargs=0,
        help=f"show all {len(known)} flags, {rare} more than listed here, and exit",
    )
    parser.add_argument(
        "--config", help="recipe: the name of one of the package's recipes, or a YAML file; flags override its fields"
    )
    for group, factory in groups_of(recipe_class).items():
        items = dataclasses.fields(factory)
        section: Any = parser.add_argument_group(group)
        section.full_help = factory.__doc__
        if any(item.metadata.get("common") for item in items):
            section.description = factory.__doc__
        for item in items:
            _add_flag(section, item, hints[item.name])
            if item.metadata.get("positional"):
                # Not named like the field: argparse would overwrite the flag's value if this argument is absent.
                many, help_text = is_list(hints[item.name]), f"same as --{item.name.replace('_', '-')}"
                parser.add_argument(
                    f"{item.name}_given", nargs="*" if many else "?", metavar=item.name.upper(), help=help_text
                )


def _add_flag(section: argparse._ArgumentGroup, item: dataclasses.Field, hint: Hint) -> None:
    default, many = default_of(item), is_list(hint)
    if isinstance(default, list):
        default = " ".join(map(str, default)) or "empty"
    else:
        default = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
    text = f"{item.metadata['help']} [{describe_type(hint, bounds_of(item))}; default {default}]".replace("%", "%%")
    action: Any = section.add_argument(
        "--" + item.name.replace("_", "-"),
        nargs="+" if many else "?" if hint is bool else None,
        const="true" if hint is bool else None,
        metavar="X",
        help=text if item.metadata.get("common") else argparse.SUPPRESS,
    )
    action.full_help = text
    if hint is bool:
        no = "--no-" + item.name.replace("_", "-")
        section.add_argument(no, dest=item.name, action="store_const", const="false", help=argparse.SUPPRESS)


def recipe_from_flags(arguments: argparse.Namespace, recipe_class: type[RecipeT]) -> RecipeT:
    """Build the recipe from parsed flags; values are read as in a recipe file (`null`, `true`, numbers)."""
    given = {}
    for name, hint in hints_of(recipe_class).items():
        text, alone = getattr(arguments, name, None), getattr(arguments, f"{name}_given", None) or None
        require(text is None or alone is None, name, text, f"once, and it is {shown(alone)} already")
        text = alone if text is None else text
        if text is not None:
            given[name] = read_flag(text, hint)
    return build_recipe(recipe_class, arguments.config, **given)


def read_number(name: str, text: str, kind: type[Number], **bounds: float) -> Number:
    """Return the number that was typed after a flag that is not a recipe field; raises `Refused`."""
    number = convert(name, read_flag(text, kind), kind, Bounds(**bounds))
    assert isinstance(number, kind)
    return number


def read_flag(text: str | list[str], hint: Hint) -> object:
    """Return the value that was typed after a flag: of a text field the text itself, else the text read as YAML.

    A list is typed as its elements, or as a whole in brackets.
    """
    if not isinstance(text, list):
        return _read_word(text, hint)
    values, depth = [_read_word(word, hint) for word in text], str(hint).count("list[")
    if len(values) == 1 and (text == ["[]"] or _depth(values[0]) == depth):
        return values[0] if text != ["[]"] else []
    return values


def _depth(value: object) -> int:
    return 1 + _depth(value[0] if value else None) if isinstance(value, list) else 0


def _read_word(text: str, hint: Hint) -> object:
    from .yaml_text import NotYaml, parse

    if text in ("null", "Null", "NULL", "~"):
        return None
    if takes_text(hint):
        return text
    try:
        # An empty text, as from a shell variable that is not set, does not count as null.
        value = parse(text)
    except NotYaml:
        return text
    return text if value is None else value


def check_output(folder: str | os.PathLike, name: str = "output_dir") -> None:
    """Raise `Refused`, naming the field, if a folder could not be made or written to; leaves no file behind."""
    path = Path(folder)
    try:
        there = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
        longest = os.pathconf(there, "PC_NAME_MAX") if there.is_dir() else 255
        if any(len(os.fsencode(part)) > longest for part in path.parts) or len(os.fsencode(path.absolute())) > 3500:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if not there.is_dir():
            raise OSError(errno.ENOTDIR, f"{there} is {'a broken link' if there.is_symlink() else 'a file'}")
        # The folder's permissions do not show what a mount, a quota or a server forbids.
        os.rmdir(tempfile.mkdtemp(dir=there, prefix=".dinov3-"))
    except OSError as error:
        raise _unwritable(name, folder, error) from None


def _unwritable(name: str, folder: str | os.PathLike, error: OSError) -> Refused:
    return Refused(
        f"{name}: {shown(str(folder))}: {error.strerror}, accepted: a folder that can be made or written to"
    )


def check_run_folder(folder: Path, recipe: Recipe, may_change: Collection[str] = ()) -> bool:
    """Say whether a folder holds a run to resume, given the recipe's `resume` and `overwrite`.

    Raises `Refused` if the folder cannot be written to, if it holds a run and neither is set, and if the recipe of the
    run to resume differs in a field that is not in `may_change`.
    """
    from .yaml_text import read_mapping

    check_output(folder)
    file, now = Path(folder) / RECIPE_FILE, recipe.as_flat_dict()
    if not file.is_file() or now["overwrite"]:
        return False
    if not now["resume"]:
        raise Refused(f"output_dir: {folder} already holds a run, accepted: another folder, --resume or --overwrite")
    before = read_mapping(file, "resume")
    changed = sorted(name for name in now if name not in may_change and before.get(name) != now[name])
    if changed:
        differences = ", ".join(f"{name} (was {before.get(name)}, now {now[name]})" for name in changed)
        raise Refused(
            f"resume: the recipe differs from the run in {folder}: {differences}; accepted: the same recipe, "
            "or --overwrite"
        )
    return True


def make_folder(folder: str | os.PathLike, name: str = "output_dir") -> Path:
    """Make a folder to write to, with its parents; raises `Refused`, naming the field, if that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(name, folder, error) from None
    return Path(folder)


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write a run's recipe, every field with its value, into its folder, which is made if missing."""
    from .yaml_text import dump

    (make_folder(folder) / RECIPE_FILE).write_text(dump(recipe.as_flat_dict()))
