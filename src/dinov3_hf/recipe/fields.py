"""Recipe fields: their types and bounds, and the one rule that checks their values."""

import dataclasses
import difflib
import os
import sys
import types
import typing
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..errors import Refused


# A field's type as in annotations: int, list[str], Literal["a", "b"], float | None. Python has no type for these.
Hint: TypeAlias = object
# A field's value, as YAML can hold it.
Value: TypeAlias = bool | int | float | str | list["Value"] | None
# Whole numbers are passed to libraries that use 64 bits.
LARGEST_WHOLE = 2**63 - 1
# Messages cut values that are longer.
SHOWN_LENGTH = 200


@dataclass(frozen=True)
class Bounds:
    """The range of a number, or of each number in a list; without bounds if all are None."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def hold(self, number: float) -> bool:
        """Say whether a number is within the bounds."""
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def words(self) -> str:
        """Return the range in words to follow "a number"; an empty text without bounds."""
        upper = f"up to {self.at_most}" if self.at_most is not None else f"below {self.below}"
        has_upper = self.at_most is not None or self.below is not None
        if self.above is not None:
            return f" above {self.above}" + (f", {upper}" if has_upper else "")
        if self.at_least is not None and has_upper:
            return f" from {self.at_least} {'to ' + str(self.at_most) if self.at_most is not None else 'to ' + upper}"
        if self.at_least is not None:
            return f" of at least {self.at_least}"
        return f" {upper}" if has_upper else ""


def described(
    text: str,
    default: object = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    common: bool = False,
    positional: bool = False,
    **metadata: object,
) -> Any:
    """Return a dataclass field with its help text and bounds; a default list is copied for each instance.

    `--help` shows common fields. The value of a positional field may also be typed without its flag. Typed as
    `dataclasses.field` is, so that the field may be annotated with any type.
    """
    bounds = Bounds(at_least, above, at_most, below)
    metadata = {"help": text, "bounds": bounds, "common": common or positional, "positional": positional, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def require(condition: object, name: str, value: object, accepted: str) -> None:
    """Raise `Refused`, naming the field, its value and what is accepted, unless the condition is true."""
    if not condition:
        raise Refused(f"{name}: {'missing' if value is None else f'got {shown(value)}'}, accepted: {accepted}")


def shown(value: object) -> str:
    """Return the text with which messages show a value."""
    text = repr(value)
    return text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + " ..."


def bounds_of(item: dataclasses.Field) -> Bounds:
    """Return the bounds of a field."""
    return item.metadata.get("bounds", Bounds())


def _alternatives(hint: Hint) -> tuple[Hint, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def is_list(hint: Hint) -> bool:
    """Say whether a field takes a list."""
    return any(typing.get_origin(part) is list for part in _alternatives(hint))


def takes_text(hint: Hint) -> bool:
    """Say whether a field takes any text, or a list of them."""
    return any(str in (part, *typing.get_args(part)) for part in _alternatives(hint))


def choices_of(hint: Hint) -> list[str]:
    """Return the words from which a field takes one."""
    literals = [part for part in _alternatives(hint) if typing.get_origin(part) is Literal]
    return [choice for part in literals for choice in typing.get_args(part) if isinstance(choice, str)]


def describe_type(hint: Hint, bounds: Bounds = Bounds(), many: bool = False) -> str:
    """Return in words which values a field takes; in the plural with `many`, for the elements of a list."""
    one, s = ("", "s") if many else ("a ", "")
    words = {
        int: f"{one}whole number{s}{bounds.words()}",
        float: f"{one}number{s}{bounds.words()}",
        str: "texts" if many else "a text",
        bool: "true or false",
        type(None): "null",
    }
    parts = []
    for part in _alternatives(hint):
        if typing.get_origin(part) is Literal:
            parts += [str(value) for value in typing.get_args(part)]
        elif typing.get_origin(part) is list:
            parts.append(f"{one}list{s} of {describe_type(typing.get_args(part)[0], bounds, many=True)}")
        else:
            parts.append(words[part])
    return ", ".join(parts[:-1]) + " or " + parts[-1] if len(parts) > 1 else parts[0]


def is_clean(text: str) -> bool:
    """Say whether a text is not blank, can be written as UTF-8, and has no control characters."""
    return bool(text.strip()) and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


class _OfAnotherType(Exception):
    """Raised for a value that does not fit one alternative of a field's type."""


def _read(value: object, part: Hint, bounds: Bounds) -> Value:
    """Return a value as one alternative of a field's type."""
    if part is type(None) and value is None:
        return None
    if typing.get_origin(part) is Literal:
        choices: tuple[Value, ...] = typing.get_args(part)
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
    if typing.get_origin(part) is list:
        inner = typing.get_args(part)[0]
        # A single text needs no brackets.
        value = [value] if isinstance(value, str | os.PathLike) and _is_textual(inner) else value
        if isinstance(value, list | tuple):
            return [_read_any(item, inner, bounds) for item in value]
    if part is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max and bounds.hold(value):
            return float(value)
    if part is int and type(value) is int and abs(value) <= LARGEST_WHOLE and bounds.hold(value):
        return value
    if part is bool and isinstance(value, bool):
        return value
    if part is str and isinstance(value, str | os.PathLike) and is_clean(os.fspath(value)):
        return os.fspath(value)
    raise _OfAnotherType


def _is_textual(hint: Hint) -> bool:
    return hint is str or typing.get_origin(hint) is Literal


def _read_any(value: object, hint: Hint, bounds: Bounds) -> Value:
    for part in _alternatives(hint):
        try:
            return _read(value, part, bounds)
        except _OfAnotherType:
            continue
    raise _OfAnotherType


def convert(name: str, value: object, hint: Hint, bounds: Bounds = Bounds()) -> Value:
    """Return `value` as the type `hint` of the recipe field `name`; raises `Refused`, which says what is accepted.

    Numbers, also in lists, must be finite and within the bounds, and texts must not be blank.
    """
    try:
        return _read_any(value, hint, bounds)
    except _OfAnotherType:
        accepted, parts = describe_type(hint, bounds), value if isinstance(value, list) else [value]
        if any(type(part) is int and abs(part) > LARGEST_WHOLE for part in parts):
            accepted += ", of 64 bits"
        if takes_text(hint) and any(isinstance(part, str) and not is_clean(part) for part in parts):
            accepted += ", not empty and without control characters"
        hint_at = nearest(value, choices_of(hint)) if isinstance(value, str) else ""
        raise Refused(f"{name}: got {shown(value)}, accepted: {accepted}{hint_at}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known name nearest to a mistyped one, or an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
