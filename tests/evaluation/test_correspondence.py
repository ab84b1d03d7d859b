"""Correspondence against naive loops, and where the answer is known."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.correspondence import evaluate_correspondence, read_keypoints, read_pairs
from dinov3_hf.evaluation.features import raw_patch_features
from dinov3_hf.pipelines.matching import find_matches, sample_tokens

from ..samples import png


PATCH = 8


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=PATCH, image_size=32, layerscale_value=0.1))


def bench(image_size=48, **fields):
    return Bench(tiny_model(), Preprocessing(image_size, image_size), progress=False, batch_size=4, **fields)


def dataset(images, keypoints):
    features = Features({"image": Image(), "keypoints": List(List(Value("float32")))})
    images = [image if isinstance(image, dict) else png(image) for image in images]
    return Dataset.from_dict({"image": images, "keypoints": keypoints}, features=features)


def shifted_noise(num_pairs, seed=0, height=48, width=72, by=(8, 16)):
    """Pairs of noise and the same noise shifted by whole patches (down, right), with keypoints that both show."""
    generator = np.random.default_rng(seed)
    images, keypoints = [], []
    for _ in range(num_pairs):
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        images += [noise, np.roll(noise, by, axis=(0, 1))]
        points = generator.uniform((4, 4), (width - by[1] - 4, height - by[0] - 4), (7, 2)).astype(np.float32)
        keypoints += [points.tolist(), (points + by[::-1]).tolist()]
    return dataset(images, keypoints)


def value(result, metric, threshold, encoder="model"):
    found = [m for m in result.metrics if m["metric"] == metric and m["threshold"] == threshold]
    assert len(found) == 1
    return found[0][encoder]


def test_keypoints_of_every_kind():
    assert read_keypoints([[1, 2], [3.5, 4]], 0) == {0: (1, 2), 1: (3.5, 4)}
    assert read_keypoints([[1, 2, 1.0], [3, 4, 0.0], [5, 6, 2]], 0) == {0: (1, 2), 2: (5, 6)}
    assert read_keypoints([[1, 2], [float("nan"), 4], [None, 3]], 0) == {0: (1, 2)}
    assert read_keypoints(None, 0) == {}
    objects = [{"instance_id": 7, "points": [[1, 2, 1], [3, 4, 0]]}, {"instance_id": 4, "points": [[5, 6, 1]]}]
    assert read_keypoints(objects, 0) == {(7, 0): (1, 2), (4, 0): (5, 6)}
    for wrong in ([1, 2], [[1]], [[1, 2, 3, 4]], 5, [{"points": [[1, 2]]}]):
        with pytest.raises(ValueError, match=r"keypoints_column: row 3 has .*, accepted: a list of \[x, y\]"):
            read_keypoints(wrong, 3)


def test_pairs_and_their_lengths():
    rows = shifted_noise(2)
    assert read_pairs(rows, None) == [(0, 1, None), (2, 3, None)]
    assert read_pairs(rows, Dataset.from_dict({"src": [3], "trg": [0]})) == [(3, 0, None)]
    lengths = Dataset.from_dict({"src": [3, 1], "trg": [0, 2], "bbox_trg": [12.5, None]})
    assert read_pairs(rows, lengths) == [(3, 0, 12.5), (1, 2, None)]
    boxes = Dataset.from_dict({"src": [3], "trg": [0], "bbox_trg": [[5.0, 6.0, 10.0, 26.0]]})
    assert read_pairs(rows, boxes) == [(3, 0, 20.0)]


def test_pixels_find_shifted_noise_and_not_other_noise():
    rows = shifted_noise(4)
    result = evaluate_correspondence(bench(), rows)
    assert value(result, "PCK", 0.05, "raw_pixels") == 1
    assert value(result, "PCK, mean over pairs", 0.05, "raw_pixels") == 1
    # Shifted by 18 of 72 pixels: nothing lies where it was.
    assert value(result, "PCK", 0.15, "chance") == 0
    wrong = Dataset.from_dict({"src": [0, 2, 4, 6], "trg": [3, 5, 7, 1]})
    assert value(evaluate_correspondence(bench(), rows, wrong), "PCK", 0.05, "raw_pixels") < 0.15


def test_an_image_finds_itself_at_any_size():
    # 100x75 pixels are seen as 64x48: the keypoints must be scaled there and back along both sides.
    generator = np.random.default_rng(0)
    points = generator.uniform((10, 10), (90, 65), (8, 2)).tolist()
    rows = dataset([generator.integers(0, 256, (75, 100, 3), dtype=np.uint8)], [points])
    same = Dataset.from_dict({"src": [0], "trg": [0], "bbox_trg": [20.0]})
    result = evaluate_correspondence(bench(), rows, same)
    for encoder in ("model", "random_init", "raw_pixels", "chance"):
        assert value(result, "PCK", 0.05, encoder) == 1


def test_figures_are_those_of_a_naive_loop():
    generator = np.random.default_rng(0)
    sizes, images, keypoints = [(48, 60), (64, 48), (50, 90), (48, 48)], [], []
    for (height, width), count in zip(sizes, (6, 12, 9, 12), strict=True):
        images.append(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        points = generator.uniform(0, (width, height), (count, 2))
        seen = generator.random((count, 1)) < 0.8
        keypoints.append(np.concatenate([points, seen], axis=1).tolist())
    rows = dataset(images, keypoints)
    pairs = Dataset.from_dict({"src": [0, 1, 2, 3], "trg": [1, 3, 1, 2], "bbox_trg": [30.0, None, 55.0, None]})
    tested, thresholds, keypoints = bench(), (0.2, 0.4), list(rows["keypoints"])
    result = evaluate_correspondence(tested, rows, pairs, thresholds=thresholds)

    def pixel_tokens(row):
        pixels = tested.whole.image(torch.from_numpy(images[row]).permute(2, 0, 1))
        grid = [side // PATCH for side in pixels.shape[1:]]
        return raw_patch_features(PATCH)(tested.whole.normalize(pixels[None]))[0].unflatten(0, grid)

    for threshold in thresholds:
        hits = {"chance": [], "raw_pixels": []}
        for pair in pairs:
            (height, width), (true_height, true_width) = sizes[pair["src"]], sizes[pair["trg"]]
            length = pair["bbox_trg"] or max(true_height, true_width)
            source, target = pixel_tokens(pair["src"]), pixel_tokens(pair["trg"])
            for some in hits.values():
                some.append([])
            for (x, y, seen), (true_x, true_y, also_seen) in zip(
                keypoints[pair["src"]], keypoints[pair["trg"]], strict=False
            ):
                if not (seen and also_seen):
                    continue
                place = torch.tensor([[x / width * source.shape[1], y / height * source.shape[0]]])
                right, down = find_matches(sample_tokens(source, place), target)[0].tolist()
                found = {
                    "chance": (x / width * true_width, y / height * true_height),
                    "raw_pixels": (right / target.shape[1] * true_width, down / target.shape[0] * true_height),
                }
                for name, (x, y) in found.items():
                    hits[name][-1].append(((x - true_x) ** 2 + (y - true_y) ** 2) ** 0.5 <= threshold * length)
        for name, of_pairs in hits.items():
            assert len({len(of_pair) for of_pair in of_pairs}) > 1 and all(of_pairs)
            assert value(result, "PCK", threshold, name) == pytest.approx(np.mean(sum(of_pairs, [])))
            means = np.mean([np.mean(of_pair) for of_pair in of_pairs])
            assert value(result, "PCK, mean over pairs", threshold, name) == pytest.approx(means)
            assert means > 0
        assert result.protocol["num_keypoints"] == sum(map(len, of_pairs))


def test_scenes_are_matched_by_object_and_repeat():
    rows = load_scenes("test", 12, "pairs", 48)
    first, second = (evaluate_correspondence(bench(), rows) for _ in range(2))
    picture = first.pictures.pop("matches")
    assert picture.tobytes() == second.pictures.pop("matches").tobytes() and min(picture.size) > 100
    assert first == second
    expected = 0
    for source, target in zip(rows["keypoints"][::2], rows["keypoints"][1::2], strict=True):
        points = {item["instance_id"]: item["points"] for item in target}
        for item in source:
            there = points.get(item["instance_id"], [])
            expected += sum(a[2] > 0 and b[2] > 0 for a, b in zip(item["points"], there, strict=bool(there)))
    assert first.protocol["num_keypoints"] == expected > 20
    assert set(first.metrics[0]) == {"metric", "threshold", "model", "random_init", "raw_pixels", "chance", "interval"}


def test_what_cannot_be_measured_is_counted():
    rows = shifted_noise(4)
    images = list(rows.cast_column("image", Image(decode=False))["image"])
    keypoints = list(rows["keypoints"])
    whole = images[4]["bytes"]
    images[0] = {"bytes": b"not an image", "path": None}
    # The header of this one can still be read.
    images[4] = {"bytes": whole[: len(whole) // 2], "path": None}
    keypoints[3] = [[1000.0, 5.0]]
    rows = dataset([*images, images[6]], [*keypoints, keypoints[6]])
    result = evaluate_correspondence(bench(baselines=False), rows)
    assert result.skipped_images == {"test": 2}
    assert list(result.skipped_rows.values()) == [2, 1, 1]
    assert (result.protocol["num_pairs"], result.protocol["num_keypoints"]) == (1, 7)
    assert set(result.metrics[0]) == {"metric", "threshold", "model", "chance"}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"keypoints_column": "points"},
            r"keypoints_column: got 'points', accepted: a column .* \(image, keypoints\)",
        ),
        ({"image_column": "picture"}, "image_column: got 'picture', accepted: a column"),
        ({"thresholds": (0.0, 0.1)}, r"thresholds: got \[0.0, 0.1\], accepted: shares of a side, above 0"),
        ({"pairs": {"src": [0]}}, "pairs: got 'trg', accepted: a column"),
        ({"pairs": {"src": [0], "trg": [4]}}, "pairs: got 4 in trg, accepted: rows of the images, 0 to 3"),
        ({"pairs": {"src": [0], "trg": [1], "bbox_trg": [0.0]}}, "pairs: got 0.0 as the side of a box in bbox_trg"),
        ({"image_size": 50}, "image_size: got 50, accepted: a multiple of the model's patch size"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message):
    request = dict(change)
    if "pairs" in request:
        request["pairs"] = Dataset.from_dict(request["pairs"])
    with pytest.raises(ValueError, match=message):
        evaluate_correspondence(bench(request.pop("image_size", 48)), shifted_noise(2), **request)


def test_pairs_without_shared_keypoints_are_refused():
    noise = np.zeros((48, 48, 3), dtype=np.uint8)
    with pytest.raises(
        ValueError, match="keypoints_column: none of the 1 pairs has a keypoint in 'keypoints' seen in"
    ):
        evaluate_correspondence(bench(), dataset([noise, noise], [[[1.0, 2.0]], []]))
