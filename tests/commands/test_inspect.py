"""`dinov3 inspect`: the account of a whole source, names of what is wrong in it, and the same after a stop."""

import io
import json
import resource
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dinov3_hf.cli import main
from dinov3_hf.data.inspection import rows as inspection_rows
from dinov3_hf.data.inspection import run as inspection_run

from ..processes import run_processes


def picture(seed, side=12, kind="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + seed % 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def inspect(source, folder, *flags):
    assert main(["inspect", str(source), "--output-dir", str(folder), *flags]) == 0
    return json.loads((folder / "inspect.json").read_text())


def names(folder):
    return [line.split("\t")[0] for line in (folder / "skipped.txt").read_text().splitlines()]


def write_parquet(file, images, labels=None):
    features = {"image": datasets.Image()}
    columns = {"image": [{"bytes": data, "path": None} for data in images]}
    if labels is not None:
        features["label"] = datasets.ClassLabel(names=["cat", "dog", "owl"])
        columns["label"] = labels
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(file)


@pytest.fixture
def folder(tmp_path):
    """Two classes of pictures, one of them cut, one empty, one there twice."""
    place = tmp_path / "images"
    for index in range(10):
        file = place / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(index))
    shutil.copyfile(place / "a" / "0.png", place / "b" / "copy.png")
    (place / "a" / "cut.png").write_bytes(picture(20)[:200])
    (place / "b" / "empty.png").write_bytes(b"")
    (place / ".hidden").write_bytes(b"")
    return place


@pytest.fixture
def parquet(tmp_path):
    """Two splits of Parquet files that share two images; one image is broken."""
    place = tmp_path / "parquet"
    place.mkdir()
    write_parquet(place / "train-0.parquet", [picture(index) for index in range(30)], [0, 1] * 15)
    broken = [*map(picture, range(30, 40)), b"no image", *map(picture, range(40, 50))]
    write_parquet(place / "train-1.parquet", broken, [0] * 20 + [-1])
    write_parquet(place / "test-0.parquet", [picture(index) for index in (3, 45, 60, 60)], [1, 0, 1, 1])
    return place


