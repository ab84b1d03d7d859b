"""Every kind of source opens, and a stream loses nothing, repeats nothing and resumes exactly."""

import io
import itertools
import json
import tarfile

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinov3_hf.data.retries import StreamError
from dinov3_hf.data.streams import RowStream, load_source, load_table


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    # `datasets` waits five seconds for its reader threads at every early stop.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def picture(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder, counts, prefix="train"):
    folder.mkdir(exist_ok=True)
    start = 0
    for shard, count in enumerate(counts):
        rows = {
            "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in range(start, start + count)],
            "number": list(range(start, start + count)),
        }
        features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{prefix}-{shard}.parquet"))
        start += count
    return folder


def numbers(rows):
    return [row["number"] for row in rows]


# Sources


def test_parquet_folder_file_and_pattern(tmp_path):
    folder = write_parquet(tmp_path / "data", [3, 2])
    for source in (folder, folder / "train-*.parquet"):
        rows = load_source(str(source))
        assert numbers(rows) == [0, 1, 2, 3, 4] and set(next(iter(rows))["image"]) == {"bytes", "path"}
    assert numbers(load_source(str(folder / "train-1.parquet"), streaming=False)) == [3, 4]
    assert load_source(str(folder), columns=[]).column_names == ["image"]


def test_splits_are_told_by_file_names(tmp_path):
    folder = write_parquet(tmp_path / "data", [3])
    write_parquet(folder, [2], "validation")
    write_parquet(folder, [1], "test")
    assert [len(load_source(str(folder), split, streaming=False)) for split in ("train", "validation", "test")] == [
        3,
        2,
        1,
    ]
    with pytest.raises(ValueError, match="split: got 'dev', accepted: test, train, validation"):
        load_source(str(folder), "dev")


@pytest.mark.parametrize("labelled", [False, True])
def test_image_folder_of_any_nesting(tmp_path, labelled):
    places = ["a/x.png", "b/y.png"] if labelled else ["x.png", "deep/er/y.png"]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(picture(1))
    rows = load_source(str(tmp_path), streaming=False)
    assert len(rows) == 2 and ("label" in rows.column_names) == labelled


def test_pairs_of_rows_are_a_split_of_their_own(tmp_path):
    write_parquet(tmp_path, [6], "test")
    pairs = datasets.Dataset.from_dict({"src": [0, 2], "trg": [1, 5]})
    pairs.to_parquet(tmp_path / "pairs-0.parquet")
    assert load_table(str(tmp_path), "pairs").to_list() == [{"src": 0, "trg": 1}, {"src": 2, "trg": 5}]
    assert len(load_source(str(tmp_path), "test", streaming=False)) == 6
    with pytest.raises(ValueError, match="split: got 'train', accepted: pairs, test"):
        load_table(str(tmp_path), "train")


