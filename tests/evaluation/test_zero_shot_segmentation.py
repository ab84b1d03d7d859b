"""Zero-shot segmentation: windows, upsampling and mIoU against naive loops and scikit-learn."""

import io
import json
import resource

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PilImage
from sklearn.metrics import accuracy_score, jaccard_score

from dinov3_hf import DinoTxtModel, Dinov3Config, Dinov3Model
from dinov3_hf.evaluation.iou import chance_iou, constant_iou, random_iou
from dinov3_hf.evaluation.zero_shot_segmentation import (
    choose_background_threshold,
    evaluate_zero_shot_segmentation,
)
from dinov3_hf.pipelines.class_embeddings import class_embeddings
from dinov3_hf.pipelines.class_maps import (
    fit_image,
    segment,
    segment_logits,
)

from ..processes import run_processes
from ..samples import tiny_aligned


NAMES = ["background", "cat", "dog", "tree"]


@pytest.fixture(scope="module")
def aligned():
    return tiny_aligned(NAMES, spread=True, image_mean=[0.4, 0.5, 0.6])


def encode(pixels):
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def scenes(sizes, classes=4, ignored=True):
    """Images of flat regions in noise with their masks, one of each size (height, width)."""
    rng = np.random.default_rng(1)
    images, masks = [], []
    for height, width in sizes:
        mask = rng.integers(0, classes, (3, 3), dtype=np.uint8).repeat(-(-height // 3), 0).repeat(-(-width // 3), 1)
        mask = np.ascontiguousarray(mask[:height, :width])
        colours = rng.integers(0, 200, (classes, 3))
        images.append((colours[mask] + rng.integers(0, 55, (height, width, 3))).astype(np.uint8))
        if ignored:
            mask[:5, :7] = 255
        masks.append(mask)
    return images, masks


def rows_of(images, masks):
    columns = {"image": [encode(image) for image in images], "mask": [encode(mask) for mask in masks]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "mask": Image()}))


@pytest.fixture(scope="module")
def embeddings(aligned):
    return class_embeddings(aligned[0], aligned[1].tokenizer, NAMES, ["a {}"], part="patch")


@pytest.mark.parametrize("threshold", [None, 0.05])
def test_evaluation_equals_sklearn(threshold, aligned):
    model, processor = aligned
    images, masks = scenes([(32, 32), (50, 40), (24, 70)])
    settings = {"background": 0, "background_threshold": threshold, "scales": (1.0, 1.5), "templates": ["a {}"]}
    rows = rows_of(images, masks)
    result = evaluate_zero_shot_segmentation(model, processor, rows, NAMES, **settings, progress=False)
    names = NAMES if threshold is None else NAMES[1:]
    embeddings = class_embeddings(model, processor.tokenizer, names, ["a {}"], part="patch")
    truth, predicted = [], []
    for image, mask in zip(images, masks, strict=True):
        pixel_values = fit_image(PilImage.fromarray(image), processor.image_processor, 32, 8)
        logits = segment_logits(model, pixel_values, embeddings, 32, 24, (1.0, 1.5), mask.shape).numpy()
        classes = (
            logits.argmax(0)
            if threshold is None
            else np.where(logits.max(0) - logits.mean(0) < threshold, 0, logits.argmax(0) + 1)
        )
        truth.append(mask[mask != 255])
        predicted.append(classes[mask != 255])
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    assert len(set(predicted.tolist())) > 1
    ious = jaccard_score(truth, predicted, labels=range(4), average=None, zero_division=0)
    miou, accuracy = result.metrics
    assert miou["model"] == pytest.approx(ious.mean()) and accuracy["model"] == accuracy_score(truth, predicted)
    assert [row["model"] for row in result.details["per_class"]] == pytest.approx(ious.tolist())
    assert [row["pixels"] for row in result.details["per_class"]] == np.bincount(truth).tolist()
    shares = np.bincount(truth) / len(truth)
    drawn = np.mean([share / 4 / (share + 1 / 4 - share / 4) for share in shares])
    assert accuracy["chance"] == pytest.approx(shares.max())
    assert miou["chance"] == pytest.approx(max(drawn, shares.max() / 4))
    assert result.protocol["background"] == "background"


