"""Names of a package that are imported on first use, because their dependencies take seconds to import."""

import importlib
import sys
from collections.abc import Callable, Collection, Mapping


def lazy_names(
    package: str, names: Mapping[str, Collection[str]], modules: Collection[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` (PEP 562) of a package that imports names from its files on first use.

    Args:
        package: the package's `__name__`.
        names: for each file, relative to the package (".loading"), the names to import from it. None may equal the
            name of a file: once a file is imported, Python sets the module under that name.
        modules: files and packages inside that are attributes without an explicit import.

    The function returned raises AttributeError, naming the package, for every other name.
    """
    sources = {name: source for source, group in names.items() for name in group}

    def get(name: str) -> object:
        if name in modules:
            return importlib.import_module(f".{name}", package)
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(sources[name], package), name)
        # From now on Python finds the name without calling this function.
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *sources, *modules})

    return get, list_names
