"""Scenes: a function of their arguments, true to their annotations, and hard for pixels."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from dinov3_hf.data.scene_rendering import (
    BACKGROUND_DEPTH,
    COLOURS,
    MATERIALS,
    SCENE_CLASSES,
    SPLITS,
    SUBSETS,
    held_out,
    render_object,
    render_scene,
    sample_objects,
)
from dinov3_hf.data.scene_shapes import NUM_PROPORTIONS, SHAPES
from dinov3_hf.data.scenes import load_scenes, scenes_checksum


def same(first, second):
    for field in ("image", "mask", "instances", "depth", "keypoints"):
        assert np.array_equal(getattr(first, field), getattr(second, field)), field
    assert first.label == second.label and first.caption == second.caption


def test_checksum_is_frozen():
    """Numbers measured on the scenes hold for this content only: change SCENES_VERSION with it."""
    assert scenes_checksum() == "beb92a44399b15a4"


def silhouettes(scene):
    """What each object [N, H, W] would cover if it stood alone."""
    size = len(scene.image)
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    alone = np.zeros((len(scene.objects), size, size), np.uint8)
    for item, instances in zip(scene.objects, alone, strict=True):
        image, depth, mask = np.zeros((size, size, 3)), np.zeros((size, size)), np.zeros((size, size), np.uint8)
        render_object(item, 0, centres, (0.0, 1.0), image, depth, instances, mask)
    return alone > 0


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_scene_is_a_function_of_its_arguments(subset):
    later = render_scene(7, subset=subset)
    for index in (3, 0):
        render_scene(index, subset=subset)
    same(later, render_scene(7, subset=subset))
    others = [{"seed": 1}, {"split": "test"}, {"index": 17}]
    for other in others:
        assert not np.array_equal(later.image, render_scene(**{"index": 7, "subset": subset, **other}).image)


@pytest.mark.parametrize("subset", ["single", "crowded"])
def test_content_does_not_depend_on_the_size_in_pixels(subset):
    for index in range(10):
        small, large = render_scene(index, subset=subset), render_scene(index, subset=subset, image_size=128)
        halved = large.image.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(halved - small.image).mean() < 6
        assert (large.mask[::2, ::2] == small.mask).mean() > 0.97
        assert np.allclose(large.keypoints[..., :2], 2 * small.keypoints[..., :2], atol=1e-2)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_in_single(split):
    labels = [render_scene(index, split).label for index in range(50)]
    assert np.bincount(labels, minlength=10).tolist() == [5] * 10
    assert labels[:10] != labels[10:20]


def test_no_object_is_in_two_splits():
    objects = [
        tuple(item.proportions)
        for split in SPLITS
        for index in range(200)
        for item in sample_objects(index, split, "single", 0)
    ]
    assert len(set(objects)) == len(objects) == 800


@pytest.mark.parametrize("subset", SUBSETS)
def test_held_out_combinations_are_where_they_belong(subset):
    for split in SPLITS:
        for index in range(60):
            for item in sample_objects(index, split, subset, seed=0):
                assert held_out(item.label, item.colour, item.material) == (split == "compositional")


def test_every_class_keeps_most_colours_and_materials():
    for label in range(len(SCENE_CLASSES)):
        pairs = [(c, m) for c in range(len(COLOURS)) for m in range(len(MATERIALS)) if not held_out(label, c, m)]
        assert len({c for c, _ in pairs}) == len(COLOURS) - 1 and len({m for _, m in pairs}) == len(MATERIALS) - 1


@pytest.mark.parametrize("subset", SUBSETS)
def test_annotations_agree_with_each_other(subset):
    seen_points = 0
    for index in range(30):
        scene = render_scene(index, subset=subset)
        assert set(np.unique(scene.instances)) <= set(range(len(scene.objects) + 1))
        assert ((scene.instances == 0) == (scene.mask == 0)).all()
        assert (scene.depth[scene.instances == 0] >= BACKGROUND_DEPTH - 1.5).all()
        areas = []
        for number, item in enumerate(scene.objects):
            region = scene.instances == number + 1
            areas.append(region.sum())
            assert (scene.mask[region] == item.label + 1).all()
            assert (np.abs(scene.depth[region] - item.depth) <= 0.16).all()
            for x, y, visible in scene.keypoints[number]:
                if visible:
                    assert region[int(y), int(x)]
                    seen_points += 1
        assert scene.label == scene.objects[int(np.argmax(areas))].label
        # Objects are drawn far ones first, so what is seen at a pixel is the nearest there.
        depths = [item.depth for item in scene.objects]
        assert depths == sorted(depths, reverse=True)
    assert seen_points > 30


@pytest.mark.parametrize("name", SHAPES)
def test_keypoints_lie_inside_their_shape(name):
    grid = (np.arange(400) + 0.5) / 200 - 1
    for seed in range(20):
        proportions = np.random.default_rng(seed).random(NUM_PROPORTIONS)
        _, points = SHAPES[name](np.zeros(1), np.zeros(1), proportions)
        x, y = np.array(points, float).T
        distance, _ = SHAPES[name](x, y, proportions)
        assert (distance < 0.02).all(), (name, seed, distance)
        area = (SHAPES[name](grid[None], grid[:, None], proportions)[0] < 0).mean()
        assert 0.08 < area < 0.75, (name, area)


def test_single_has_one_dominant_object():
    shares = [(render_scene(index).instances > 0).mean() for index in range(100)]
    assert all(len(render_scene(index).objects) == 1 for index in range(10)) and np.median(shares) > 0.1


def test_crowded_has_up_to_five_objects_that_overlap():
    scenes = [render_scene(index, subset="crowded") for index in range(60)]
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4, 5}
    overlapping = [(silhouettes(scene).sum(0) > 1).any() for scene in scenes]
    assert np.mean(overlapping) > 0.7


@pytest.mark.parametrize("subset", ["crowded", "pairs", "clips"])
def test_the_nearest_object_is_the_one_seen(subset):
    for index in range(40):
        scene = render_scene(index, subset=subset)
        distance = np.where(silhouettes(scene), np.array([o.depth for o in scene.objects])[:, None, None], np.inf)
        nearest = np.where(np.isinf(distance).all(0), 0, distance.argmin(0) + 1)
        assert np.array_equal(scene.instances, nearest)


def test_pairs_show_the_same_instances_from_two_views():
    for index in range(0, 12, 2):
        first, second = (render_scene(row, subset="pairs") for row in (index, index + 1))
        assert not np.array_equal(first.image, second.image)
        kinds = [
            sorted((o.instance_id, o.label, o.colour, o.material, tuple(o.proportions)) for o in scene.objects)
            for scene in (first, second)
        ]
        assert kinds[0] == kinds[1]
    rows = load_scenes("train", 4, subset="pairs")
    assert [row["scene"] for row in rows] == [0, 0, 1, 1] and [row["frame"] for row in rows] == [0, 1, 0, 1]


@pytest.mark.parametrize("subset, size", [("pairs", 2), ("clips", 8)])
def test_rows_number_the_same_object_alike_in_every_view(subset, size):
    """Value k of `instances` is the object of `keypoints[k - 1]`, whichever is nearer in this view."""
    rows, swapped = load_scenes("train", 48, subset=subset), 0
    for index, row in enumerate(rows):
        scene, instances = render_scene(index, subset=subset), np.asarray(row["instances"])
        ids = [item["instance_id"] for item in row["keypoints"]]
        assert ids == [item["instance_id"] for item in rows[index // size * size]["keypoints"]]
        for number, item in enumerate(scene.objects):
            place = ids.index(item.instance_id)
            assert np.array_equal(instances == place + 1, scene.instances == number + 1)
            assert np.allclose(row["keypoints"][place]["points"], scene.keypoints[number])
            swapped += place != number
    assert swapped


def test_matching_keypoints_are_the_same_place_of_the_object():
    """Carried back into the object's own frame, the keypoints of both views agree."""
    for index in range(0, 12, 2):
        frames = []
        for row in (index, index + 1):
            scene = render_scene(row, subset="pairs")
            own = {}
            for item, points in zip(scene.objects, scene.keypoints, strict=True):
                local = (points[:, :2] / 64 - (item.x, item.y)) / item.radius
                cos, sin = np.cos(item.angle), np.sin(item.angle)
                own[item.instance_id] = local @ np.array([[cos, -sin], [sin, cos]]) * (-1 if item.flip else 1, 1)
            frames.append(own)
        for instance in frames[0]:
            assert np.allclose(frames[0][instance], frames[1][instance], atol=1e-4)


