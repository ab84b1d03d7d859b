"""Batches: a function of (seed, step, place), exact after a resume, and honest about bad images."""

import io
import json

import datasets
import pytest
import torch
from PIL import Image

from dinov3_hf.data.streams import StreamError
from dinov3_hf.training.arguments import CropArguments, DataArguments
from dinov3_hf.training.collate import TrainingBatches, make_loader


CROPS = CropArguments(global_crop_size=16, local_crop_size=8, local_crops=2, mask_ratio=[0.2, 0.6])


def picture(value, broken=False):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (value, 255 - value, 7 * value % 256)).save(buffer, "PNG")
    return buffer.getvalue()[:40] if broken else buffer.getvalue()


def make_rows(count=12, broken=()):
    rows = {"image": [{"bytes": picture(i * 9, i in broken), "path": None} for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(decode=False)}))


def make(rows=None, batch_size=4, seed=0, rank=0, world=1, **fields):
    data = DataArguments(shuffle_block=4, **{"num_workers": 0, **fields})
    return TrainingBatches(make_rows() if rows is None else rows, data, CROPS, batch_size, seed, 4, rank, world)


def take(batches, count):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def equal(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(v, second[k]) if torch.is_tensor(v) else v == second[k] for k, v in first.items())


def test_shapes_and_counts():
    batch = take(make(), 1)[0]
    assert batch["global_crops"].shape == (2, 4, 3, 16, 16) and batch["local_crops"].shape == (2, 4, 3, 8, 8)
    assert batch["masks"].shape == (2, 4, 16) and batch["masks"].dtype == torch.bool
    assert (batch["step"], batch["images_read"], batch["bad_images"]) == (0, 4, 0)
    assert sorted(batch["masks"].sum(-1).flatten().tolist()) == [0, 0, 0, 0, 4, 6, 8, 9]


def test_same_seed_same_batches():
    for one, two in zip(take(make(), 5), take(make(), 5), strict=True):
        assert equal(one, two)
    assert not equal(take(make(), 1)[0], take(make(seed=1), 1)[0])


def test_the_same_image_is_cropped_anew_at_every_step():
    first, second = take(make(make_rows(1), batch_size=1), 2)
    assert not torch.equal(first["global_crops"], second["global_crops"])
    assert not torch.equal(first["masks"], second["masks"]) or first["masks"].sum() == second["masks"].sum()


def test_two_processes_see_the_masks_of_one():
    whole = take(make(batch_size=4), 3)
    halves = [take(make(batch_size=2, rank=rank, world=2), 3) for rank in range(2)]
    for step in range(3):
        assert torch.equal(torch.cat([half[step]["masks"] for half in halves], dim=1), whole[step]["masks"])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loader_resumes_exactly(workers):
    data = DataArguments(shuffle_block=4, num_workers=workers)
    build = lambda: make_loader(make_rows(), data, CROPS, 4, 0, 4)  # noqa: E731
    loader = build()
    iterator, whole = iter(loader), []
    for step in range(9):
        whole.append(next(iterator))
        if step == 3:
            state = loader.state_dict()
    assert [batch["step"] for batch in whole] == list(range(9))
    again = build()
    again.load_state_dict(state)
    for expected, found in zip(whole[4:], take(again, 5), strict=True):
        assert equal(expected, found)


def test_state_is_plain_data():
    batches = make(make_rows().to_iterable_dataset(num_shards=3))
    take(batches, 2)
    assert json.loads(json.dumps(batches.state_dict())) == batches.state_dict()


def test_bad_images_are_skipped_and_counted():
    batches = make(make_rows(12, broken={0, 5, 7}), max_bad_images=0.5)
    epoch = take(batches, 9)
    assert sum(batch["bad_images"] for batch in epoch) in (11, 12, 13)
    assert sum(batch["images_read"] - batch["bad_images"] for batch in epoch) == 36
    assert all(len(batch["bad_examples"]) == batch["bad_images"] for batch in epoch)
    assert "an image: " in next(batch["bad_examples"][0] for batch in epoch if batch["bad_images"])


def test_too_many_bad_images_stop_the_run():
    with pytest.raises(
        StreamError,
        match=r"max_bad_images: \d+ of 100 images could not be decoded, accepted: at most a share of 0.1",
    ):
        take(make(make_rows(12, broken={0, 5, 7})), 100)
    with pytest.raises(StreamError):
        take(make(make_rows(5, broken=range(5)), max_bad_images=0.9), 1)


def test_a_workers_error_is_one_line():
    loader = make_loader(make_rows(5, broken=range(5)), DataArguments(shuffle_block=4, num_workers=1), CROPS, 4, 0, 4)
    with pytest.raises(StreamError) as error:
        take(loader, 1)
    assert str(error.value).startswith("max_bad_images: 100 of 100 images") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["global_crop_size", "local_crop_size"])
def test_crops_must_be_whole_patches(name):
    crops = CropArguments(**{"global_crop_size": 16, "local_crop_size": 8, name: 10})
    with pytest.raises(ValueError, match=f"{name}: got 10, accepted: a multiple of the patch size \\(4\\)"):
        TrainingBatches(make_rows(), DataArguments(), crops, 4, 0, 4)
