"""Read YAML by the core schema of version 1.2, without tags and aliases, with errors in one line.

PyYAML follows version 1.1, where `1e-3` is a text, `010` is eight, `1:30` is ninety and `no` is false.
"""

import os
import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

from ..errors import Refused
from .fields import Value


# A recipe has some hundred lines; a larger file is none.
MAX_BYTES = 1_000_000
TAG = "tag:yaml.org,2002:"
# Patterns of scalars without quotes (YAML 1.2.2, section 10.3.2); the first that matches counts, all others are texts.
SCALARS = {
    "null": r"(?:null|Null|NULL|~|)",
    "bool": r"(?:true|True|TRUE|false|False|FALSE)",
    "int": r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)",
    "float": r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
}
RESOLVERS = [(TAG + kind, re.compile(rf"{pattern}\Z")) for kind, pattern in SCALARS.items()]


class NotYaml(ValueError):
    """Raised for a text that is not valid YAML; the message is one line."""


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the scalars of version 1.2; refuses repeated keys, aliases and other tags."""

    yaml_implicit_resolvers = {None: RESOLVERS}
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        TAG + kind: yaml.SafeLoader.yaml_constructors[TAG + kind] for kind in ("str", "seq", "map")
    }

    def compose_node(self, parent: yaml.Node | None, index: yaml.Node | int | None) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not accepted", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key, yaml.ScalarNode) else True:
                problem = f"the key {key.value!r} is there twice" if isinstance(key.value, str) else "a key is no text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_scalar_of_core(self, node: yaml.ScalarNode) -> bool | int | float | None:
        """Return the value of a null, boolean or number."""
        kind, value = node.tag.removeprefix(TAG), self.construct_scalar(node)
        if not re.fullmatch(SCALARS[kind], value):
            raise yaml.MarkedYAMLError(problem=f"{value!r} is no {kind}", problem_mark=node.start_mark)
        if kind == "null":
            return None
        if kind == "bool":
            return value.lower() == "true"
        if kind == "float":
            return float(value.replace(".inf", "inf").replace(".nan", "nan") if value.islower() else value.lower())
        return int(value, 0) if value[:2] in ("0x", "0o") else int(value)


for _kind in SCALARS:
    _Loader.yaml_constructors[TAG + _kind] = _Loader.construct_scalar_of_core
_Loader.yaml_constructors[None] = yaml.SafeLoader.yaml_constructors[None]


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper; it also quotes texts that version 1.2 would read as another type."""

    yaml_implicit_resolvers = yaml.SafeDumper.yaml_implicit_resolvers | {None: RESOLVERS}


def parse(text: str) -> Value | dict:
    """Return the value of a YAML text; raises `NotYaml`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise NotYaml(f"line {mark.line + 1}: {problem}" if mark else problem) from None
    except yaml.YAMLError as error:
        raise NotYaml(" ".join(str(error).split())) from None
    except RecursionError:
        raise NotYaml("it is nested too deeply") from None
    except ValueError as error:
        # Python refuses numbers of more than some thousand digits.
        raise NotYaml(str(error)) from None


def read_mapping(path: str | os.PathLike, field: str) -> dict:
    """Return the keys and values of a YAML file, none for an empty one; raises `Refused`, naming `field`."""
    accepted = "accepted: a YAML file, one `field: value` a line"
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise Refused(f"{field}: {path} has more than {MAX_BYTES // 10**6} MB, {accepted}")
        values = parse(content.decode("utf-8-sig"))
    except OSError as error:
        raise Refused(f"{field}: {path} cannot be read ({error.strerror}), {accepted}") from None
    except UnicodeDecodeError:
        raise Refused(f"{field}: {path} is no text in UTF-8, {accepted}") from None
    except NotYaml as error:
        raise Refused(f"{field}: {path} cannot be read as YAML ({error}), {accepted}") from None
    if values is not None and not isinstance(values, dict):
        raise Refused(f"{field}: {path} holds a {type(values).__name__}, {accepted}")
    return values or {}


def dump(values: dict) -> str:
    """Return YAML from which `parse` reads the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
