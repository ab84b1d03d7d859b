"""Masks of classes are read as they are."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PilImage

from dinov3_hf.data.masks import (
    IGNORE_INDEX,
    check_classes,
    check_mask_values,
    count_values,
    ignored_in_classes,
    map_values,
    read_mask,
    read_masks,
)

from ..samples import png


def test_masks_keep_indices_and_refuse_colours():
    indices = np.array([[0, 3], [255, 7]], dtype=np.uint8)
    assert read_mask(png(indices)).tolist() == indices.tolist()
    palette = PilImage.fromarray(indices).convert("P")
    palette.putdata([0, 3, 200, 7])
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG")
    assert read_mask({"bytes": buffer.getvalue()}).tolist() == [[0, 3], [200, 7]]
    with pytest.raises(ValueError, match="mask: got an image of mode RGB, accepted: one channel"):
        read_mask(png(np.zeros((2, 2, 3), dtype=np.uint8)))


@pytest.mark.parametrize("values, ignored", [([0, 255], 7), ([255, 0], 7), ([1, 2], 0), ([900, -3, 4], 11)])
def test_stored_values_become_the_classes_of_a_naive_loop(values, ignored):
    choices = torch.tensor([*values, ignored])
    mask = choices[torch.randint(len(choices), (9, 13), generator=torch.manual_seed(0))]
    expected = [[values.index(v) if v in values else IGNORE_INDEX for v in row] for row in mask.tolist()]
    assert map_values(mask, values, ignored).tolist() == expected
    assert ignored_in_classes(values, ignored) == IGNORE_INDEX and ignored_in_classes([], ignored) == ignored
    # Without values, a mask is what it is.
    assert map_values(mask, [], ignored) is mask


def test_values_of_no_class_are_refused_by_name():
    mask = torch.tensor([[0, 255], [128, 64]])
    with pytest.raises(ValueError, match=r"hold 64, 128, accepted: those of mask_values \(0, 255\), and ignore_index"):
        map_values(mask, [0, 255], 7)
    assert map_values(mask, [0, 255, 64], 128).tolist() == [[0, 1], [IGNORE_INDEX, 2]]
    with pytest.raises(ValueError, match="hold 0, 1, 2, 3, 4, 5, 6, 7 and 12 more, accepted"):
        map_values(torch.arange(20)[None], [90, 91], None)


@pytest.mark.parametrize("values", [[3], [1, 1], list(range(256))])
def test_mask_values_are_two_or_more_and_different(values):
    with pytest.raises(ValueError, match="mask_values: got .*, accepted: nothing, or 2 to 255 different values"):
        check_mask_values(values)
    check_mask_values([])
    with pytest.raises(ValueError, match="ignore_index: got 255, accepted: a value that is not a class"):
        check_mask_values([0, 255], 255)


@pytest.mark.parametrize(
    "pixels, values, ignored, message",
    [
        (
            {0: 9, 255: 4},
            [],
            255,
            r"hold the values 0, 255, where 255 is ignored \(ignore_index=255\): only class 0",
        ),
        ({0: 9, 255: 4}, [], 255, r"if 255 is a class: --mask-values 0 255\), and a constant answer scores 1"),
        ({255: 4}, [], 255, "hold the value 255, where 255 is ignored .*: no class is left"),
        ({3: 4}, [], 255, "in 'mask' of test hold the value 3: only class 3 is left, and a constant answer"),
        ({0: 5}, [0, 255], 7, "hold the value 0: only class 0 is left"),
        (
            {0: 5, 7: 5},
            [0, 255],
            7,
            r"hold the values 0, 7, where 7 is ignored \(ignore_index=7\): only class 0 is",
        ),
    ],
)
def test_fewer_than_two_classes_are_refused_with_the_values_and_the_flag(pixels, values, ignored, message):
    with pytest.raises(ValueError, match=message) as error:
        check_classes(pixels, "mask", "test", values, ignored)
    assert str(error.value).startswith("mask_column: ") and "\n" not in str(error.value)


def test_two_classes_are_enough():
    for pixels, values in (({0: 1, 1: 1}, []), ({0: 1, 255: 1}, [0, 255]), ({}, [])):
        check_classes(pixels, "mask", "test", values, 255)


def test_all_masks_that_can_be_read_are_counted():
    masks = [np.array([[0, 255], [255, 2]], np.uint8), np.array([[2, 2]], np.uint8)]
    column = [*map(png, masks), {"bytes": b"no image", "path": None}, None]
    rows = Dataset.from_dict({"mask": column}, features=Features({"mask": Image()}))
    assert count_values(rows, "mask") == {0: 1, 255: 2, 2: 3}


def test_masks_of_turned_images_are_turned_alike_or_refused_by_row():
    pixels = np.arange(60, dtype=np.uint8).reshape(6, 10)

    def stored(number: int | None) -> dict:
        exif = PilImage.Exif()
        if number:
            exif[0x0112] = number
        buffer = io.BytesIO()
        PilImage.fromarray(pixels).save(buffer, format="PNG", exif=exif)
        return {"bytes": buffer.getvalue(), "path": None}

    def read(image: int | None, mask: int | None) -> list:
        features = Features({"image": Image(decode=False), "mask": Image(decode=False)})
        rows = Dataset.from_dict({"image": [stored(image)], "mask": [stored(mask)]}, features=features)
        return [mask.tolist() for _, mask in read_masks(rows, [0], "image", "mask", lambda mask: mask)]

    assert read(6, 6) == [np.rot90(pixels, -1).tolist()]
    assert read(3, 3) == read(None, 3) == [pixels[::-1, ::-1].tolist()]
    with pytest.raises(ValueError, match="^mask_column: row 0 has an image of orientation 3"):
        read(3, None)
    with pytest.raises(ValueError, match="^mask_column: row 0 has a mask of 10x6 for an image of 6x10"):
        read(6, None)