@pytest.fixture
def tars(tmp_path):
    """Two tars of pictures with classes; one picture is broken."""
    place = tmp_path / "tars"
    place.mkdir()
    for shard in range(2):
        with tarfile.open(place / f"{shard}.tar", "w") as tar:
            for index in range(12):
                data = b"broken" if (shard, index) == (1, 5) else picture(100 * shard + index)
                for suffix, content in (("png", data), ("cls", str(index % 3).encode())):
                    info = tarfile.TarInfo(f"key{shard}{index:02d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return place


def test_a_folder_is_accounted_for(folder, tmp_path, capsys):
    report = inspect(folder, tmp_path / "out")
    account = report["splits"]["all"]
    assert report["kind"] and report["skipped_files"] == {"hidden files or folders": 1}
    assert (account["rows"], account["readable"]) == (13, 11)
    assert sorted(names(tmp_path / "out")) == [str(folder / "a" / "cut.png"), str(folder / "b" / "empty.png")]
    assert account["skipped"]["the file is empty"] == 1 and len(account["skipped"]) == 2
    assert account["labels"] == {"column": "label", "different_values": 2, "unlabelled": 0, "counts": {"b": 6, "a": 5}}
    assert report["duplicates"] == {"images_more_than_once": 1, "repeated_within": {"all": 1}, "in_both": {}}
    twice = (tmp_path / "out" / "duplicates.txt").read_text()
    assert twice.strip().split("\t") == [str(folder / "a" / "0.png"), str(folder / "b" / "copy.png")]
    good = [file for file in folder.rglob("*.png") if file.stem not in ("cut", "empty")]
    pixels = np.concatenate([np.asarray(Image.open(file)).reshape(-1, 3) for file in good]) / 255
    np.testing.assert_allclose(account["mean"], pixels.mean(0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(account["std"], pixels.std(0), rtol=0, atol=1e-9)
    assert Image.open(tmp_path / "out" / "contact_sheet.png").size[0] > 900
    shown = capsys.readouterr().out
    assert "verdict: 2 of 13 images cannot be read; 1 repeated within a split" in shown
    assert shown.splitlines()[-1].strip() == (
        f"dinov3 pretrain --config tiny_cpu --data {folder} --output-dir outputs/mine"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*report["files"], "inspect.json", "recipe.yaml"]
    )


def test_splits_of_parquet_files_and_images_in_two_of_them(parquet, tmp_path, capsys):
    report = inspect(parquet, tmp_path / "out")
    assert set(report["splits"]) == {"train", "test"} and report["total"]["rows"] == 55
    assert names(tmp_path / "out") == [f"{parquet / 'train-1.parquet'}: row 10"]
    (count,) = report["duplicates"]["in_both"].values()
    assert count == 2 and report["duplicates"]["repeated_within"] == {"test": 1, "train": 0}
    assert report["splits"]["train"]["labels"]["counts"] == {"cat": 34, "dog": 15, "owl": 0}
    assert report["splits"]["train"]["labels"]["unlabelled"] == 1
    shown = capsys.readouterr().out
    assert "2 in both test and train: scores on these are too high" in shown
    assert "train lacks 1 of its classes" in shown


def test_rows_of_tars_are_named_by_file_and_key(tars, tmp_path):
    report = inspect(tars, tmp_path / "out")
    assert names(tmp_path / "out") == [f"{tars / '1.tar'}: key105.png"]
    (account,) = report["splits"].values()
    assert account["readable"] == 23 and account["labels"]["counts"] == {"0": 8, "1": 8, "2": 7}


@pytest.mark.parametrize("kind", ["folder", "parquet", "tars"])
@pytest.mark.parametrize("stop", [1, 8, 23])
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(kind, stop, tmp_path, monkeypatch, request, capsys):
    source = request.getfixturevalue(kind)
    whole = inspect(source, tmp_path / "whole")
    total = whole["total"]["rows"]
    take, count = inspection_run.Pass.take, 0

    def take_and_stop(*arguments):
        nonlocal count
        take(*arguments)
        count += 1
        if count == min(stop, total - 2):
            raise SystemExit("killed")

    with monkeypatch.context() as patch:
        # A state after every third row: some rows were counted after the last one.
        patch.setattr(inspection_run, "SAVE_SECONDS", 0.0)
        save = inspection_run.Pass.save
        patch.setattr(inspection_run.Pass, "save", lambda self, files: count % 3 or save(self, files))
        patch.setattr(inspection_run.Pass, "take", take_and_stop)
        with pytest.raises(SystemExit, match="killed"):
            main(["inspect", str(source), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "inspect.json").exists()
    capsys.readouterr()
    again = inspect(source, tmp_path / "out")
    assert ("continues the inspection" in capsys.readouterr().out) == (min(stop, total - 2) > 3)
    for report in (whole, again):
        del report["seconds"], report["versions"], report["recipe"]["output_dir"]
    assert again == whole
    for name in ("skipped.txt", "contact_sheet.png", *(["duplicates.txt"] if kind != "tars" else [])):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_another_recipe_or_a_finished_run_is_refused(folder, parquet, tmp_path, capsys):
    out = tmp_path / "out"
    inspect(folder, out)
    before = {file: file.read_bytes() for file in out.iterdir()}
    for source, flags, words in (
        (folder, [], "inspect.json exists, accepted: another folder, --overwrite"),
        (parquet, [], "holds another run: data"),
        (folder, ["--max-images", "3"], "holds another run: max_images (was None, now 3)"),
        (folder, ["--label-column", "kind", "--overwrite"], "label_column: got 'kind', accepted: one of the columns"),
    ):
        capsys.readouterr()
        assert main(["inspect", str(source), "--output-dir", str(out), *flags]) == 2
        assert words in (shown := capsys.readouterr().err) and shown.count("\n") == 1
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert inspect(folder, out, "--max-images", "3", "--overwrite")["total"]["rows"] == 3


def stop_after(monkeypatch, rows):
    """Let reading fail for good after so many rows."""
    calls = iter(range(rows))

    def read_or_fail(read, what):
        if next(calls, None) is None:
            raise ValueError("page 3 is cut\nat 0x7f")
        return read()

    monkeypatch.setattr(inspection_rows, "with_retries", read_or_fail)


def test_a_source_that_breaks_off_fails_in_one_line_and_goes_on(parquet, tmp_path, monkeypatch, capsys):
    whole = inspect(parquet, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        assert main(["inspect", str(parquet), "--output-dir", str(tmp_path / "out")]) == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and "page 3 is cut" in errors[0] and "the same command goes on from there" in errors[0]
    again = inspect(parquet, tmp_path / "out")
    # Counting the end of a split's only shard, 20 reads are 19 rows.
    assert "after 19 rows" in capsys.readouterr().out and again["splits"] == whole["splits"]


def test_a_source_that_changed_meanwhile_is_refused(folder, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(inspection_run, "SAVE_SECONDS", 0.0)
        patch.setattr(inspection_run.Pass, "find_duplicates", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["inspect", str(folder), "--output-dir", str(tmp_path / "out")])
    (folder / "a" / "new.png").write_bytes(picture(50))
    capsys.readouterr()
    assert main(["inspect", str(folder), "--output-dir", str(tmp_path / "out")]) == 2
    assert "the source has changed" in (shown := capsys.readouterr().err) and shown.count("\n") == 1
    assert inspect(folder, tmp_path / "out", "--overwrite")["total"]["rows"] == 14


def test_one_split_and_a_few_rows(parquet, tmp_path, capsys):
    report = inspect(parquet, tmp_path / "out", "--split", "test", "--max-images", "2")
    assert list(report["splits"]) == ["test"] and report["total"]["rows"] == 2
    assert "--split test" in capsys.readouterr().out.splitlines()[-1]


def test_a_source_without_a_readable_image_fails_with_its_reasons(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert main(["inspect", str(tmp_path / "images"), "--output-dir", str(out)]) == 3
    assert "none of 1 rows" in capsys.readouterr().err and len(names(out)) == 1
    assert json.loads((out / "inspect.json").read_text())["total"]["mean"] is None


def test_scenes_are_inspected_too(tmp_path):
    report = inspect("scenes", tmp_path / "out", "--num-images", "6")
    assert {"train", "test"} <= set(report["splits"])
    assert report["total"]["readable"] == 6 * len(report["splits"])
    assert len(report["splits"]["test"]["labels"]["counts"]) == 10


def test_pictures_are_spread_over_all_images():
    tiles = inspection_run.Tiles()
    for index in range(1000):
        if tiles.wants_next:
            tiles.add(np.full((1, 1, 3), index % 256, np.uint8), str(index))
        tiles.position += 1
    places = [int(caption) for _, caption in tiles.chosen()]
    assert len(places) == inspection_run.NUM_TILES and places[0] == 0 and places[-1] > 950
    assert np.diff(places).max() <= 2 * np.diff(places).min()


def inspect_and_weigh(rank: int, file: str, folder: str) -> None:
    """Inspect a small source, then a large one, and write how much memory the second needed more."""
    small = Path(folder) / "small.parquet"
    write_parquet(small, [picture(0)])
    inspect(small, Path(folder) / "small")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    report = inspect(file, Path(folder) / "large")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    answer = {"grown": after - before, "rows": report["total"]["rows"], "duplicates": report["duplicates"]}
    (Path(folder) / "memory.json").write_text(json.dumps(answer))


@pytest.mark.slow
@pytest.mark.parametrize("count", [5000, 100_000])
def test_memory_does_not_grow_with_the_rows(count, tmp_path):
    """The growth is that of one group of Parquet rows and of the digests, in MB."""
    different = [picture(seed, side=4) for seed in range(500)]
    # Every image has its own size of file, but for one in a hundred.
    images = (different[row % 500] + (row // 100 * 100).to_bytes(4, "little") for row in range(count))
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"image": {"bytes": data, "path": None}} for data in images]
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)
    run_processes(inspect_and_weigh, str(file), str(tmp_path), world=1)
    answer = json.loads((tmp_path / "memory.json").read_text())
    assert answer["rows"] == count and answer["grown"] < 100
