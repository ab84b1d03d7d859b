"""Names of a package that are imported when they are first used, because what they need takes seconds to import."""

import importlib
import sys
from collections.abc import Callable, Collection, Mapping


def lazy_names(
    package: str, names: Mapping[str, Collection[str]], modules: Collection[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package (PEP 562) whose names come from its files.

    Args:
        package: the package's `__name__`.
        names: for each file, relative to the package (".loading"), the names taken from it. None may be that of a file:
            Python sets the file itself under its name as soon as anybody imports it.
        modules: files and packages inside that are found by their own names, without being imported first.

    The function returned raises AttributeError, naming the package, for every other name.
    """
    sources = {name: source for source, group in names.items() for name in group}

    def get(name: str) -> object:
        if name in modules:
            return importlib.import_module(f".{name}", package)
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(sources[name], package), name)
        # From now on the name is found without asking here.
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *sources, *modules})

    return get, list_names
