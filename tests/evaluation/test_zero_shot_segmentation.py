"""Zero-shot segmentation: windows, upsampling and mIoU against naive loops and scikit-learn."""

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PilImage
from sklearn.metrics import accuracy_score, jaccard_score
from torch.nn.functional import interpolate
from transformers import DINOv3ViTImageProcessor

from dinov3_hf import DinoTxtModel, DinoTxtProcessor, Dinov3Config, Dinov3Model
from dinov3_hf.evaluation.zero_shot_segmentation import (
    chance_iou,
    choose_background_threshold,
    evaluate_zero_shot_segmentation,
)
from dinov3_hf.models.tokenization_dinotxt import train_tokenizer
from dinov3_hf.pipelines import class_maps as class_maps_module
from dinov3_hf.pipelines.class_embeddings import class_embeddings
from dinov3_hf.pipelines.class_maps import (
    best_class,
    class_maps,
    fit_image,
    segment,
    segment_logits,
    window_and_stride,
)
from dinov3_hf.pipelines.windows import window_starts


NAMES = ["background", "cat", "dog", "tree"]


@pytest.fixture(scope="module")
def aligned():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vision = Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.5))
    tokenizer = train_tokenizer(NAMES, 300, context_length=16)
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 2}
    head = {"layerscale_value": 0.5, "drop_path_rate": 0.0}
    model = DinoTxtModel.from_backbone(vision, text, vision_head_config=head, projection_dim=32).eval()
    # Far from each other, so that every class wins somewhere.
    torch.nn.init.normal_(model.text_model.token_embedding.weight, std=1)
    image_processor = DINOv3ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6])
    return model, DinoTxtProcessor(image_processor, tokenizer)


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


def naive_logits(model, pixel_values, embeddings, window, stride):
    """Every pixel's patch scores summed up window by window, on the grid of patches; then one bilinear upsampling."""
    height, width = pixel_values.shape[-2:]
    total = torch.zeros(len(embeddings), height // 8, width // 8, dtype=torch.float64)
    count = torch.zeros(height // 8, width // 8, dtype=torch.float64)
    tops, y = set(), 0
    while True:
        tops.add(min(y, height - window))
        if y >= height - window:
            break
        y += stride
    for top in tops:
        left = 0
        while True:
            start = min(left, width - window)
            crop = pixel_values[:, :, top : top + window, start : start + window]
            with torch.no_grad():
                patches = model.get_patch_features(crop)[0].double()
            for index, patch in enumerate(patches):
                row, column = top // 8 + index // (window // 8), start // 8 + index % (window // 8)
                count[row, column] += 1
                for c, embedding in enumerate(embeddings.double()):
                    total[c, row, column] += patch @ embedding / patch.norm() / embedding.norm()
            if left >= width - window:
                break
            left += stride
    return interpolate((total / count)[None], (height, width), mode="bilinear")[0]


@pytest.fixture(scope="module")
def embeddings(aligned):
    return class_embeddings(aligned[0], aligned[1].tokenizer, NAMES, ["a {}"], part="patch")


@pytest.mark.parametrize(
    "side, stride, patches_at_once", [((32, 56), 16, 4096), ((40, 72), 24, 16), ((48, 32), 32, 40)]
)
def test_logits_equal_a_naive_loop(side, stride, patches_at_once, aligned, embeddings, monkeypatch):
    monkeypatch.setattr(class_maps_module, "PATCHES_AT_ONCE", patches_at_once)
    pixel_values = torch.randn(1, 3, *side, generator=torch.Generator().manual_seed(0))
    found = segment_logits(aligned[0], pixel_values, embeddings, window=32, stride=stride)
    expected = naive_logits(aligned[0], pixel_values, embeddings, 32, stride)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)
    assert (segment(found) == expected.argmax(0)).double().mean() > 0.999


class MeanColours(torch.nn.Module):
    """A "model" whose patch feature is the patch's mean colour: where a mask must lie, its image shows."""

    config = SimpleNamespace(vision_config=SimpleNamespace(patch_size=8, image_size=32), projection_dim=6)
    device, dtype = torch.device("cpu"), torch.float32

    def get_patch_features(self, pixel_values):
        return torch.nn.functional.avg_pool2d(pixel_values, 8).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 2.0)])
