"""Patch labels, mIoU and patch k-NN against naive loops."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.features import patch_features, raw_patch_features
from dinov3_hf.evaluation.iou import confusion_matrix, intersection_over_union
from dinov3_hf.evaluation.patch_knn import evaluate_patch_knn, patch_labels
from dinov3_hf.pipelines.neighbours import knn_classify

from ..samples import png


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1))


def scenes(num, seed, side=32, ignored=False):
    """One bright square of class 1 or 2 on a dark noisy ground, bright in its class's own channel."""
    generator = np.random.default_rng(seed)
    images, masks = [], []
    for _ in range(num):
        image = generator.integers(0, 60, (side, side, 3), dtype=np.uint8)
        mask = np.zeros((side, side), dtype=np.uint8)
        y, x, kind = generator.integers(0, side // 2), generator.integers(0, side // 2), generator.integers(1, 3)
        image[y : y + side // 2, x : x + side // 2, kind] += 180
        mask[y : y + side // 2, x : x + side // 2] = kind
        if ignored:
            mask[:8] = 255
        images.append(png(image))
        masks.append(png(mask))
    columns = {"image": images, "mask": masks}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "mask": Image()}))


def naive_patch_label(pixels, ignore_index):
    counts = {}
    for value in pixels.flatten().tolist():
        counts[value] = counts.get(value, 0) + 1
    return min(counts, key=lambda value: (-counts[value], value if value != ignore_index else 1e9))


@pytest.mark.parametrize("ignore_index", [255, 2, -1])
def test_patch_label_is_the_majority(ignore_index):
    generator = torch.Generator().manual_seed(0)
    choices = torch.tensor([0, 1, 2, 5, ignore_index])
    masks = choices[torch.randint(5, (6, 8, 12), generator=generator)]
    labels = patch_labels(masks, 4, ignore_index)
    assert labels.shape == (6, 2 * 3)
    for image in range(6):
        for patch in range(6):
            row, column = 4 * (patch // 3), 4 * (patch % 3)
            expected = naive_patch_label(masks[image, row : row + 4, column : column + 4], ignore_index)
            assert labels[image, patch] == expected


def test_patch_of_ignored_pixels_only_is_ignored():
    assert patch_labels(torch.full((1, 4, 4), 255), 4).tolist() == [[255]]


def test_iou_is_that_of_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    labels, predictions = (torch.randint(4, (500,), generator=generator) for _ in range(2))
    labels[labels == 3] = 1  # class 3 is predicted, but nowhere true
    iou = intersection_over_union(confusion_matrix(predictions, labels, 5))
    for index in range(3):
        both = ((labels == index) & (predictions == index)).sum()
        either = ((labels == index) | (predictions == index)).sum()
        assert iou[index].item() == pytest.approx((both / either).item())
    assert iou[3:].isnan().all()


def test_raw_patches_are_in_the_order_of_patch_tokens():
    images = torch.rand(2, 3, 16, 24)
    patches = raw_patch_features(8)(images)
    assert patches.shape == (2, 6, 192)
    assert torch.equal(patches[1, 4].view(3, 8, 8), images[1, :, 8:16, 8:16])


def test_evaluation_equals_features_taken_by_hand():
    train, test, model = scenes(12, 0, ignored=True), scenes(6, 1, ignored=True), tiny_model()
    result = evaluate_patch_knn(
        Bench(model, Preprocessing(32, 32), progress=False, batch_size=5), train, test, ks=(5,)
    )

    def tensors(rows):
        pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in rows["image"]])
        masks = torch.stack([torch.from_numpy(np.array(mask)).long() for mask in rows["mask"]])
        labels = patch_labels(masks, 8).flatten()
        return Preprocessing(32, 32).normalize(pixels), labels, labels != 255

    (train_images, train_labels, train_counts), (images, labels, counts) = tensors(train), tensors(test)
    for name, features in (("model", patch_features(model)), ("raw_pixels", raw_patch_features(8))):
        bank, queries = features(train_images).flatten(0, 1)[train_counts], features(images).flatten(0, 1)[counts]
        predictions = knn_classify(bank, train_labels[train_counts], queries, 5, 3)
        hits = predictions == labels[counts]
        iou = intersection_over_union(confusion_matrix(predictions, labels[counts], 3))
        miou, accuracy = result.metrics
        assert (miou["metric"], accuracy["metric"]) == ("mIoU", "patch accuracy")
        assert miou[name] == pytest.approx(iou.mean().item())
        assert accuracy[name] == pytest.approx(hits.float().mean().item())
    assert result.protocol["test_patches"] == counts.sum() == 6 * 12
    assert miou["chance"] == pytest.approx(accuracy["chance"] / 3)  # background is the most frequent of three classes