def test_clips_move_smoothly():
    for clip in range(4):
        frames = [render_scene(8 * clip + frame, subset="clips") for frame in range(8)]
        for before, after in zip(frames, frames[1:], strict=False):
            for one, two in zip(before.objects, after.objects, strict=True):
                assert one.instance_id == two.instance_id
                assert 0 < np.hypot(one.x - two.x, one.y - two.y) < 0.05 and abs(one.angle - two.angle) < 0.1
            assert (before.instances == after.instances).mean() > 0.8


def test_captions_are_true():
    for subset in ("single", "crowded"):
        for index in range(60):
            scene = render_scene(index, subset=subset)
            names = {(list(COLOURS)[o.colour], MATERIALS[o.material], SCENE_CLASSES[o.label]) for o in scene.objects}
            words = scene.caption.replace(":", "").split()
            told = [position for position, word in enumerate(words) if word in SCENE_CLASSES]
            assert told
            for position in told:
                colour, kind = words[position - 1], words[position]
                material = words[position - 2] if words[position - 2] in MATERIALS else "plain"
                assert (colour, material, kind) in names, scene.caption
            for relation, axis, sign in (("left", "x", -1), ("right", "x", 1), ("above", "y", -1), ("below", "y", 1)):
                if relation in words:
                    one, other = (
                        {getattr(o, axis) for o in scene.objects if SCENE_CLASSES[o.label] == words[place]}
                        for place in told
                    )
                    assert any(sign * (a - b) > 0 for a in one for b in other), scene.caption


