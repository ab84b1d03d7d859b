"""Linear segmentation: crops, loss and metrics against independent ones, and the evaluation end to end."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from torch import nn

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.masks import resize_mask
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation import dense_probe, probe, segmentation
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.dense_probe import (
    DenseSplit,
    HeadTraining,
    augmented_crops,
    nearest_window,
    stored_crops,
    upsample,
)
from dinov3_hf.evaluation.feature_store import FeatureStore
from dinov3_hf.evaluation.segmentation import evaluate_segmentation, read_labels, segmentation_loss

from ..samples import png


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1))


def dataset(images, masks):
    columns = {"image": list(images), "mask": list(masks)}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "mask": Image()}))


def blocks(num, seed, height=48, width=64, mask_seed=None):
    """Pixels and masks of blocks of 16 pixels, whose class 0, 1, 2 is the channel in which they are bright."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, (num, height // 16, width // 16))
    masks = classes.repeat(16, 1).repeat(16, 2).astype(np.uint8)
    images = generator.integers(0, 60, (num, height, width, 3), dtype=np.uint8)
    np.put_along_axis(images, masks[..., None].astype(int), 200, axis=3)
    # Masks of another seed say nothing of these images.
    return images, masks if mask_seed is None else blocks(num, mask_seed, height, width)[1]


def scenes(num, seed, **how):
    images, masks = blocks(num, seed, **how)
    return dataset(map(png, images), map(png, masks))


def bench(folder=None, size=48, **fields):
    return Bench(tiny_model(), Preprocessing(size, size), FeatureStore(folder), progress=False, **fields)


QUICK = {"steps": 60, "batch_size": 8, "lr": 0.03}


@pytest.mark.parametrize("size", [(32, 48), (7, 5), (3, 4), (13, 40)])
def test_upsampling_is_that_of_torch(size):
    maps = torch.randn(2, 3, 4, 6, requires_grad=True)
    ours, theirs = upsample(maps, size), nn.functional.interpolate(maps, size=size, mode="bilinear")
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((values * weights).sum(), maps)[0] for values in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape, size", [((40, 56), (24, 32)), ((12, 16), (48, 64)), ((31, 47), (32, 48))])
def test_a_window_is_cut_from_the_resized_mask(shape, size):
    mask = torch.randint(256, shape, generator=torch.manual_seed(0))
    resized = resize_mask(mask, size).numpy()
    window = nearest_window(mask.numpy().astype(np.uint8), size, (8, 3), (16, 24))
    assert window.dtype == np.uint8 and np.array_equal(window, resized[8:24, 3:27])


