"""Batches: a function of (seed, step, place), exact after a resume, and honest about bad images."""

import io
import json

import datasets
import pytest
import torch
from PIL import Image

from dinov3_hf.data.streams import StreamError
from dinov3_hf.training.arguments import CropArguments, DataArguments, GramArguments
from dinov3_hf.training.batches.collate import TrainingBatches, make_loader

from ...processes import fork_workers


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
def test_loader_resumes_exactly(workers, monkeypatch):
    fork_workers(monkeypatch)
    data = DataArguments(shuffle_block=4, num_workers=workers)
    build = lambda: make_loader(TrainingBatches(make_rows(), data, CROPS, 4, 0, 4), data.num_workers)  # noqa: E731
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
        match=r"max_bad_images: \d+ of 100 images could not be used, accepted: at most a share of 0.1",
    ):
        take(make(make_rows(12, broken={0, 5, 7})), 100)
    with pytest.raises(StreamError):
        take(make(make_rows(5, broken=range(5)), max_bad_images=0.9), 1)


def test_a_workers_error_is_one_line():
    data = DataArguments(shuffle_block=4, num_workers=1)
    loader = make_loader(TrainingBatches(make_rows(5, broken=range(5)), data, CROPS, 4, 0, 4), 1)
    with pytest.raises(StreamError) as error:
        take(loader, 1)
    assert str(error.value).startswith("max_bad_images: 100 of 100 images") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["global_crop_size", "local_crop_size"])
def test_crops_must_be_whole_patches(name):
    crops = CropArguments(**{"global_crop_size": 16, "local_crop_size": 8, name: 10})
    with pytest.raises(ValueError, match=f"{name}: got 10, accepted: a multiple of the patch size \\(4\\)"):
        TrainingBatches(make_rows(), DataArguments(), crops, 4, 0, 4)


def test_gram_crops_are_the_global_crops_undistorted():
    """Same boxes and flips; with no colour change at all both are the same picture at two sizes."""
    plain = CropArguments(
        global_crop_size=16, local_crop_size=8, local_crops=0, color_jitter_probability=0, grayscale_probability=0,
        blur_probability=[0, 0, 0], solarize_probability=0,
    )  # fmt: skip
    gram = GramArguments(gram_teacher="ema_copy", gram_start_step=2, gram_crop_size=16)
    for crops, same in ((plain, True), (CropArguments(global_crop_size=16, local_crop_size=8), False)):
        batches = take(TrainingBatches(make_rows(), DataArguments(num_workers=0), crops, 4, 0, 4, gram=gram), 4)
        assert ["gram_crops" in batch for batch in batches] == [False, False, True, True]
        close = torch.allclose(batches[2]["gram_crops"], batches[2]["global_crops"], atol=1e-5)
        assert close is same
    large = GramArguments(gram_teacher="ema_copy", gram_crop_size=32)
    batch = take(TrainingBatches(make_rows(), DataArguments(num_workers=0), CROPS, 4, 0, 4, gram=large), 1)[0]
    assert batch["gram_crops"].shape == (2, 4, 3, 32, 32)


def test_crop_sizes_are_drawn_by_step_and_masks_follow():
    crops = CropArguments(
        local_crops=1, crop_size_sets=[[16, 8, 24], [24, 12, 32]], crop_size_probabilities=[0.7, 0.3]
    )
    gram = GramArguments(gram_teacher="ema_copy")
    make_rank = lambda rank: TrainingBatches(  # noqa: E731
        make_rows(), DataArguments(num_workers=0), crops, 2, 0, 4, rank, 2, gram
    )
    first, second = take(make_rank(0), 40), take(make_rank(1), 40)
    sizes = [batch["global_crops"].shape[-1] for batch in first]
    assert sizes == [batch["global_crops"].shape[-1] for batch in second] and 20 <= sizes.count(16) <= 36
    for batch in first:
        size = batch["global_crops"].shape[-1]
        assert batch["masks"].shape[-1] == (size // 4) ** 2
        assert (batch["local_crops"].shape[-1], batch["gram_crops"].shape[-1]) == {16: (8, 24), 24: (12, 32)}[size]


def test_sources_are_mixed_by_weight_and_some_steps_are_homogeneous():
    dark, bright = (
        make_rows(6),
        datasets.Dataset.from_dict(
            {"image": [{"bytes": picture(255), "path": None}] * 6},
            features=datasets.Features({"image": datasets.Image(decode=False)}),
        ),
    )
    crops = CropArguments(
        global_crop_size=16, local_crops=0, color_jitter_probability=0, grayscale_probability=0,
        solarize_probability=0,
    )  # fmt: skip

    def shares_of(count, **fields):
        data = DataArguments(data=["a", "b"], num_workers=0, **fields)
        batches = take(TrainingBatches([dark, bright], data, crops, 8, 0, 4), count)
        return [(batch["global_crops"][0, :, 0].mean(dim=(1, 2)) > 2.1).float().mean().item() for batch in batches]

    mixed = shares_of(60, data_weights=[3, 1])
    assert abs(sum(mixed) / 60 - 0.25) < 0.08 and mixed.count(1.0) == 0
    # All of a step, or none of it: a source with a share is in no mixed step.
    alone = shares_of(60, data_weights=[1, 9], data_homogeneous=[0, 0.25])
    assert set(alone) == {0.0, 1.0} and 6 <= alone.count(1.0) <= 25


def test_changed_readers_start_at_the_given_step_and_epoch():
    later = TrainingBatches(make_rows(), DataArguments(num_workers=0), CROPS, 4, 0, 4, first_step=7, first_epoch=3)
    batch = take(later, 1)[0]
    assert batch["step"] == 7 and batch["epoch"] == 3
    assert torch.equal(batch["masks"], take(make(), 8)[7]["masks"])


def test_a_grid_of_one_patch_masks_nothing_and_one_image_has_no_neighbour():
    crops = CropArguments(global_crop_size=4, local_crop_size=4, local_crops=1)
    batch = take(TrainingBatches(make_rows(), DataArguments(num_workers=0), crops, 1, 0, 4), 1)[0]
    assert batch["masks"].shape == (2, 1, 1) and not batch["masks"].any()