def test_rows_hold_what_was_rendered():
    row, scene = (
        load_scenes("train", 1, subset="crowded", image_size=48)[0],
        render_scene(0, subset="crowded", image_size=48),
    )
    assert np.array_equal(np.asarray(row["image"]), scene.image)
    assert np.array_equal(np.asarray(row["mask"]), scene.mask)
    assert np.array_equal(np.asarray(row["instances"]) > 0, scene.instances > 0)
    assert np.abs(np.asarray(row["depth"]) / 1000 - scene.depth).max() < 2e-3
    assert row["caption"] == scene.caption and row["label"] == scene.label
    assert len(row["keypoints"]) == len(scene.objects) and np.array(row["keypoints"][0]["points"]).shape == (6, 3)


def test_stream_equals_data_set_and_shards_share_it():
    rows, stream = load_scenes("test", 70), load_scenes("test", 70, streaming=True)
    assert stream.num_shards == 64
    assert [row["instance_id"] for row in stream] == rows["instance_id"]
    shares = [[row["instance_id"] for row in stream.shard(3, index)] for index in range(3)]
    assert sorted(sum(shares, [])) == sorted(rows["instance_id"])
    assert set(stream.features) == set(rows.features)


@pytest.mark.parametrize("subset, size", [("pairs", 2), ("clips", 8)])
def test_no_pair_or_clip_is_split_over_shards(subset, size):
    stream = load_scenes("train", 67 * size, subset=subset, image_size=8, streaming=True).select_columns("scene")
    shards = [[row["scene"] for row in stream.shard(64, index)] for index in range(64)]
    assert sum(shards, []) == [scene for scene in range(67) for _ in range(size)]
    assert all(len(scenes) == size * len(set(scenes)) for scenes in shards)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"split": "dev"}, "split: got 'dev', accepted: train, validation, test, compositional"),
        ({"subset": "busy"}, "subset: got 'busy', accepted: single, crowded, pairs, clips"),
        ({"num_images": 0}, "num_images: got 0"),
        ({"num_images": True}, "num_images: got True, accepted: a whole number of at least 1"),
        ({"image_size": 4}, "image_size: got 4"),
        ({"seed": -1}, "seed: got -1, accepted: a whole number of at least 0"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        load_scenes(**{"split": "train", "num_images": 2, **given})
    if "num_images" not in given:
        with pytest.raises(ValueError, match=message):
            render_scene(**{"index": 0, **given})


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match="index: got -1, accepted: a whole number of at least 0"):
        render_scene(-1)


def hue_histograms(images):
    """Histograms [N, 20 * 4] of hue and saturation, square roots as the Hellinger distance wants them."""
    largest, smallest = images.amax(-1), images.amin(-1)
    spread = (largest - smallest).clamp(min=1e-3)
    red, green, blue = images.unbind(-1)
    hue = torch.where(largest == green, (blue - red) / spread + 2, (red - green) / spread + 4)
    hue = torch.where(largest == red, ((green - blue) / spread) % 6, hue) / 6
    bins = (hue * 20).long().clamp(0, 19) * 4 + (spread / largest.clamp(min=1) * 4).long().clamp(0, 3)
    return torch.stack([torch.bincount(row.flatten(), minlength=80) for row in bins]).float().sqrt()


def test_neighbours_by_raw_pixels_and_by_colours_seldom_share_the_class():
    from dinov3_hf.pipelines.neighbours import knn_classify

    def read(split, count):
        scenes = [render_scene(index, split) for index in range(count)]
        images = torch.tensor(np.stack([scene.image for scene in scenes])).float()
        return images.flatten(1), hue_histograms(images), torch.tensor([scene.label for scene in scenes])

    *bank, labels = read("train", 1000)
    *queries, truth = read("test", 400)
    for name, features, asked in zip(("pixels", "colours"), bank, queries, strict=True):
        accuracy = (knn_classify(features, labels, asked, 10, 10) == truth).float().mean().item()
        assert accuracy < 0.3, f"{name}: {accuracy}"


def test_scene_object_poses_are_the_only_change_between_views():
    """`dataclasses.replace` keeps this honest: every field but the pose is shared by the two views of a pair."""
    pose = {"x", "y", "radius", "angle", "flip", "depth"}
    for one in sample_objects(0, "train", "pairs", 0):
        two = next(o for o in sample_objects(1, "train", "pairs", 0) if o.instance_id == one.instance_id)
        for field in dataclasses.fields(one):
            if field.name not in pose:
                assert np.array_equal(getattr(one, field.name), getattr(two, field.name)), field.name


def test_encoded_image_is_a_file_anyone_can_read():
    row = next(iter(load_scenes("train", 1, streaming=True).decode(False)))
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (64, 64)


def test_an_object_looks_smaller_the_farther_it_is():
    objects = [item for index in range(200) for item in render_scene(index, "train", "crowded").objects]
    depth, radius = np.array([item.depth for item in objects]), np.array([item.radius for item in objects])
    assert np.corrcoef(depth, 1 / radius)[0, 1] > 0.9