def test_chance_is_what_random_labels_reach():
    rng = np.random.default_rng(0)
    truth = rng.choice(4, 400_000, p=[0.7, 0.25, 0.05, 0])
    confusion = torch.zeros(4, 4, dtype=torch.long)
    np.add.at(confusion.numpy(), (truth, rng.integers(0, 4, len(truth))), 1)
    hits = confusion.diagonal()
    found = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    expected = random_iou(confusion)
    torch.testing.assert_close(expected[:3], found[:3].double(), atol=3e-3, rtol=0)
    assert expected[3].isnan() and expected[0] == pytest.approx(0.7 / 4 / (0.7 + 0.25 - 0.7 / 4), abs=2e-3)


@pytest.mark.parametrize("shares", [[0.97, 0.02, 0.01], [0.34, 0.33, 0.33], [0.5, 0.5, 0], [0.8, 0.2, 0]])
def test_chance_is_the_better_of_random_and_every_constant_class(shares):
    pixels = torch.tensor([round(10_000 * share) for share in shares])
    truth = np.repeat(np.arange(3), pixels.numpy())
    present = np.unique(truth)
    constants = [
        jaccard_score(truth, np.full_like(truth, one), labels=present, average=None, zero_division=0)
        for one in range(3)
    ]
    confusion = torch.diag(pixels)
    best = max(constants, key=np.mean)
    assert constant_iou(confusion)[pixels > 0].tolist() == pytest.approx(best.tolist())
    expected = max(best.mean(), random_iou(confusion).nanmean().item())
    assert chance_iou(confusion).nanmean().item() == pytest.approx(expected)
    # Mostly background: its constant answer is the better one. Balanced classes: a random one.
    assert (chance_iou(confusion).nanmean() > random_iou(confusion).nanmean()) == (shares[0] >= 0.8)


def test_absent_classes_and_rows_that_cannot_be_used(aligned):
    images, masks = scenes([(32, 32)] * 4, classes=2, ignored=False)
    masks[1] = masks[1][:20]
    rows = rows_of(images, masks).to_dict()
    rows["image"][2], rows["mask"][3] = {"bytes": b"no image", "path": None}, None
    rows = Dataset.from_dict(rows, features=Features({"image": Image(), "mask": Image()}))
    result = evaluate_zero_shot_segmentation(*aligned, rows, NAMES, progress=False)
    assert result.skipped_images == {"test": 2} and result.protocol["num_test"] == 1
    assert result.skipped_rows == {"mask of another size than its image": 1}
    assert [row["class"] for row in result.details["per_class"]] == [
        "background",
        "cat",
    ]  # absent classes do not count
    assert result.metrics[0]["model"] == pytest.approx(np.mean([row["model"] for row in result.details["per_class"]]))


def test_masks_of_0_and_255_are_refused_or_read_by_mask_values(aligned):
    images, masks = scenes([(32, 32), (40, 40)], classes=2, ignored=False)
    expected = evaluate_zero_shot_segmentation(*aligned, rows_of(images, masks), NAMES[:2], progress=False)
    rows = rows_of(images, [np.where(mask == 1, 255, mask).astype(np.uint8) for mask in masks])
    found = evaluate_zero_shot_segmentation(*aligned, rows, NAMES[:2], progress=False, mask_values=[0, 255])
    assert found.metrics == expected.metrics and found.details == expected.details
    with pytest.raises(ValueError, match="hold the values 0, 255, where 255 is ignored .* --mask-values 0 255"):
        evaluate_zero_shot_segmentation(*aligned, rows, NAMES[:2], progress=False)
    with pytest.raises(ValueError, match="'mask' holds the value 1, accepted: 0 to 0"):
        evaluate_zero_shot_segmentation(*aligned, rows, NAMES[:1], progress=False, mask_values=[0, 255])


