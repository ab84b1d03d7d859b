"""What the fields of a recipe share: a help text, and one line for a value that cannot be."""

import dataclasses
from dataclasses import field


def described(text: str, default=dataclasses.MISSING, **kwargs):
    """Return a dataclass field with its help text; a list is copied for each instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text, **kwargs})
    return field(default=default, metadata={"help": text, **kwargs})


def require(condition: bool, name: str, value, accepted: str) -> None:
    """Raise ValueError, naming the field, its value and what is accepted, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}: got {value!r}, accepted: {accepted}")
