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


class Recipe:
    """A dataclass of groups of fields, each of which refuses what contradicts itself."""

    def validate(self):
        for group in dataclasses.fields(self):
            getattr(self, group.name).validate()
        return self

    def as_flat_dict(self) -> dict:
        """Return every field of every group in one dictionary, as a recipe file holds them."""
        return {key: value for group in dataclasses.asdict(self).values() for key, value in group.items()}