@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_mean_over_pixels_that_count(seed):
    generator = torch.Generator().manual_seed(seed)
    crops, losses = [], []
    for size in ((2, 3), (4, 4)):
        logits = torch.randn(2, *size, 5, generator=generator)
        labels = torch.randint(6, (2, 8 * size[0], 8 * size[1]), generator=generator)
        labels[labels == 5] = 255
        crops.append((logits, labels.to(torch.uint8)))
        large = nn.functional.interpolate(logits.movedim(-1, 1), size=labels.shape[1:], mode="bilinear")
        for image, y, x in (labels != 255).nonzero().tolist():
            values = large[image, :, y, x].double()
            losses.append(-torch.log(values.exp()[labels[image, y, x]] / values.exp().sum()).item())
    assert segmentation_loss(crops).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_loss_of_ignored_pixels_alone_is_zero():
    logits = torch.randn(1, 2, 2, 3, requires_grad=True)
    loss = segmentation_loss([(logits, torch.full((1, 16, 16), 255))])
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def coordinates(num=3, height=64, width=80):
    """Images whose red and green are a pixel's patch, and masks that number the patches."""
    rows, columns = (values // 8 for values in np.mgrid[:height, :width])
    image = np.stack([10 * rows, 10 * columns, 0 * rows], axis=-1).astype(np.uint8)
    return dataset([png(image)] * num, [png((16 * rows + columns).astype(np.uint8))] * num)


@pytest.mark.parametrize("augment, size", [(False, 64), (False, 32), (True, 64)])
def test_crops_of_tokens_lie_over_their_truth(augment, size):
    other = bench(size=size, seed=3)
    split = DenseSplit("train", coordinates(), "image", "mask_column")
    split.read_maps("mask", read_labels, lambda labels: True, progress=False)
    split.find_features(other)
    training = HeadTraining(True, 5, 24, 6, 1e-3, 1e-3, augment)
    if augment:
        crops_at = augmented_crops(other, split, other.extractors("patches")["raw_pixels"], training)
    else:
        crops_at = stored_crops(other, split, "raw_pixels", training)
    corners = set()
    for step in range(training.steps):
        ((tokens, truth),) = crops_at(step)
        assert tokens.shape == (6, 3, 3, 192) and truth.shape == (6, 24, 24)
        colours = tokens.unflatten(-1, (3, 8, 8)) * torch.tensor(other.preprocessing.std).view(3, 1, 1)
        colours = ((colours + torch.tensor(other.preprocessing.mean).view(3, 1, 1)) * 255).permute(0, 1, 4, 2, 5, 3)
        rows, columns, _ = (colours.flatten(3, 4).flatten(1, 2).movedim(-1, 0) / 10).unbind()
        # Resized to half their size, patches blend at their edges.
        tolerance = 1e-3 if size == 64 else 0.6
        assert (rows - truth // 16).abs().max() <= tolerance and (columns - truth % 16).abs().max() <= tolerance
        corners |= {(int(image[0, 0]), bool(image[0, 0] > image[0, -1])) for image in truth}
    assert len(corners) > 5
    assert {flipped for _, flipped in corners} == ({False, True} if augment else {False})
    assert all(torch.equal(a, b) for a, b in zip(crops_at(2)[0], crops_at(2)[0], strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_scikit_learn(seed, monkeypatch):
    from sklearn.metrics import jaccard_score

    generator, drawn = np.random.default_rng(seed), []

    def guess(outputs, size, known):
        drawn.append(generator.integers(0, 5, size))
        return torch.from_numpy(drawn[-1])

    masks = generator.choice([0, 1, 3, 4, 255], (6, 32, 48), p=[0.3, 0.3, 0.2, 0.1, 0.1]).astype(np.uint8)
    masks[:2][masks[:2] == 4] = 1  # class 4 is predicted, but nowhere true; class 2 is in no mask
    images = generator.integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)
    rows = dataset(map(png, images), map(png, masks))
    monkeypatch.setattr(segmentation, "predict_classes", guess)
    test = rows.select(range(2))
    result = evaluate_segmentation(bench(size=32, baselines=False), rows, test, steps=1, batch_size=2)
    truth, found = masks[:2].ravel(), np.concatenate([values.ravel() for values in drawn])
    truth, found = truth[truth != 255], found[masks[:2].ravel() != 255]
    expected = jaccard_score(truth, found, labels=[0, 1, 3], average=None)
    miou, accuracy = result.metrics
    assert miou["model"] == pytest.approx(expected.mean()) and accuracy["model"] == pytest.approx(
        np.mean(truth == found)
    )
    assert [line["model"] for line in result.details["per_class"]] == pytest.approx(expected.tolist())
    assert [line["class"] for line in result.details["per_class"]] == ["0", "1", "3"]
    assert [line["pixels"] for line in result.details["per_class"]] == [
        int((truth == index).sum()) for index in (0, 1, 3)
    ]
    constant = np.full_like(truth, np.bincount(truth).argmax())
    best = jaccard_score(truth, constant, labels=[0, 1, 3], average=None).mean()
    shares = [(truth == index).mean() for index in (0, 1, 3)]
    drawn = np.mean([share / 5 / (share + 1 / 5 - share / 5) for share in shares])
    assert miou["chance"] == pytest.approx(max(best, drawn))
    assert miou["interval"][0] <= miou["model"] <= miou["interval"][1]
    assert accuracy["chance"] == pytest.approx(np.mean(truth == constant))


def test_classes_are_learnt_and_those_of_other_images_are_not():
    train, test, strange = scenes(20, 0), scenes(8, 1), {"mask_seed": 2}
    learnt, untrue, unlearnt = (
        evaluate_segmentation(bench(), *rows, **QUICK)
        for rows in ((train, test), (train, scenes(8, 1, **strange)), (scenes(20, 0, **strange), test))
    )
    assert learnt.metrics[0]["raw_pixels"] > 0.9 and learnt.metrics[1]["raw_pixels"] > 0.95
    # Classes drawn at random agree in a third of the pixels.
    assert untrue.metrics[0]["raw_pixels"] == pytest.approx(0.2, abs=0.06)
    # One of the three colours may be given its class by luck.
    assert unlearnt.metrics[0]["raw_pixels"] < 0.5
    assert set(learnt.metrics[0]) == {"metric", "model", "random_init", "raw_pixels", "chance", "interval"}
    assert learnt.protocol["classes_not_in_train"] == [] and learnt.skipped_rows == {}
    picture = learnt.pictures["segmentation"]
    assert picture.width > 4 * 240 and picture.height > 5 * 180


def test_runs_repeat_and_the_seed_decides():
    train, test = scenes(10, 0), scenes(4, 1)
    quick = {**QUICK, "steps": 10}
    first, again, other = (evaluate_segmentation(bench(seed=seed), train, test, **quick).metrics for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("augment", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_figures(augment, tmp_path, monkeypatch):
    train, test = scenes(8, 0), scenes(4, 1)
    quick, steps = {**QUICK, "batch_size": 4, "steps": 12, "augment": augment}, []
    whole = evaluate_segmentation(bench(tmp_path / "whole"), train, test, **quick)

    def counted(crops, ignore_index, stop=None):
        steps.append(1)
        if len(steps) == stop:
            raise KeyboardInterrupt
        return segmentation_loss(crops, ignore_index)

    monkeypatch.setattr(probe, "SAVE_SECONDS", -1)
    # The second head, of three of twelve steps each, is interrupted in its sixth step.
    monkeypatch.setattr(segmentation, "segmentation_loss", lambda *given: counted(*given, stop=18))
    with pytest.raises(KeyboardInterrupt):
        evaluate_segmentation(bench(tmp_path / "parts"), train, test, **quick)
    steps.clear()
    monkeypatch.setattr(segmentation, "segmentation_loss", counted)
    resumed = evaluate_segmentation(bench(tmp_path / "parts"), train, test, **quick)
    assert len(steps) == 36 - 17
    assert resumed.metrics == whole.metrics and resumed.details["per_class"] == whole.details["per_class"]


def test_heads_of_other_settings_are_not_gone_on_with(tmp_path):
    train, test, quick = scenes(8, 0), scenes(4, 1), {**QUICK, "steps": 5}
    first = evaluate_segmentation(bench(tmp_path), train, test, **quick)
    for change in ({"lr": 0.3}, {"batch_norm": False}, {"crop": 16}, {"weight_decay": 5.0}, {"batch_size": 2}):
        changed = evaluate_segmentation(bench(tmp_path), train, test, **{**quick, **change})
        assert changed.metrics != first.metrics
        assert changed.metrics == evaluate_segmentation(bench(), train, test, **{**quick, **change}).metrics


def test_the_value_of_ignored_pixels_changes_nothing():
    images, masks = blocks(12, 0)
    ignored = np.random.default_rng(0).random(masks.shape) < 0.3
    results = []
    for value in (255, 200):
        rows = dataset(map(png, images), [png(mask) for mask in np.where(ignored, value, masks).astype(np.uint8)])
        results.append(
            evaluate_segmentation(bench(), rows, rows.select(range(4)), ignore_index=value, **{**QUICK, "steps": 20})
        )
    assert results[0].metrics == results[1].metrics
    assert results[0].details == results[1].details
    assert sum(line["pixels"] for line in results[0].details["per_class"]) == (~ignored[:4]).sum()


def test_rows_that_cannot_be_learnt_from_are_left_out():
    images, masks = blocks(10, 0)
    broken = {"bytes": b"no image", "path": None}
    good = [(png(image), png(mask)) for image, mask in zip(images, masks, strict=True)]
    bad = [(broken, good[0][1]), (good[1][0], broken), (good[2][0], png(np.full_like(masks[0], 255)))]
    bad += [(good[3][0], None), (png(images[0])["bytes"][:200], good[0][1])]
    bad[-1] = ({"bytes": bad[-1][0], "path": None}, bad[-1][1])
    test, quick = scenes(4, 1), {**QUICK, "steps": 10}
    clean = evaluate_segmentation(bench(), dataset(*zip(*good, strict=True)), test, **quick)
    for augment in (False, True):
        rows = dataset(*zip(*good, *bad, strict=True))
        result = evaluate_segmentation(bench(), rows, test, augment=augment, **quick)
        assert result.skipped_images == {"train": 2, "test": 0}
        assert result.skipped_rows == {
            "segmentation: train: map cannot be read": 2,
            "segmentation: train: no pixel of the map counts": 1,
        }
        assert result.protocol["num_train"] == 10
        if not augment:
            assert result.metrics[0]["raw_pixels"] == clean.metrics[0]["raw_pixels"]


def test_masks_of_half_the_size_give_about_the_same():
    (images, masks), test = blocks(20, 0), scenes(8, 1)
    halves = dataset(map(png, images), [png(mask[::2, ::2].copy()) for mask in masks])
    full = dataset(map(png, images), map(png, masks))
    values = [
        evaluate_segmentation(bench(), train, test, **QUICK).metrics[0]["raw_pixels"] for train in (full, halves)
    ]
    assert min(values) > 0.9 and abs(values[0] - values[1]) < 0.02
    small = evaluate_segmentation(bench(), full, halves.select(range(4)), **QUICK)
    assert small.metrics[0]["raw_pixels"] > 0.85
    assert sum(line["pixels"] for line in small.details["per_class"]) == 4 * 24 * 32


def test_images_of_several_sizes_some_smaller_than_a_crop():
    parts = [blocks(6, seed, *size) for seed, size in enumerate([(48, 64), (64, 48), (48, 48)])]
    rows = dataset(*([png(item) for part in parts for item in part[place]] for place in (0, 1)))
    for augment in (False, True):
        result = evaluate_segmentation(bench(), rows, scenes(6, 5), crop=56, augment=augment, **QUICK)
        assert result.metrics[0]["raw_pixels"] > (0.6 if augment else 0.9)
        assert ("the network run at every step" in result.protocol["train_crops"]) == augment


def test_a_class_that_train_lacks_counts_with_zero_and_is_named():
    (images, masks), test = blocks(16, 0), scenes(6, 1)
    train = dataset(map(png, images), [png(np.where(mask == 2, 255, mask).astype(np.uint8)) for mask in masks])
    result = evaluate_segmentation(bench(), train, test, class_names=["red", "green", "blue", "none"], **QUICK)
    assert result.protocol["classes_not_in_train"] == ["blue"]
    assert (result.protocol["num_classes"], result.protocol["num_classes_present"]) == (4, 3)
    by_class = {line["class"]: line["raw_pixels"] for line in result.details["per_class"]}
    assert by_class["blue"] == 0 and set(by_class) == {"red", "green", "blue"}
    assert result.metrics[0]["raw_pixels"] == pytest.approx(sum(by_class.values()) / 3)


def test_batch_norm_takes_away_the_scale_of_features():
    scale = torch.tensor([0.1, 1.0, 1e3, 1.0])
    tokens = torch.randn(200, 4, generator=torch.manual_seed(0))
    with_norm, without = (dense_probe.linear_head(4, 3, norm, seed=0) for norm in (True, False))
    torch.testing.assert_close(with_norm(tokens * scale), with_norm(tokens), rtol=0, atol=1e-4)
    assert (without(tokens * scale) - without(tokens)).abs().max() > 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask_column": "masks"}, r"mask_column: got 'masks', accepted: a column of the data set \(image, mask\)"),
        ({"image_column": "picture"}, "image_column: got 'picture', accepted: a column"),
        ({"mask_column": "image"}, "mask: got an image of mode RGB, accepted: one channel"),
        ({"class_names": ["a", "b"]}, "class_names: got 2 names for masks with class 2, accepted: a name for each"),
        ({"crop": 4}, r"crop: got 4, accepted: a multiple of the model's patch size \(8\)"),
        ({"steps": 0}, "steps: got 0, accepted: a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size: got 0, accepted: a whole number of at least 1"),
        ({"ignore_index": "all"}, "mask_column: none of the 2 segmentation: train rows has an image and a map"),
        ({"empty": True}, "data: got no rows for segmentation: test, accepted: at least one image"),
        ({"cut": True}, "mask_column: row 0 has a mask of 32x48 for an image of 64x48, accepted: the image's size"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message, monkeypatch):
    change, (images, masks) = dict(change), blocks(2, 0)
    if change.pop("cut", False):
        masks = masks[:, :, :32]
    if change.get("ignore_index") == "all":
        masks, change = np.full_like(masks, 255), {}
    rows = dataset(map(png, images), map(png, masks))
    test = rows.select([]) if change.pop("empty", False) else rows
    monkeypatch.setattr(Bench, "extract", lambda *given, **named: pytest.fail("the network was run"))
    with pytest.raises(ValueError, match=message):
        evaluate_segmentation(bench(), rows, test, **{"steps": 1, **change})


def test_negative_classes_are_refused():
    split = DenseSplit("train", scenes(1, 0), "image", "mask_column", {0: np.array([[0, -2], [1, -1]], np.int32)})
    with pytest.raises(
        ValueError, match="mask_column: row 0 of train has a pixel of -2, accepted: class indices from 0"
    ):
        segmentation.largest_label(split, -1)


def binary(rows_of_classes, values, ignored=None):
    """Rows whose masks of classes 0, 1, 2 are made binary and stored with `values`; class 2 as `ignored`, if given."""
    images, masks = rows_of_classes
    first, second = values
    stored = np.where(masks == 0, first, second)
    if ignored is not None:
        stored = np.where(masks == 2, ignored, stored)
    return dataset(map(png, images), [png(mask.astype(np.uint8)) for mask in stored])


def test_masks_of_0_and_255_are_refused_or_read_by_mask_values(monkeypatch):
    train, test = blocks(12, 0), blocks(6, 1)
    quick = {**QUICK, "steps": 20}
    plain, mapped, swapped, ignored = (
        evaluate_segmentation(bench(), *(binary(rows, *stored) for rows in (train, test)), **quick, **fields)
        for stored, fields in (
            (([0, 1],), {}),
            (([0, 255],), {"mask_values": [0, 255]}),
            (([255, 0],), {"mask_values": [255, 0], "class_names": ["ground", "thing"]}),
            (([0, 255], 9), {"mask_values": [0, 255], "ignore_index": 9}),
        )
    )
    assert plain.metrics == mapped.metrics == swapped.metrics != ignored.metrics
    assert [line["class"] for line in mapped.details["per_class"]] == ["0", "255"]
    assert [line["class"] for line in swapped.details["per_class"]] == ["ground", "thing"]
    assert mapped.protocol["mask_values"] == [0, 255] and plain.protocol["mask_values"] == []
    assert sum(line["pixels"] for line in ignored.details["per_class"]) == (test[1] != 2).sum()
    monkeypatch.setattr(Bench, "extract", lambda *given, **named: pytest.fail("the network was run"))
    rows = binary(train, [0, 255])
    with pytest.raises(ValueError, match="of segmentation: train hold the values 0, 255, where 255 is ignored"):
        evaluate_segmentation(bench(), rows, rows, **quick)
    with pytest.raises(ValueError, match="of segmentation: test hold the value 1: only class 1 is left"):
        evaluate_segmentation(bench(), binary(train, [0, 1]), binary(test, [1, 1]), **quick)
    with pytest.raises(ValueError, match=r"the masks hold 255, accepted: those of mask_values \(0, 1\)"):
        evaluate_segmentation(bench(), rows, rows, mask_values=[0, 1], ignore_index=9, **quick)
