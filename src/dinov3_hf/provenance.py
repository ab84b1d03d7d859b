"""Where weights, data and results come from."""

from pathlib import Path


def is_local(name: str) -> bool:
    """Say whether a name is a path of this machine, there or not, rather than `owner/name` on the hub."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