def test_learnable_scenes_score_above_the_constant_answer():
    bench = Bench(tiny_model(), Preprocessing(32, 32), progress=False)
    result = evaluate_patch_knn(bench, scenes(30, 0), scenes(10, 1), ks=(5,))
    assert result.metrics[0]["raw_pixels"] > 0.7 > result.metrics[0]["chance"]


def test_bank_is_bounded_and_drawn_by_seed():
    train, test, model = scenes(12, 0), scenes(6, 1), tiny_model()
    benches = (Bench(model, Preprocessing(32, 32), progress=False, baselines=False) for _ in range(2))
    first, second = (evaluate_patch_knn(bench, train, test, ks=(3,), max_bank_patches=60) for bench in benches)
    assert first.protocol["bank_patches"] == 60 and first.protocol["patches_per_train_image"] == 5
    assert first == second


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask_column": "masks"}, r"mask_column: got 'masks', accepted: a column of the data set \(image, mask\)"),
        ({"mask_column": "image"}, "mask: got an image of mode RGB, accepted: one channel"),
        ({"ks": (10_000,)}, "k: got .10000., accepted: 1 to the number of train patches"),
        ({"preprocessing": Preprocessing(36, 36)}, "image_size: got 36, accepted: a multiple"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message):
    rows = scenes(4, 0)
    request = {"preprocessing": Preprocessing(32, 32), "ks": (3,), **change}
    with pytest.raises(ValueError, match=message):
        evaluate_patch_knn(Bench(tiny_model(), request.pop("preprocessing"), progress=False), rows, rows, **request)


def stored_as(rows, values):
    """The rows with another stored value for each value of their masks."""

    def change(row):
        mask = np.asarray(row["mask"])
        return {"mask": png(np.array(values, dtype=np.uint8)[mask])}

    return rows.map(change, features=rows.features)


def test_masks_of_0_and_255_are_refused_or_read_by_mask_values(monkeypatch):
    train, test = scenes(12, 0), scenes(6, 1)
    bench = Bench(tiny_model(), Preprocessing(32, 32), progress=False)
    expected = evaluate_patch_knn(bench, stored_as(train, [0, 1, 1]), stored_as(test, [0, 1, 1]), ks=[3])
    rows = [stored_as(part, [0, 255, 255]) for part in (train, test)]
    found = evaluate_patch_knn(bench, *rows, ks=[3], mask_values=[0, 255])
    assert found.metrics == expected.metrics and found.details == expected.details
    monkeypatch.setattr(Bench, "extract", lambda *given, **named: pytest.fail("the network was run"))
    with pytest.raises(ValueError, match="of train hold .* --mask-values 0 255"):
        evaluate_patch_knn(bench, *rows, ks=[3])
    with pytest.raises(ValueError, match="of test hold the value 1: only class 1 is left"):
        evaluate_patch_knn(bench, train, stored_as(test, [1, 1, 1]), ks=[3])


def test_patches_whose_majority_is_one_class_are_refused():
    def corner(row):
        mask = np.zeros((32, 32), np.uint8)
        mask[0, 0] = 1
        return {"mask": png(mask)}

    train = scenes(6, 0)
    bench = Bench(tiny_model(), Preprocessing(32, 32), progress=False)
    with pytest.raises(ValueError, match="the majority of pixels has one class in every patch of test"):
        evaluate_patch_knn(bench, train, train.map(corner, features=train.features), ks=[3])
