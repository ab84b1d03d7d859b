"""Where weights, data and results come from: names, digests, revisions, library versions, the git commit."""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Libraries whose versions can change results.
LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets")
# File suffixes, which hub ids do not have.
FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".parquet", ".tar")


def is_local(name: str) -> bool:
    """Say whether a name is a local path, existing or not, rather than `owner/name` on the hub."""
    return os.path.exists(os.path.expanduser(name)) or name.startswith((".", "/", "~")) or name.count("/") > 1


def is_hub_id(name: str) -> bool:
    """Say whether a source of weights or data is `owner/name` or `owner/name:config` rather than a local path."""
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", name) and not name.endswith(FILE_SUFFIXES)
    return bool(is_id) and not os.path.exists(name)


def public(value: object) -> object:
    """Return a recipe's value for a model card: of absolute paths, which may be private, only the last part."""
    if isinstance(value, list):
        return [public(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def weights_digest(model: "PreTrainedModel") -> str:
    """Return a digest of a network's class, configuration and weights."""
    import torch

    about = {"class": type(model).__name__, "window": getattr(model, "window", None)}
    digest = hashlib.sha256(json.dumps(about | model.config.to_diff_dict(), default=repr, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, because numpy does not know bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:20]


def describe_weights(name: str, model: "PreTrainedModel") -> dict:
    """Return where a model came from: the digests of its files, or its revision on the hub."""
    path = Path(name)
    if path.is_file():
        return {"path": name, "sha256": file_digest(path)}
    provenance = {"path": name, "revision": getattr(model.config, "_commit_hash", None)}
    if path.is_dir():
        provenance["sha256"] = {file.name: file_digest(file) for file in sorted(path.glob("model*.safetensors"))}
    return provenance


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and `LIBRARIES`, the git commit if any, and the command line."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        "dinov3_hf": version("dinov3-hf"),
        **installed,
        "git": git.stdout.strip(),
        "command": " ".join(sys.argv),
    }
