"""Which column holds what, and which classes a label has."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from dinov3_hf.data.columns import read_vocabulary

from ..samples import coloured_images


def test_text_labels_and_numbers_are_classes():
    train, test = (coloured_images(10, seed, label=Value("string")) for seed in (0, 1))
    letters = {"a": 0, "b": 1, "c": 2}
    assert read_vocabulary(train, test, "label") == (["a", "b", "c"], letters, letters)
    numbers, more = Dataset.from_dict({"label": [30, 7]}), Dataset.from_dict({"label": [7, 9]})
    assert read_vocabulary(numbers, more, "label") == (["7", "9", "30"], {30: 2, 7: 0}, {7: 0, 9: 1})


def test_declared_classes_are_matched_by_name():
    train, test = (
        Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=names)}))
        for names in (["cat", "dog", "emu"], ["dog", "fox"])
    )
    names, first, second = read_vocabulary(train, test, "label")
    assert names == ["cat", "dog", "emu", "fox"]
    assert first == {0: 0, 1: 1, 2: 2} and second == {0: 1, 1: 3}


def test_unlabelled_splits_are_refused():
    rows = Dataset.from_dict({"label": [0, -1]}, features=Features({"label": ClassLabel(names=["a", "b"])}))
    with pytest.raises(ValueError, match="holds unlabelled rows"):
        read_vocabulary(rows, rows, "label")
