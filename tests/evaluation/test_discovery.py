"""TokenCut against dense solutions and cases whose answer is known."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from torchvision.ops import box_iou

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.discovery import (
    CENTRE_SIDES,
    NO_EDGE,
    choose_elsewhere,
    evaluate_discovery,
    find_object,
    graph_weights,
    main_component,
    patch_cosines,
    second_eigenvector,
)

from ..samples import png


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1))


def bench(image_size=64, **fields):
    return Bench(tiny_model(), Preprocessing(image_size, image_size), progress=False, batch_size=4, **fields)


def bright_boxes(num, seed=0, height=64, width=96, value=1, turn=0):
    """Images of a bright box on whole patches in dark noise, its mask and box; with `turn`, those of other images."""
    generator = np.random.default_rng(seed)
    images, masks, boxes = [], [], []
    for _ in range(num):
        image = generator.integers(0, 40, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), dtype=np.uint8)
        x, y = 8 * generator.integers(0, width // 8 - 3), 8 * generator.integers(0, height // 8 - 2)
        image[y : y + 16, x : x + 24] += 200
        mask[y : y + 16, x : x + 24] = value
        images.append(png(image))
        masks.append(png(mask))
        boxes.append([[float(x), float(y), float(x + 24), float(y + 16)]])
    columns = {
        "image": images,
        "instances": masks[turn:] + masks[:turn],
        "boxes": boxes[turn:] + boxes[:turn],
    }
    features = Features({"image": Image(), "instances": Image(), "boxes": List(List(Value("float32")))})
    return Dataset.from_dict(columns, features=features)


def random_weights(seed, num_patches=24, tau=0.1):
    tokens = torch.randn(num_patches, 8, generator=torch.Generator().manual_seed(seed))
    return graph_weights(patch_cosines(tokens), tau)


def two_blobs(inside: np.ndarray):
    """Cosines of patches of two kinds."""
    tokens = torch.where(
        torch.from_numpy(inside).flatten()[:, None], torch.tensor([1.0, 0.1]), torch.tensor([-0.1, 1.0])
    )
    return patch_cosines(tokens)


def test_edges_are_those_of_a_naive_loop():
    tokens = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    weights = graph_weights(patch_cosines(tokens), 0.2)
    for i in range(12):
        for j in range(12):
            cosine = (tokens[i] @ tokens[j] / tokens[i].norm() / tokens[j].norm()).item()
            assert weights[i, j].item() == pytest.approx(1 if i == j or cosine > 0.2 else 1e-5, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_eigenvector_is_that_of_the_generalised_problem(seed):
    from scipy.linalg import eigh

    weights = random_weights(seed).numpy()
    degrees = np.diag(weights.sum(1))
    values, vectors = eigh(degrees - weights, degrees)
    found = second_eigenvector(torch.from_numpy(weights))
    cosine = found @ vectors[:, 1] / np.linalg.norm(found) / np.linalg.norm(vectors[:, 1])
    assert abs(cosine) == pytest.approx(1, abs=1e-9)
    residual = (degrees - weights) @ found - values[1] * degrees @ found
    assert np.abs(residual).max() < 1e-9 * np.abs(found).max()


def test_eigenvector_of_two_blocks_is_known():
    # Constant on each block and orthogonal, in degrees, to the constant vector.
    small, large = 5, 19
    same = torch.block_diag(torch.ones(small, small), torch.ones(large, large))
    found = second_eigenvector(torch.where(same > 0, 1.0, NO_EDGE).double())
    first, second = found[:small], found[small:]
    np.testing.assert_allclose(first, first[0], rtol=1e-6)
    np.testing.assert_allclose(second, second[0], rtol=1e-6)
    volumes = small * (small + large * NO_EDGE), large * (large + small * NO_EDGE)
    assert first[0] / second[0] == pytest.approx(-volumes[1] / volumes[0], rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_component_is_that_of_a_naive_flood(seed):
    vector = np.random.default_rng(seed).normal(size=(7, 9))
    for signed in (vector, -vector):
        start = np.unravel_index(np.abs(signed).argmax(), signed.shape)
        side = signed > signed.mean() if signed[start] > signed.mean() else signed < signed.mean()
        reached, edge = {start}, [start]
        while edge:
            y, x = edge.pop()
            for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= place[0] < 7 and 0 <= place[1] < 9 and side[place] and place not in reached:
                    reached.add(place)
                    edge.append(place)
        assert {tuple(place) for place in np.argwhere(main_component(signed))} == reached


def test_box_of_a_blob_is_exact():
    inside = np.zeros((6, 10), dtype=bool)
    inside[2:5, 3:7] = True
    box, vector = find_object(two_blobs(inside), (6, 10), 0.2)
    np.testing.assert_allclose(box, [3 / 10, 2 / 6, 7 / 10, 5 / 6])
    assert ((vector > 0) == inside).all()


def test_of_two_pieces_the_first_is_the_object():
    # Diagonal neighbours do not touch; both pieces have the same entry in the eigenvector.
    inside = np.zeros((6, 6), dtype=bool)
    inside[1:3, 1:3] = inside[3:5, 3:5] = True
    box, vector = find_object(two_blobs(inside), (6, 6), 0.2)
    np.testing.assert_allclose(box, np.array([1, 1, 3, 3]) / 6)
    assert ((vector > 0) == inside).all()


@pytest.mark.parametrize("tokens", [torch.ones(12, 3), torch.eye(12)])
def test_graph_without_a_cut_gives_the_whole_image(tokens):
    box, vector = find_object(patch_cosines(tokens), (3, 4), 0.2)
    assert box.tolist() == [0, 0, 1, 1] and not vector.any()


def test_iou_is_that_of_counted_pixels():
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 8, (6, 2))
    boxes = np.concatenate([corners, corners + generator.integers(1, 6, (6, 2))], axis=1)
    canvas = np.zeros((6, 16, 16), dtype=bool)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        canvas[number, y0:y1, x0:x1] = True
    expected = [[(a & b).sum() / (a | b).sum() for b in canvas[2:]] for a in canvas[:2]]
    np.testing.assert_allclose(
        box_iou(*(torch.from_numpy(part).double() for part in (boxes[:2], boxes[2:]))), expected
    )


def test_settings_are_chosen_on_the_other_half():
    generator = np.random.default_rng(0)
    hits, half = generator.random((40, 4)) < 0.5, generator.permutation(40) % 2
    found, chosen = choose_elsewhere(hits, half)
    for part in (0, 1):
        counts = [sum(hits[i, s] for i in range(40) if half[i] != part) for s in range(4)]
        assert chosen[part] == counts.index(max(counts))
        assert (found[half == part] == hits[half == part, chosen[part]]).all()
    # What the images of a half say changes nothing about the setting they are given.
    hits[half == 0] = generator.random((20, 4)) < 0.5
    assert choose_elsewhere(hits, half)[1][0] == chosen[0]
    assert choose_elsewhere(np.array([[False, True]]), np.array([0]))[1] == [0, 1]


def test_pixels_find_bright_boxes_and_not_those_of_other_images():
    right, wrong = (evaluate_discovery(bench(), bright_boxes(12, turn=turn)) for turn in (0, 5))
    assert right.metrics[0]["raw_pixels"] == 1
    assert wrong.metrics[0]["raw_pixels"] < 0.3
    assert [metric.get("tau") for metric in right.metrics] == [None, 0.1, 0.15, 0.2, 0.25, 0.3]
    assert right.protocol["num_objects"] == right.protocol["num_test"] == 12


def test_one_of_several_objects_is_enough():
    rows = bright_boxes(6)
    boxes = [[*some, [40.0, 0.0, 48.0, 64.0]] for some in rows["boxes"]]
    rows = Dataset.from_dict({"image": list(rows["image"]), "boxes": boxes})
    result = evaluate_discovery(bench(), rows, box_column="boxes")
    assert result.metrics[0]["raw_pixels"] == 1 and result.protocol["num_objects"] == 12


def test_centre_box_is_counted_as_it_says():
    rows = load_scenes("test", 16, image_size=48)
    result = evaluate_discovery(bench(48), rows, taus=(0.2,))
    hits = np.zeros((16, len(CENTRE_SIDES)), dtype=bool)
    for row, mask in enumerate(rows["instances"]):
        mask = np.array(mask)
        for number, side in enumerate(CENTRE_SIDES):
            low, high = 48 * (1 - side) / 2, 48 * (1 + side) / 2
            for value in set(mask.flatten().tolist()) - {0}:
                y, x = (mask == value).nonzero()
                width, height = x.max() + 1 - x.min(), y.max() + 1 - y.min()
                across = max(0, min(high, x.max() + 1) - max(low, x.min()))
                down = max(0, min(high, y.max() + 1) - max(low, y.min()))
                both = across * down
                hits[row, number] |= both / (width * height + (high - low) ** 2 - both) >= 0.5
    half = torch.randperm(16, generator=torch.Generator().manual_seed(0)).numpy() % 2
    assert result.metrics[0]["chance"] == pytest.approx(choose_elsewhere(hits, half)[0].mean())
    assert 0 < result.metrics[0]["chance"] < 1
    # With a single tau there is nothing to choose.
    assert result.metrics[0]["model"] == result.metrics[1]["model"]


def test_boxes_and_masks_say_the_same_and_runs_repeat():
    rows = bright_boxes(6)
    first, second, boxes = (evaluate_discovery(bench(), rows, box_column=column) for column in (None, None, "boxes"))
    assert first.metrics == boxes.metrics
    assert first.pictures.pop("discovery").tobytes() == second.pictures.pop("discovery").tobytes()
    assert first == second


def test_what_cannot_be_measured_is_counted():
    rows = bright_boxes(6)
    columns = {name: list(rows.cast_column(name, Image(decode=False))[name]) for name in ("image", "instances")}
    columns["boxes"] = list(rows["boxes"])
    columns["image"][1] = {"bytes": b"not an image", "path": None}
    columns["instances"][2] = png(np.zeros((64, 96), dtype=np.uint8))
    columns["boxes"][3] = []
    rows = Dataset.from_dict(columns, features=rows.features)
    by_mask, by_box = (evaluate_discovery(bench(baselines=False), rows, box_column=name) for name in (None, "boxes"))
    for result in (by_mask, by_box):
        assert result.skipped_images == {"test": 1} and result.skipped_rows == {"without an object": 1}
        assert result.protocol["num_test"] == 4
        assert set(result.metrics[0]) == {"metric", "model", "chance", "interval"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask_column": "mask"}, r"mask_column: got 'mask', accepted: a column .* \(image, instances, boxes\)"),
        ({"mask_column": "boxes"}, "mask_column: got 'boxes', accepted: a column of images"),
        ({"box_column": "box"}, "box_column: got 'box', accepted: a column"),
        ({"box_column": "image"}, "box_column: row 0 has"),
        ({"image_column": "picture"}, "image_column: got 'picture', accepted: a column"),
        ({"taus": (0.2, 1.0)}, r"taus: got \[0.2, 1.0\], accepted: cosines of at least -1, below 1"),
        ({"image_size": 50}, "image_size: got 50, accepted: a multiple of the model's patch size"),
        ({"image_size": 8}, r"image_size: got 8, accepted for discovery: at least two patches \(16\)"),
        ({"image_size": 640}, "image_size: got 640, 9600 patches an image, accepted for discovery: at most 8192"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message):
    request = dict(change)
    with pytest.raises(ValueError, match=message):
        evaluate_discovery(bench(request.pop("image_size", 64)), bright_boxes(2), **request)


def test_data_without_objects_are_refused():
    with pytest.raises(
        ValueError, match="mask_column: none of the 2 rows has a value in 'instances' other than 0 and"
    ):
        evaluate_discovery(bench(), bright_boxes(2, value=255), ignore_index=255)
