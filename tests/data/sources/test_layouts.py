"""What a folder or file means: a table of layouts, each read as expected or refused in one line."""

import itertools
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinov3_hf.data.sources.listing import IMAGE_EXTENSIONS
from dinov3_hf.data.streams import RowStream, load_source
from dinov3_hf.errors import Refused

from .layout_makers import TREE, files, picture, put, saved, tar
from .layouts_of_annotations import ANNOTATIONS
from .layouts_of_files import FILES
from .layouts_of_folders import FOLDERS


LAYOUTS = FOLDERS | ANNOTATIONS | FILES


def call_of(root, call):
    """Return the source and the split that a row of the table means: READING:, /below, @split or =source."""
    call, _, split = call.partition("@")
    if call.startswith("="):
        return call[1:], split or "train"
    reading, colon, below = call.rpartition(":")
    return f"{reading}{colon}{root}{below}", split or "train"


def classes_of(rows):
    objects = rows.features.get("objects")
    if objects is not None:
        return objects["category"].feature.names
    return rows.features["label"].names if "label" in rows.features else None


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(tmp_path, name, capfd):
    make, call, expected = LAYOUTS[name]
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    source, split = call_of(root, call)
    if isinstance(expected, str):
        with pytest.raises(Refused, match=expected) as raised:
            load_source(source, split)
        message = str(raised.value)
        assert "\n" not in message and message.startswith(("data: ", "split: ", "image_column: "))
        return
    rows = load_source(source, split)
    found = list(rows)
    assert len(found) == expected["rows"]
    assert expected["classes"] is None or classes_of(rows) == expected["classes"]
    assert expected["columns"] is None or list(rows.column_names) == expected["columns"]
    for column in set(expected) & {"score", "n", "text", "cls", "txt"}:
        assert [row[column] for row in found] == expected[column]
    if "objects" in expected:
        assert {key: np.array(value).tolist() for key, value in found[0]["objects"].items()} == expected["objects"]
    if "mask" in expected:
        assert expected["mask"] in found[0]["mask"]["path"]
    if "note" in expected:
        assert re.search(rf"data: \S+: .*{expected['note']}", capfd.readouterr().err)
    if "path" in expected:
        assert found[0]["image"]["path"].endswith(expected["path"])


def test_the_table_is_long_enough():
    assert len(LAYOUTS) == len(FOLDERS) + len(ANNOTATIONS) + len(FILES) >= 130


# Training on them


@pytest.mark.parametrize("kind", ["bytes", "tars", "folder", "saved"])
def test_sources_of_others_resume_exactly(tmp_path, kind):
    for shard in range(2):
        of_shard = [picture(10 * shard + index) for index in range(5)]
        if kind == "bytes":
            pq.write_table(pa.table({"scan": of_shard, "n": range(5)}), tmp_path / f"{shard}.parquet")
        elif kind == "tars":
            suffixes = ["png", "jpg"] * 3
            tar(f"{shard}.tar", {f"{i}.{suffixes[i]}": data for i, data in enumerate(of_shard)})(tmp_path)
        elif kind == "folder":
            put(tmp_path, {f"{shard}/{i}.png": data for i, data in enumerate(of_shard)})
    if kind == "saved":
        saved("dict")(tmp_path)
    rows = load_source(str(tmp_path), columns=[])

    def read(stream, count):
        return [next(iter(row.values())) for row in itertools.islice(stream, count)]

    whole = read(RowStream(rows, 4, 0), 25)
    assert set(whole[0]) == {"bytes", "path"}
    for stop in (0, 3, 4, 11, 17):
        stream = RowStream(rows, 4, 0)
        head = read(stream, stop)
        again = RowStream(rows, 4, 0)
        again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert head + read(again, 25 - stop) == whole


def test_a_folder_gives_the_same_rows_until_it_changes(tmp_path):
    TREE(tmp_path)
    first, second = (load_source(str(tmp_path), split)._fingerprint for split in ("train", "test"))
    assert first == second
    (tmp_path / "car/1.png").write_bytes(picture(77))
    assert load_source(str(tmp_path))._fingerprint != first


@pytest.mark.parametrize("streaming", [True, False])
def test_tars_of_several_suffixes_at_a_url(tmp_path, streaming):
    for shard in range(2):
        members = {"1.png": picture(shard), "1.cls": "4", "2.jpg": picture(5 + shard), "2.txt": "b"}
        tar(f"{shard}.tar", members)(tmp_path)
    rows = load_source(f"file://{tmp_path}/{{0..1}}.tar", streaming=streaming)
    assert [row["image"]["path"] for row in rows] == ["1.png", "2.jpg"] * 2
    assert [row["cls"] for row in rows] == [4, None] * 2


def test_labels_in_the_json_of_tars_are_columns(tmp_path):
    tar(
        "x.tar",
        {f"{n}{end}": data for n in (1, 2) for end, data in ((".png", picture(n)), (".json", f'{{"y": {n}}}'))},
    )(tmp_path)
    assert load_source(str(tmp_path), streaming=False)["y"] == [1, 2]


def test_unclear_labels_are_refused_only_where_they_are_wanted(tmp_path):
    files("images/cat/1.png", "images/dog/2.png")(tmp_path)
    assert load_source(str(tmp_path), columns=[]).column_names == ["image"]


@pytest.mark.parametrize("what", ["masks", "boxes"])
def test_masks_and_boxes_are_read_only_where_they_are_wanted(tmp_path, what, capfd):
    put(tmp_path, {"images/1.jpg": None, "labels/1.png" if what == "masks" else "labels/1.txt": b"no boxes"})
    assert load_source(str(tmp_path), columns=[]).column_names == ["image"]
    assert f"images alone are read, without their {what}" in capfd.readouterr().err


def test_notes_are_said_once(tmp_path, capfd):
    files("car/1.png", "plane/2.png", "train/3.png")(tmp_path)
    for _ in range(2):
        load_source(str(tmp_path))
    captured = capfd.readouterr()
    assert captured.err.count("train is taken for a class, as car, plane are") == 1 and not captured.out


def test_the_suffixes_are_those_that_the_decoder_opens():
    Image.init()
    known = Image.registered_extensions()
    assert all(f".{suffix}" in known for suffix in IMAGE_EXTENSIONS)
