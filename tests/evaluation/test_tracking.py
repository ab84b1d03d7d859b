"""Videos among rows, label propagation against naive loops, J and F against other implementations."""

import io
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.tracking import contour_accuracy, evaluate_tracking, region_similarity

from ..samples import png


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1))


def tiny_bench(**fields):
    return Bench(tiny_model(), Preprocessing(32, 32), progress=False, batch_size=4, **fields)


def video_rows(columns: dict) -> Dataset:
    features = {"image": Image(), "mask": Image(), "sequence": Value("string"), "frame": Value("int64")}
    return Dataset.from_dict(columns, features=Features(features))


def moving_bars(values=(1, 2), num_frames=6, step=8, name="video") -> dict:
    """Upright bars two patches wide, each object of one colour on black, that move by whole patches to the right.

    Without corners, which bilinear upsampling rounds off.
    """
    columns = {"image": [], "mask": [], "sequence": [name] * num_frames, "frame": list(range(num_frames))}
    for frame in range(num_frames):
        image, mask = np.zeros((32, 96, 3), np.uint8), np.zeros((32, 96), np.uint8)
        for number, value in enumerate(values):
            left = 32 * number + step * frame
            place, colour = slice(left, left + 16), [(200, 60, 10), (10, 60, 200)][number]
            image[:, place], mask[:, place] = colour, value
        columns["image"].append(png(image))
        columns["mask"].append(png(mask))
    return columns


def joined(*parts: dict) -> dict:
    return {name: sum((part[name] for part in parts), []) for name in parts[0]}


def value_of(result, metric: str, encoder: str) -> float:
    return next(line[encoder] for line in result.metrics if line["metric"] == metric)


