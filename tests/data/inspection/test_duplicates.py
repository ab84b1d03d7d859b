"""Byte-identical images by their digests."""

import numpy as np

from dinov3_hf.data.inspection import duplicates
from dinov3_hf.data.inspection.duplicates import find_duplicates


def search(folder, values, splits, hashed):
    np.array(values, np.uint64).tofile(folder / "hashes")
    (folder / "names").write_text("".join(f"file {index}\n" for index in range(len(values))))
    answer = find_duplicates(folder / "hashes", folder / "names", folder / "groups", splits, hashed)
    groups = folder / "groups"
    return answer, [line.split("\t") for line in groups.read_text().splitlines()] if groups.exists() else []


def test_within_and_across_splits_as_counted_one_by_one(tmp_path):
    draw = np.random.default_rng(0)
    values, hashed = draw.integers(0, 60, 90).tolist(), [40, 0, 50]
    splits = ["train", "validation", "test"]
    answer, groups = search(tmp_path, values, splits, hashed)
    train, test = values[:40], values[40:]
    assert answer["repeated_within"] == {"train": 40 - len(set(train)), "validation": 0, "test": 50 - len(set(test))}
    assert answer["in_both"]["train and test"] == len(set(train) & set(test)) > 0
    assert answer["in_both"]["train and validation"] == 0
    repeated = {value for value in values if values.count(value) > 1}
    assert answer["images_more_than_once"] == len(repeated) == len(groups)
    expected = [[f"file {index}" for index, other in enumerate(values) if other == value] for value in repeated]
    assert sorted(groups) == sorted(expected)


def test_no_images_and_none_twice(tmp_path):
    assert search(tmp_path, [], ["all"], [0]) == (
        {"images_more_than_once": 0, "repeated_within": {"all": 0}, "in_both": {}},
        [],
    )
    assert search(tmp_path, [2**64 - 1, 0], ["all"], [2])[0]["images_more_than_once"] == 0


def test_what_is_written_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_GROUPS", 2)
    monkeypatch.setattr(duplicates, "MAX_IN_GROUP", 3)
    answer, groups = search(tmp_path, [1, 2, 3] * 5, ["all"], [15])
    assert answer["images_more_than_once"] == 3 and answer["repeated_within"] == {"all": 12}
    assert [len(group) for group in groups] == [3, 3]
