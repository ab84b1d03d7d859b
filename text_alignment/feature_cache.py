"""The frozen backbone's tokens of every image, computed once and kept in Parquet files."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from dinov3_hf.data.captions import find_caption_columns, read_captions
from dinov3_hf.data.columns import find_image_column
from dinov3_hf.data.pixels import BadImage, decode_image
from dinov3_hf.errors import Refused
from dinov3_hf.models.modeling_dinov3 import Dinov3Model
from dinov3_hf.recipe import make_folder
from dinov3_hf.terminal import progress_bar

from .pairs import TOKENS, ImageTransform


if TYPE_CHECKING:
    import datasets

ROWS_PER_FILE = 2048
CAPTIONS = "captions"


@torch.inference_mode()
def write_feature_cache(
    folder: Path,
    sources: Sequence["datasets.Dataset | datasets.IterableDataset"],
    image_column: str | None,
    caption_columns: list[str],
    transform: ImageTransform,
    backbone: Dinov3Model,
    about: dict,
) -> dict:
    """Write the backbone's tokens and the captions of every usable row; returns the state of the cache.

    An interrupted cache is continued after its last complete file. `about` describes the features (backbone, image
    size, data); raises `Refused` if the folder contains features with another description.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    note = folder / "features.json"
    state: dict[str, Any] = {"about": about, "files": 0, "rows": 0, "read": 0, "bad": 0, "finished": False}
    if note.is_file():
        try:
            state |= json.loads(note.read_text())
            written = dict(state["about"])
        except (OSError, ValueError, TypeError) as error:
            raise Refused(f"cache_features: {note} cannot be read ({error}), accepted: another folder") from None
        if written != about:
            changed = ", ".join(sorted(name for name in about if written.get(name) != about[name]))
            raise Refused(f"cache_features: {folder} holds features of another {changed}, accepted: another folder")
    device = next(backbone.parameters()).device
    read = 0
    with progress_bar(desc="backbone features", unit="image", initial=state["read"]) as bar:
        for rows in [] if state["finished"] else sources:
            image_name = find_image_column(rows, image_column)
            columns = find_caption_columns(rows, caption_columns)
            pixels, captions = [], []
            for row in rows:
                read += 1
                # Rows that are already in the cache are skipped.
                if read <= state["read"]:
                    continue
                bar.update()
                try:
                    texts = read_captions(row, columns)
                    pixels.append(transform(decode_image(row[image_name])))
                    captions.append(texts)
                except BadImage:
                    state["bad"] += 1
                if len(pixels) == ROWS_PER_FILE:
                    _write(folder, state, pixels, captions, read, backbone, device, pa, pq)
                    pixels, captions = [], []
            if pixels:
                _write(folder, state, pixels, captions, read, backbone, device, pa, pq)
    if not state["rows"]:
        raise Refused(f"data: none of {read} rows has an image and a caption, accepted: at least one")
    state |= {"read": max(read, state["read"]), "finished": True}
    note.write_text(json.dumps(state, indent=2) + "\n")
    return state


def _write(
    folder: Path,
    state: dict,
    pixels: list[torch.Tensor],
    captions: list[list[str]],
    read: int,
    backbone: Dinov3Model,
    device: torch.device,
    pa: ModuleType,
    pq: ModuleType,
) -> None:
    """Write one file under a temporary name, rename it, and record it in features.json."""
    tokens = []
    for batch in torch.stack(pixels).split(64):
        tokens += backbone(batch.to(device)).last_hidden_state.to(torch.float16).cpu().unbind()
    make_folder(folder, "cache_features")
    table = pa.table({TOKENS: [token.numpy().tobytes() for token in tokens], CAPTIONS: captions})
    target = folder / f"train-{state['files']:05d}.parquet"
    partial = target.with_suffix(".partial")
    pq.write_table(table, partial, row_group_size=256)
    partial.rename(target)
    state.update(files=state["files"] + 1, rows=state["rows"] + len(pixels), read=read)
    (folder / "features.json").write_text(json.dumps(state, indent=2) + "\n")