def random_masks(seed, shape=(40, 60)):
    generator = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        coarse = generator.random((5, 6)) < 0.4
        masks.append(np.kron(coarse, np.ones((shape[0] // 5, shape[1] // 6))).astype(bool))
    masks[1] = np.roll(masks[0], generator.integers(0, 3, 2), (0, 1)) ^ (masks[1] & (generator.random(shape) < 0.1))
    return masks


@pytest.mark.parametrize("seed", range(4))
def test_region_similarity_is_that_of_scikit_learn(seed):
    from sklearn.metrics import jaccard_score

    prediction, truth = random_masks(seed)
    assert region_similarity(prediction, truth) == pytest.approx(jaccard_score(truth.ravel(), prediction.ravel()))


def naive_contour_accuracy(prediction, truth, tolerance):
    def boundary(mask):
        height, width = mask.shape
        inside = {(y, x) for y in range(height) for x in range(width) if mask[y, x]}
        neighbours = ((0, 1), (1, 0), (0, -1), (-1, 0))
        return [
            (y, x)
            for y, x in inside
            if any(0 <= y + v < height and 0 <= x + u < width and (y + v, x + u) not in inside for v, u in neighbours)
        ]

    def share(here, there):
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in there) for y, x in here) / len(here)

    radius = math.ceil(tolerance * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    here, there = boundary(prediction), boundary(truth)
    precision, recall = share(here, there), share(there, here)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("tolerance", [0.008, 0.03])
@pytest.mark.parametrize("seed", range(4))
def test_boundary_measure_is_that_of_a_naive_loop(seed, tolerance):
    prediction, truth = random_masks(seed)
    expected = naive_contour_accuracy(prediction, truth, tolerance)
    assert 0 < expected < 1
    assert contour_accuracy(prediction, truth, tolerance) == pytest.approx(expected)


def test_empty_masks_agree_only_with_each_other():
    empty, square = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    square[5:9, 5:9] = True
    for metric in (region_similarity, contour_accuracy):
        assert (metric(empty, empty), metric(square, empty), metric(empty, square)) == (1, 0, 0)
    assert contour_accuracy(square, np.roll(square, 11, 0)) == 0


def test_bars_that_move_by_patches_are_tracked_exactly():
    rows = video_rows(moving_bars())
    result = evaluate_tracking(tiny_bench(), rows)
    assert [line["raw_pixels"] for line in result.metrics] == [1, 1, 1]
    # By 8 pixels a frame the still mask overlaps half, then not at all: J is 1/3 once, then 0 in three frames.
    assert value_of(result, "J", "chance") == pytest.approx(1 / 12)
    for line in result.metrics:
        assert 0 <= line["model"] <= 1 and 0 <= line["random_init"] <= 1
    protocol = result.protocol
    assert (protocol["num_test"], protocol["num_objects"], protocol["num_frames"]) == (1, 2, 4)
    assert [(line["object"], line["frames"], line["raw_pixels"]) for line in result.details["per_object"]] == [
        (1, 4, 1),
        (2, 4, 1),
    ]
    pictures = result.pictures["tracked"]
    assert len(pictures) == 5 and len({picture.size for picture in pictures}) == 1
    mean = (value_of(result, "J", "model") + value_of(result, "F", "model")) / 2
    assert value_of(result, "J&F", "model") == pytest.approx(mean)


def test_objects_weigh_the_same_whatever_their_videos_lengths():
    # Only the second video moves: its object has 1 measured frame, those of the first 4 each.
    still, moving = moving_bars(step=0, name="still"), moving_bars((1,), 3, step=16, name="moving")
    result = evaluate_tracking(tiny_bench(baselines=False), video_rows(joined(still, moving)))
    assert value_of(result, "J", "chance") == pytest.approx(2 / 3)


def test_order_of_rows_does_not_matter_but_order_of_frames_does():
    columns = joined(moving_bars(name="a"), moving_bars((7,), 4, name="b"))
    # Frames 10 and 9 in this order as text.
    columns["frame"] = [5 + frame for frame in columns["frame"]]
    rows, bench = video_rows(columns), tiny_bench()
    first, second = evaluate_tracking(bench, rows), evaluate_tracking(bench, rows.shuffle(seed=1))
    assert first.metrics == second.metrics
    assert sorted(map(str, first.details["per_object"])) == sorted(map(str, second.details["per_object"]))
    columns["frame"][0], columns["frame"][2] = columns["frame"][2], columns["frame"][0]
    turned = evaluate_tracking(bench, video_rows(columns))
    # Twice instead of once in four frames the still mask overlaps; once in two in the shorter video.
    assert value_of(first, "J", "chance") == pytest.approx((1 / 12 + 1 / 12 + 1 / 6) / 3)
    assert value_of(turned, "J", "chance") == pytest.approx((1 / 6 + 1 / 6 + 1 / 6) / 3)


def test_similarity_is_what_tracks():
    # Colours drawn anew in every frame say nothing of objects.
    columns, generator = moving_bars(), np.random.default_rng(0)
    columns["image"] = [png(generator.integers(0, 256, (32, 96, 3), dtype=np.uint8)) for _ in range(6)]
    result = evaluate_tracking(tiny_bench(), video_rows(columns))
    assert value_of(result, "J", "raw_pixels") < 0.4


def test_values_of_masks():
    columns = moving_bars(values=(255,))
    result = evaluate_tracking(tiny_bench(), video_rows(columns))
    assert [line["object"] for line in result.details["per_object"]] == [255]
    assert value_of(result, "J&F", "raw_pixels") == 1
    with pytest.raises(ValueError, match="none of the 1 videos can be measured .test: first frame without an object"):
        evaluate_tracking(tiny_bench(), video_rows(columns), ignore_index=255)


def test_objects_that_come_later_or_vanish():
    columns = moving_bars(values=(1, 2))
    masks = [np.array(PilImage.open(io.BytesIO(mask["bytes"]))) for mask in columns["mask"]]
    # In the truth 1 has vanished from the third frame on, and an object 3 comes in the second.
    columns["mask"] = [
        png(np.where((mask == 1) & (frame >= 2), 3 * (frame == 3), mask).astype(np.uint8))
        for frame, mask in enumerate(masks)
    ]
    result = evaluate_tracking(tiny_bench(), video_rows(columns))
    # Object 1 is still found where its colour is: right in the first of four frames only.
    assert [(line["object"], line["raw_pixels"]) for line in result.details["per_object"]] == [(1, 1 / 4), (2, 1)]


def test_ignored_pixels_do_not_count():
    columns = moving_bars(values=(1,))
    masks = [np.array(PilImage.open(io.BytesIO(mask["bytes"]))) for mask in columns["mask"]]
    # Where the object is ignored from the second frame on, finding it is no error.
    columns["mask"] = [
        png(np.where((mask == 1) & (frame > 0), 9, mask).astype(np.uint8)) for frame, mask in enumerate(masks)
    ]
    ignored = evaluate_tracking(tiny_bench(), video_rows(columns), ignore_index=9)
    counted = evaluate_tracking(tiny_bench(), video_rows(columns))
    assert value_of(ignored, "J", "raw_pixels") == 1 and value_of(counted, "J", "raw_pixels") == 0


def test_what_cannot_be_read_is_counted():
    whole, headless, torn = (moving_bars(name=name) for name in "abc")
    headless["image"][0] = {"bytes": b"not an image", "path": None}
    torn["image"][2], torn["mask"][3] = ({"bytes": b"neither", "path": None} for _ in range(2))
    result = evaluate_tracking(tiny_bench(), video_rows(joined(whole, headless, torn)))
    assert result.skipped_images == {"test": 2}
    assert result.skipped_rows == {"test: first frame cannot be read": 6, "test: mask cannot be read": 1}
    assert [(line["sequence"], line["frames"]) for line in result.details["per_object"][::2]] == [("a", 4), ("c", 2)]
    assert value_of(result, "J&F", "raw_pixels") == 1


def test_masks_of_another_resolution_are_measured_in_their_own():
    columns = moving_bars()
    masks = [np.array(PilImage.open(io.BytesIO(mask["bytes"]))) for mask in columns["mask"]]
    columns["mask"] = [png(mask.repeat(2, 0).repeat(2, 1)) for mask in masks]
    assert value_of(evaluate_tracking(tiny_bench(), video_rows(columns)), "J", "raw_pixels") == 1


def test_two_runs_are_equal():
    rows = video_rows(moving_bars())
    first, second = (evaluate_tracking(tiny_bench(), rows) for _ in range(2))
    pictures = [result.pictures["tracked"] for result in (first, second)]
    assert first.as_dict() == second.as_dict()
    assert all(one.tobytes() == other.tobytes() for one, other in zip(*pictures, strict=True))


def broken(change):
    columns = moving_bars()
    change(columns)
    return video_rows(columns)


@pytest.mark.parametrize(
    "change, settings, message",
    [
        (
            lambda c: c["frame"].__setitem__(4, 1),
            {},
            r"frame_column: sequence 'video' has frame 1 twice \(rows 1 and 4\)",
        ),
        (lambda c: c["frame"].__setitem__(4, None), {}, "frame_column: got 'frame', accepted: a column of numbers"),
        (lambda c: c["sequence"].__setitem__(4, "x"), {}, "sequence 'x' has 1 frame, accepted: at least 3"),
        (lambda c: c["sequence"].__setitem__(4, None), {}, "sequence_column: got 'sequence', accepted: a column that"),
        (
            lambda c: c["image"].__setitem__(4, png(np.zeros((32, 32, 3), np.uint8))),
            {},
            "the network sees sequence 'video' at 32x32, 96x32, accepted: frames of one size",
        ),
        (
            lambda c: c["mask"].__setitem__(2, png(np.zeros((32, 32), np.uint8))),
            {},
            "mask_column: row 2 has a mask of 32x32 for an image of 96x32",
        ),
        (None, {"frame_column": "time"}, r"frame_column: got 'time', accepted: .*image, mask, sequence, frame"),
        (
            None,
            {"sequence_column": "image"},
            "sequence_column: got 'image' of PIL.Image.Image, accepted: a column that names",
        ),
        (None, {"mask_column": "image"}, "mask: got an image of mode RGB"),
        (None, {"temperature": 0}, "temperature: got 0, accepted: above 0"),
        (None, {"radius": float("nan")}, "radius: got nan, accepted: at least 0"),
        (None, {"top_k": 0}, "top_k: got 0, accepted: at least 1"),
        (None, {"context_frames": -1}, "context_frames: got -1, accepted: at least 0"),
    ],
)
def test_bad_requests_are_refused(change, settings, message):
    rows = broken(change or (lambda columns: None))
    with pytest.raises(ValueError, match=message):
        evaluate_tracking(tiny_bench(), rows, **settings)