def test_image_folder_with_splits(tmp_path):
    for place in ("train/a/1.png", "train/b/2.png", "test/a/3.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(picture(1))
    assert len(load_source(str(tmp_path), "train", streaming=False)) == 2
    assert load_source(str(tmp_path), "test", streaming=False).features["label"].names == ["a"]


def test_image_folder_takes_every_file_whatever_its_name(tmp_path):
    for place in ("train_set/test_1.png", "other/train-2.png", "other/x.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(picture(1))
    rows = load_source(str(tmp_path))
    assert len(rows) == 3 and rows.features["label"].names == ["other", "train_set"]


def test_image_folder_sorted_by_class_is_mixed_as_a_whole(tmp_path):
    for index in range(64):
        (tmp_path / "ab"[index // 32]).mkdir(exist_ok=True)
        (tmp_path / "ab"[index // 32] / f"{index:02d}.png").write_bytes(picture(index))
    rows = load_source(str(tmp_path), columns=["label"])
    labels = [row["label"] for row in itertools.islice(RowStream(rows, 4, 0), 16)]
    assert 4 <= sum(labels) <= 12


def test_webdataset_tars(tmp_path):
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        for index in range(3):
            for name, data in ((f"{index}.jpg", picture(index)), (f"{index}.json", json.dumps({"n": index}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    rows = list(load_source(str(tmp_path / "*.tar")))
    assert [row["jpg"]["bytes"] for row in rows] == [picture(index) for index in range(3)]
    images = [row["jpg"] for row in load_source(str(tmp_path), columns=[])]
    assert images == [row["jpg"] for row in rows] and images[2]["path"] == "2.jpg"


def test_other_columns_are_not_read(tmp_path):
    folder = write_parquet(tmp_path / "data", [5])
    file = folder / "train-0.parquet"
    chunk = next(
        column
        for column in map(pq.read_metadata(file).row_group(0).column, range(3))
        if column.path_in_schema == "number"
    )
    data = bytearray(file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(data)
    with pytest.raises(OSError):
        list(load_source(str(folder)))
    images = [row["image"] for row in load_source(str(folder), columns=[])]
    assert images == [{"bytes": picture(index), "path": f"{index}.png"} for index in range(5)]


def test_scenes_by_name():
    rows = load_source("scenes:crowded", num_images=3)
    assert len(list(rows)) == 3 and set(next(iter(rows))["image"]) == {"bytes", "path"}


@pytest.mark.parametrize(
    "source, error, message",
    [
        ("/nowhere/images", ValueError, "data: nothing found at '/nowhere/images'"),
        ("missing-*.parquet", ValueError, "data: nothing found at"),
        ("scenes:busy", ValueError, "subset: got 'busy', accepted: single"),
        ("nobody/nothing", ValueError, "data: 'nobody/nothing' is no local path and the hub did not give it"),
    ],
)
def test_missing_sources_are_refused(source, error, message):
    with pytest.raises(error, match=message) as raised:
        load_source(source)
    assert "\n" not in str(raised.value)


def test_missing_or_unclear_image_column_lists_the_columns(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "number": [1]}).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match=r"no image column, accepted: one of its columns \(text, number\)"):
        load_source(str(tmp_path))
    other = write_parquet(tmp_path / "good", [1])
    with pytest.raises(ValueError, match=r"image_column: got 'img', accepted: .*\(image, number\)"):
        load_source(str(other), image_column="img")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="data: no images under"):
        load_source(str(tmp_path / "empty"))


# The stream


def open_stream(folder, streaming, reader=0, readers=1, block=4, seed=0):
    rows = load_source(str(folder), streaming=streaming)
    return RowStream(rows, block, seed, reader, readers)


def rest_of_epoch(stream):
    epoch = stream.epoch
    return numbers(itertools.takewhile(lambda row: stream.epoch == epoch, stream))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("counts", [[13], [5, 4, 4], [2] * 8])
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_readers_share_an_epoch_without_overlap_or_loss(tmp_path, streaming, counts, readers):
    folder, total = write_parquet(tmp_path / "data", counts), sum(counts)
    for epoch in range(2):
        seen = []
        for reader in range(readers):
            stream = open_stream(folder, streaming, reader, readers)
            stream.epoch = epoch
            seen += rest_of_epoch(stream)
        assert sorted(seen) == list(range(total))


@pytest.mark.parametrize("streaming", [True, False])
def test_epochs_are_shuffled_anew_and_repeatably(tmp_path, streaming):
    folder = write_parquet(tmp_path / "data", [8, 8, 8])
    first, second = (numbers(itertools.islice(open_stream(folder, streaming), 48)) for _ in range(2))
    assert first == second and first[:24] != first[24:] and first[:24] != list(range(24))
    assert sorted(first[:24]) == sorted(first[24:]) == list(range(24))
    assert numbers(itertools.islice(open_stream(folder, streaming, seed=1), 24)) != first[:24]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("readers", [1, 2, 5])
@pytest.mark.parametrize("counts", [[5, 6, 5], [16]])
def test_resume_at_every_row_is_exact(tmp_path, streaming, readers, counts):
    rows = load_source(str(write_parquet(tmp_path / "data", counts)), streaming=streaming)

    def open_again(state=None):
        stream = RowStream(rows, 4, 0, readers - 1, readers)
        if state is not None:
            stream.load_state_dict(json.loads(json.dumps(state)))
        return stream

    whole = numbers(itertools.islice(open_again(), 40))
    for stop in range(36):
        stream = open_again()
        head = numbers(itertools.islice(stream, stop))
        # Once more within the same block, and once before anything is read.
        for more in (1, 0):
            stream = open_again(stream.state_dict())
            head += numbers(itertools.islice(stream, more))
        assert head + numbers(itertools.islice(open_again(stream.state_dict()), 40 - stop - 1)) == whole, stop


def test_readers_open_shards_of_their_own_where_there_are_enough(tmp_path):
    folder, opened = write_parquet(tmp_path / "data", [4] * 5), []
    for reader in range(2):
        stream = open_stream(folder, True, reader, 2)
        seen = rest_of_epoch(stream)
        opened.append({number // 4 for number in seen})
        assert len(seen) == 4 * len(opened[-1])
    assert opened[0] | opened[1] == set(range(5)) and not opened[0] & opened[1]


def test_an_empty_shard_stops_no_reader():
    def generate(shards):
        yield from ({"number": shard} for shard in shards if shard)

    rows = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": [0, 1]})
    for reader in range(2):
        assert numbers(itertools.islice(RowStream(rows, 4, 0, reader, 2), 20)) == [1] * 20


@pytest.mark.parametrize("streaming", [True, False])
def test_another_number_of_readers_goes_on_in_the_next_epoch(tmp_path, streaming):
    rows = load_source(str(write_parquet(tmp_path / "data", [4, 5, 3])), streaming=streaming)
    states = []
    for reader in range(2):
        stream = RowStream(rows, 4, 0, reader, 2)
        for _ in range(1 + 2 * reader):
            rest_of_epoch(stream)
        states.append(stream.state_dict())
    assert [state["epoch"] for state in states] == [1, 3]
    seen = []
    for reader in range(3):
        stream = RowStream(rows, 4, 0, reader, 3)
        with pytest.raises(ValueError, match="num_readers: got 3, accepted: 2, as when saved"):
            stream.load_state_dict(states[0])
        stream.load_state_dict(json.loads(json.dumps(RowStream.restart_state(states, 3))))
        assert stream.epoch == 4
        seen += rest_of_epoch(stream)
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_reader_without_rows_is_an_error_not_an_endless_loop(tmp_path, streaming):
    folder = write_parquet(tmp_path / "data", [1])
    with pytest.raises(StreamError, match="reader 1 of 2 gets no rows"):
        next(iter(open_stream(folder, streaming, 1, 2)))


def test_blocks_mix_only_so_far(tmp_path):
    folder = write_parquet(tmp_path / "data", [32])
    order = numbers(itertools.islice(open_stream(folder, True, block=8), 32))
    assert [sorted(order[start : start + 8]) for start in range(0, 32, 8)] == [
        list(range(s, s + 8)) for s in range(0, 32, 8)
    ]
    assert np.mean(np.array(order) == np.arange(32)) < 0.5
