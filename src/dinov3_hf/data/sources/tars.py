"""WebDataset tars whose samples have images of several suffixes, read as one column."""

import contextlib
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .listing import IMAGE_EXTENSIONS


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


# Samples looked at, at the start of the first tar and of the last.
LOOKED_AT = 100
# What a Mac adds to an archive.
HIDDEN_MEMBER = "__MACOSX"


def load_mixed_tars(
    files: list[str], streaming: bool, storage: dict[str, Any] | None = None
) -> "Dataset | IterableDataset | None":
    """Return rows with all images in a column `image`, or None if every sample has the same members.

    The columns of other members are their suffixes, as in WebDataset: json is parsed, cls is a number, txt is text.
    """
    from datasets import Dataset, Features, Image, IterableDataset

    kinds = [_kinds(file, storage or {}) for file in dict.fromkeys((files[0], files[-1]))]
    has_hidden = any(frozenset({HIDDEN_MEMBER}) in kind for kind in kinds)
    samples = set().union(*kinds) - {frozenset({HIDDEN_MEMBER})}
    suffixes = {suffix for sample in samples for suffix in sample if suffix in IMAGE_EXTENSIONS}
    several = any(sum(suffix in IMAGE_EXTENSIONS for suffix in sample) > 1 for sample in samples)
    if (len(samples) < 2 and not has_hidden) or not suffixes or several:
        return None
    sides = sorted({suffix for sample in samples for suffix in sample} - suffixes)
    first = list(itertools.islice(read_samples(files[:1], tuple(sides), storage=storage), LOOKED_AT))
    known = {side: [row[side] for row in first if row[side] is not None] for side in sides}
    features = Features({"image": Image(decode=False), **{side: _feature(known[side]) for side in sides}})
    features["__key__"] = _feature(["key"])
    # Keys that only later samples have would be no part of the columns' types.
    keys = tuple(dict.fromkeys(key for record in known.get("json", []) for key in record))
    arguments = {
        "gen_kwargs": {"files": files, "sides": tuple(sides), "keys": keys, "storage": storage},
        "features": features,
    }
    return (IterableDataset if streaming else Dataset).from_generator(read_samples, **arguments)


def _feature(values: list) -> Any:
    import pyarrow as pa
    from datasets import Features, Value

    if not values:
        return Value("binary")
    return Features.from_arrow_schema(pa.table({"x": pa.array(values)}).schema)["x"]


def split_name(name: str) -> tuple[str, str]:
    """Return the key and suffix of a member, as WebDataset does: the suffix begins at the first dot of the name."""
    if name.startswith(f"{HIDDEN_MEMBER}/") or "/._" in f"/{name}":
        return "", HIDDEN_MEMBER
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match.group(1), match.group(2).lower()) if match else ("", "")


@contextlib.contextmanager
def _opened(file: str, storage: dict[str, Any]) -> Iterator[tarfile.TarFile]:
    """Open a tar, or one at a URL as it comes; `storage` are options of its file system."""
    if "://" not in file:
        with tarfile.open(file) as tar:
            yield tar
        return
    import fsspec

    with fsspec.open(file, "rb", **storage) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
        yield tar


def _kinds(file: str, storage: dict[str, Any]) -> set[frozenset[str]]:
    """Return the sets of suffixes that the first samples of a tar have."""
    samples: dict[str, set[str]] = {}
    with _opened(file, storage) as tar:
        for member in tar:
            key, suffix = split_name(member.name)
            if suffix == HIDDEN_MEMBER:
                samples[HIDDEN_MEMBER] = {HIDDEN_MEMBER}
            if member.isfile() and key:
                if key not in samples and len(samples) == LOOKED_AT:
                    break
                samples.setdefault(key, set()).add(suffix)
    return set(map(frozenset, samples.values()))


def read_samples(
    files: list[str],
    sides: tuple[str, ...],
    keys: tuple[str, ...] | None = None,
    storage: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one row a sample of the tars: its image as bytes and path, and each member in `sides`, else None.

    Only `keys` of `json` members are kept; None keeps all.
    """
    for file in files:
        with _opened(file, storage or {}) as tar:
            row: dict[str, Any] = {}
            for member in tar:
                key, suffix = split_name(member.name)
                if not member.isfile() or not key:
                    continue
                if row and row["__key__"] != key:
                    yield row
                    row = {}
                row = row or {"image": None, **dict.fromkeys(sides), "__key__": key}
                opened = tar.extractfile(member)
                data = opened.read() if opened else b""
                if suffix in IMAGE_EXTENSIONS:
                    row["image"] = {"bytes": data, "path": f"{key}.{suffix}"}
                elif suffix in row:
                    row[suffix] = _decoded(data, suffix)
                    if suffix == "json" and keys is not None:
                        row[suffix] = {key: row[suffix].get(key) for key in keys}
            if row:
                yield row


def _decoded(data: bytes, suffix: str) -> Any:
    last = suffix.rpartition(".")[2]
    if last == "json":
        return json.loads(data)
    if last in ("cls", "cls2", "class", "index", "id", "count"):
        return int(data)
    return data.decode() if last in ("txt", "text", "transcript", "caption") else data


def with_json_columns(rows: "Dataset") -> "Dataset":
    """Return rows of tars with the numbers and texts of their `json` members as columns too, such as a label."""
    from datasets import Value

    features = rows.features
    if "__key__" not in features or not isinstance(features.get("json"), dict):
        return rows
    for name, feature in features["json"].items():
        if name not in rows.column_names and isinstance(feature, Value):
            values = [None if record is None else record[name] for record in rows["json"]]
            rows = rows.add_column(name, values, feature=feature)
    return rows