def grey(image):
    return [np.repeat(mask[..., None], 3, 2) for mask in image]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"class_names": NAMES[:2]},
            "mask_column: 'mask' holds the value 3, accepted: 0 to 1, one of class_names, or",
        ),
        ({"background_threshold": 0.5}, "background_threshold: got 0.5, accepted: only with a background class among"),
        ({"background": 4}, "background: got 4, accepted: an index of class_names (0 to 3)"),
        ({"window": 30}, "window: got 30, accepted: a multiple of the model's patch size (8)"),
        ({"stride": 40}, "stride: got 40, accepted: a multiple of the patch size (8) up to the window (32)"),
        ({"scales": [1.0, 0.0]}, "scales: got [1.0, 0.0], accepted: at least one, each above 0"),
        ({"mask_column": "masks"}, "mask_column: got 'masks', accepted: a column of the data set (image, mask)"),
        ({"ignore_index": 0}, "mask_column: 'mask' holds the value 255, accepted: 0 to 3, one of class_names, or"),
    ],
)
def test_bad_requests_are_refused(change, message, aligned):
    settings = {"class_names": NAMES, "progress": False} | change
    with pytest.raises(ValueError) as error:
        evaluate_zero_shot_segmentation(*aligned, rows_of(*scenes([(40, 40)])), **settings)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_colour_masks_and_other_embeddings_are_refused(aligned):
    images, masks = scenes([(32, 32)])
    with pytest.raises(ValueError, match="mask: got an image of mode RGB, accepted: one channel of class indices"):
        evaluate_zero_shot_segmentation(*aligned, rows_of(images, grey(masks)), NAMES, progress=False)
    with pytest.raises(ValueError, match="embeddings: got width 32, accepted: 16"):
        segment_logits(aligned[0], torch.zeros(1, 3, 32, 32), torch.ones(4, 32))


def measure_memory(rank, file, size, side, window, scales):
    fields = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = Dinov3Config(**fields, patch_size=8) if size == "tiny" else Dinov3Config.from_size(size)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = DinoTxtModel.from_backbone(Dinov3Model(config), {**text, "intermediate_size": 32, "vocab_size": 300})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    images, texts = torch.randn(1, 3, 2 * side // 3, side), torch.randn(20, model.config.projection_dim // 2)
    logits = segment_logits(model.eval(), images, texts, window, window // 32 * 16, scales)
    assert segment(logits).shape == logits.shape[1:] == (2 * side // 3, side)
    file.write_text(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))


def peak_gib(folder, *image):
    """Peak memory of a process that segments an image of side x 2/3 side into 20 classes: before, and in all."""
    run_processes(measure_memory, folder / "memory.json", *image, world=1)
    return json.loads((folder / "memory.json").read_text())


def test_memory_of_an_image_is_bounded(tmp_path):
    before, peak = peak_gib(tmp_path, "tiny", 600, 32, (1.0,))
    assert peak - before < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("window, scales", [(224, (1.0,)), (224, (0.5, 1.0, 1.5)), (1504, (1.0,))])
def test_memory_of_a_large_image_is_bounded(window, scales, tmp_path):
    before, peak = peak_gib(tmp_path, "vits16", 1500, window, scales)
    print(f"window {window}, scales {scales}: {peak:.2f} GiB, of which {before:.2f} before the image")
    assert peak < 3e9 / 2**30


def test_the_chosen_threshold_is_the_best_of_all_evaluations(aligned):
    model, processor = aligned
    rows = rows_of(*scenes([(32, 32), (40, 40)]))
    chosen = choose_background_threshold(model, processor, rows, NAMES, ["a {}"])
    scores = {}
    for threshold in (chosen, 0.05, 0.1, 0.3):
        result = evaluate_zero_shot_segmentation(
            model, processor, rows, NAMES, ["a {}"], background=0, background_threshold=threshold, progress=False
        )
        scores[threshold] = result.metrics[0]["model"]
    assert max(scores.values()) == pytest.approx(scores[chosen])