def test_masks_lie_where_the_image_shows_them(scales):
    truth = torch.tensor([[0, 1, 1, 2], [2, 2, 0, 1]]).repeat_interleave(32, 0).repeat_interleave(24, 1)
    image = torch.nn.functional.one_hot(truth, 3).permute(2, 0, 1)[None].float()
    found = segment_logits(MeanColours(), image, torch.eye(3), 32, 24, scales)
    larger = segment_logits(MeanColours(), image, torch.eye(3), 32, 24, scales, size=(128, 192))
    doubled = truth.repeat_interleave(2, 0).repeat_interleave(2, 1)
    for logits, expected in ((found, truth), (larger, doubled)):
        # Bilinear upsampling rounds the corners where regions meet, and nothing else.
        wrong = (segment(logits) != expected).nonzero()
        corners = torch.cartesian_prod(torch.tensor([len(expected) / 2]), torch.arange(1, 4) * expected.shape[1] / 4)
        assert torch.cdist(wrong + 0.5, corners).amin(1).max() < 8 * len(expected) / 64


@pytest.mark.parametrize("window, stride", [(64, 40), (48, 8), (480, 480)])
def test_a_window_over_the_whole_image_is_one_pass(window, stride, aligned, embeddings):
    model, pixel_values = aligned[0], torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = torch.nn.functional.normalize(model.get_patch_features(pixel_values), dim=-1)
    whole = (patches @ embeddings.T)[0].T.unflatten(1, (5, 6))
    expected = interpolate(whole[None], (40, 48), mode="bilinear")[0]
    found = segment_logits(model, pixel_values, embeddings, window, stride)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_scales_are_averaged_and_logits_are_what_is_upsampled(aligned, embeddings):
    model, pixel_values = aligned[0], torch.randn(1, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    parts = []
    for scale, side in ((0.5, (24, 16)), (1.0, (48, 40)), (1.5, (72, 64))):  # patches of 8: 20 and 60 are rounded
        image = interpolate(pixel_values, side, mode="bilinear", antialias=True) if scale != 1 else pixel_values
        grid = segment_logits(model, image, embeddings, 32, 16, size=(side[0] // 8, side[1] // 8))
        parts.append(interpolate(grid[None], (90, 70), mode="bilinear")[0])
    found = segment_logits(model, pixel_values, embeddings, 32, 16, scales=(0.5, 1.0, 1.5), size=(90, 70))
    torch.testing.assert_close(found, sum(parts) / 3, atol=1e-6, rtol=0)
    assert found.shape == (4, 90, 70)


def test_argmax_of_a_stream_and_threshold(aligned, embeddings):
    model, pixel_values = aligned[0], torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    logits = segment_logits(model, pixel_values, embeddings)
    best, classes, margin = best_class(class_maps(model, pixel_values, embeddings))
    assert torch.equal(best, logits.amax(0)) and torch.equal(classes, logits.argmax(0))
    torch.testing.assert_close(margin, logits.amax(0) - logits.mean(0))
    assert torch.equal(best_class(logits[:1])[2], logits[0])
    threshold = margin.median().item()
    found = segment(logits, threshold)
    assert (
        torch.equal(found, torch.where(margin < threshold, -1, classes)) and 0.3 < (found == -1).double().mean() < 0.6
    )
    assert segment(torch.full((2, 3, 3), torch.nan), 0.0).eq(-1).all()


def test_windows_cover_everything():
    assert window_starts(100, 40, 24) == [0, 24, 48, 60]
    assert window_starts(40, 40, 24) == [0] == window_starts(16, 40, 24)
    assert window_starts(80, 40, 40) == [0, 40]


def test_default_windows(aligned):
    assert window_and_stride(aligned[0]) == (32, 24)  # 2/3 of 4 patches, rounded to 3
    assert window_and_stride(aligned[0], 48) == (48, 32) and window_and_stride(aligned[0], 8) == (8, 8)


@pytest.mark.parametrize("kind", ["tensor", "pil"])
@pytest.mark.parametrize(
    "size, expected", [((20, 30), (32, 48)), ((33, 100), (32, 96)), ((70, 50), (72, 48)), ((500, 3), (5336, 32))]
)
def test_images_keep_their_proportions(size, expected, kind, aligned):
    picture = PilImage.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    image = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) if kind == "tensor" else picture
    found = fit_image(image, aligned[1].image_processor, 32, 8)
    height, width = expected
    by_hand = aligned[1].image_processor(picture, size={"height": height, "width": width}, return_tensors="pt")
    assert found.shape == (1, 3, height, width) and torch.equal(found, by_hand["pixel_values"])


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
    miou, accuracy = result["measures"]
    assert miou["model"] == pytest.approx(ious.mean()) and accuracy["model"] == accuracy_score(truth, predicted)
    assert [row["model"] for row in result["per_class"]] == pytest.approx(ious.tolist())
    assert [row["pixels"] for row in result["per_class"]] == np.bincount(truth).tolist()
    assert accuracy["chance"] == 0.25 and result["protocol"]["background"] == "background"


def test_chance_is_what_random_labels_reach():
    rng = np.random.default_rng(0)
    truth = rng.choice(4, 400_000, p=[0.7, 0.25, 0.05, 0])
    confusion = torch.zeros(4, 4, dtype=torch.long)
    np.add.at(confusion.numpy(), (truth, rng.integers(0, 4, len(truth))), 1)
    hits = confusion.diagonal()
    found = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    expected = chance_iou(confusion)
    torch.testing.assert_close(expected[:3], found[:3].double(), atol=3e-3, rtol=0)
    assert expected[3].isnan() and expected[0] == pytest.approx(0.7 / 4 / (0.7 + 0.25 - 0.7 / 4), abs=2e-3)


def test_absent_classes_and_rows_that_cannot_be_used(aligned):
    images, masks = scenes([(32, 32)] * 4, classes=2, ignored=False)
    masks[1] = masks[1][:20]
    rows = rows_of(images, masks).to_dict()
    rows["image"][2], rows["mask"][3] = {"bytes": b"no image", "path": None}, None
    rows = Dataset.from_dict(rows, features=Features({"image": Image(), "mask": Image()}))
    result = evaluate_zero_shot_segmentation(*aligned, rows, NAMES, progress=False)
    assert result["skipped_images"] == {"test": 2} and result["protocol"]["num_test"] == 1
    assert result["skipped_rows"] == {"mask of another size than its image": 1}
    assert [row["class"] for row in result["per_class"]] == ["background", "cat"]  # absent classes do not count
    assert result["measures"][0]["model"] == pytest.approx(np.mean([row["model"] for row in result["per_class"]]))


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
        ({"stride": 40}, "stride: got 40, accepted: a multiple of the patch size (8) up to 32"),
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


LARGE_IMAGE = """
import resource, sys, torch
from dinov3_hf import Dinov3Config, Dinov3Model, DinoTxtModel
from dinov3_hf.pipelines.class_maps import segment, segment_logits
size, side, window, scales = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), eval(sys.argv[4])
fields = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
config = Dinov3Config.from_size(size) if size != "tiny" else Dinov3Config(**fields, patch_size=8)
text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 300}
model = DinoTxtModel.from_backbone(Dinov3Model(config), text).eval()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
width = model.config.projection_dim // 2
logits = segment_logits(model, torch.randn(1, 3, 2 * side // 3, side), torch.randn(20, width), window, window // 32 * 16, scales)
assert segment(logits).shape == logits.shape[1:] == (2 * side // 3, side)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def peak_gib(size, side, window, scales):
    """Peak memory of a process that segments an image of side x 2/3 side into 20 classes: before, and in all."""
    command = [sys.executable, "-c", LARGE_IMAGE, size, str(side), str(window), repr(scales)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(value) for value in result.stdout.split()]


def test_memory_of_an_image_is_bounded():
    before, peak = peak_gib("tiny", 600, 32, (1.0,))
    assert peak - before < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("window, scales", [(224, (1.0,)), (224, (0.5, 1.0, 1.5)), (1504, (1.0,))])
def test_memory_of_a_large_image_is_bounded(window, scales):
    before, peak = peak_gib("vits16", 1500, window, scales)
    print(f"window {window}, scales {scales}: {peak:.2f} GiB, of which {before:.2f} before the image")
    assert peak < 3e9 / 2**30


def test_whole_windows_add_their_own_cosine(aligned, embeddings):
    model, generator = aligned[0], torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, 3, 32, 32, generator=generator)
    whole = torch.nn.functional.normalize(torch.randn(4, model.config.projection_dim, generator=generator), dim=-1)
    plain = segment_logits(model, pixel_values, embeddings, 32, 32)
    with torch.inference_mode():
        image = torch.nn.functional.normalize(model.get_image_features(pixel_values), dim=-1)[0]
    found = segment_logits(model, pixel_values, embeddings, 32, 32, image_embeddings=whole)
    torch.testing.assert_close(found, plain + (whole @ image)[:, None, None], atol=1e-5, rtol=0)


def test_the_chosen_threshold_is_the_best_of_all_evaluations(aligned):
    model, processor = aligned
    rows = rows_of(*scenes([(32, 32), (40, 40)]))
    chosen = choose_background_threshold(model, processor, rows, NAMES, ["a {}"])
    scores = {}
    for threshold in (chosen, 0.05, 0.1, 0.3):
        result = evaluate_zero_shot_segmentation(
            model, processor, rows, NAMES, ["a {}"], background=0, background_threshold=threshold, progress=False
        )
        scores[threshold] = result["measures"][0]["model"]
    assert max(scores.values()) == pytest.approx(scores[chosen])
