"""Which columns hold captions, and how they are read."""

import datasets
import pytest

from dinov3_hf.data.captions import find_caption_columns, read_captions
from dinov3_hf.data.pixels import BadImage


def test_captions_are_read_or_refused():
    row = {"one": "a cat", "many": ["a dog", "  ", None], "wrong": [3], "empty": []}
    assert read_captions(row, ["one", "many"]) == ["a cat", "a dog"]
    for column, message in (("wrong", "wrong: a int in place of a caption"), ("empty", "no caption")):
        with pytest.raises(BadImage, match=message):
            read_captions(row, [column])
    rows = datasets.Dataset.from_dict({"image": [1], "text": ["a"]})
    with pytest.raises(
        ValueError, match=r"caption_columns: got none, accepted: columns of the data set \(image, text\)"
    ):
        find_caption_columns(rows, [])
    assert find_caption_columns(rows, ["text"]) == ["text"]
