"""Masks made by clicks and carried through frames: by hand-made tokens, step by step, and on a scene's clip."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.evaluation.tracking import region_similarity
from dinov3_hf.pipelines.encoder import Encoder
from dinov3_hf.pipelines.inputs import read_clip
from dinov3_hf.pipelines.label_propagation import LabelPropagation, Propagation, soft_labels
from dinov3_hf.pipelines.tracking import (
    PROPAGATION,
    Clip,
    Selection,
    box_mask,
    draw_mask,
    follow,
    similar_mask,
    write_video,
)


@pytest.fixture(scope="module")
def encoder():
    return Encoder.from_pretrained()


@pytest.fixture(scope="module")
def clip():
    rows = load_scenes("validation", 8, subset="clips", image_size=128)
    return [row["image"].convert("RGB") for row in rows], [np.array(row["instances"]) for row in rows]


@pytest.mark.parametrize("corners", [[[2, 1], [4, 3]], [[4, 3], [2, 1]], [[2.9, 3.2], [4.5, 1.1]]])
def test_a_box_holds_its_corners_in_any_order(corners):
    expected = torch.zeros(5, 7, dtype=torch.bool)
    for y in range(1, 4):
        for x in range(2, 5):
            expected[y, x] = True
    assert torch.equal(box_mask((7, 5), torch.tensor(corners)), expected)


def strips(*directions):
    """Tokens [4,8,D] of as many upright strips of equal width as there are directions."""
    columns = torch.tensor(directions, dtype=torch.float32).repeat_interleave(8 // len(directions), 0)
    return columns[None].repeat(4, 1, 1)


def test_clicks_choose_what_looks_alike_and_hangs_together():
    tokens = strips([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0])
    mask = similar_mask(tokens, (8, 4), torch.tensor([[0, 0]]), threshold=0.9)
    assert torch.equal(mask, torch.tensor([True, True, False, False, False, False, False, False]).expand(4, 8))
    both = similar_mask(tokens, (8, 4), torch.tensor([[0, 0], [5, 3]]), threshold=0.9)
    assert both.all(0).tolist() == [True, True, False, False, True, True, True, True]


def test_corners_that_touch_hang_together():
    tokens = strips([0, 1], [0, 1]).clone()
    for step in range(4):
        tokens[step, 2 + step] = torch.tensor([1.0, 0])
    mask = similar_mask(tokens, (8, 4), torch.tensor([[2, 0]]), threshold=0.5)
    assert [mask[step, 2 + step].item() for step in range(4)] == [True] * 4 and mask.sum() == 4


def test_clicks_on_the_background_take_away_what_looks_more_like_them():
    near = strips([1, 0, 0.2], [1, 0, -0.2], [0, 1, 0], [0, 1, 0])
    alone = similar_mask(near, (8, 4), torch.tensor([[0, 0]]), threshold=0.5)
    assert alone.all(0).tolist() == [True] * 4 + [False] * 4
    mask = similar_mask(near, (8, 4), torch.tensor([[0, 0]]), torch.tensor([[3, 1]]), threshold=0.5)
    assert mask.all(0).tolist() == [True] * 2 + [False] * 6


def test_a_mask_is_drawn_in_pixels_of_the_image():
    # The last click lies on the edge itself.
    mask = similar_mask(strips([1, 0], [0, 1]), (160, 60), torch.tensor([[159, 59], [160, 60]]), threshold=0)
    assert mask.shape == (60, 160) and mask[:, 80:].all() and not mask[:, :80].any()


def test_a_selection_is_what_its_clicks_mark():
    tokens, image = strips([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]), Image.new("RGB", (8, 4), "white")
    empty = Selection(image, tokens)
    assert empty.mask(0.5) is None and empty.click("background", (1, 1)).mask(0.5) is None
    on = empty.click("on", (0, 0)).click("background", (7, 0))
    expected = similar_mask(tokens, (8, 4), torch.tensor([[0, 0]]), torch.tensor([[7, 0]]), 0.5)
    assert torch.equal(on.mask(0.5), expected)
    # A box takes their place, is none with one corner, and a third corner begins another.
    assert on.click("corner", (1, 1)).mask(0.5) is None
    box = on.click("corner", (1, 1)).click("corner", (3, 2))
    assert torch.equal(box.mask(0.5), box_mask((8, 4), torch.tensor([[1, 1], [3, 2]])))
    assert box.click("corner", (5, 3)).clicks == (("corner", (5, 3)),)
    assert box.click("on", (0, 0)).clicks == (("on", (0, 0)),)


def test_a_mask_is_seen_in_its_place():
    box = Selection(Image.new("RGB", (200, 100), "white"), torch.zeros(2, 4, 3)).click("corner", (40, 20))
    drawn = np.asarray(box.click("corner", (159, 79)).draw(0.5))
    tinted = (drawn != 255).any(2)
    assert tinted[30:70, 50:150].all() and not tinted[:10].any() and not tinted[:, :30].any()
    assert np.array_equal(
        draw_mask(Image.new("RGB", (4, 4), "red"), torch.zeros(4, 4)), Image.new("RGB", (4, 4), "red")
    )


def test_frames_are_followed_as_the_protocol_does(encoder, clip):
    frames, masks = clip
    mask = torch.from_numpy(masks[0])
    tokens = [encoder.tokens(frame, 96).flatten(0, 1) for frame in frames]
    objects = int(mask.max()) + 1
    by_hand = LabelPropagation(tokens[0], soft_labels(mask, objects, (12, 12)).to(tokens[0]), (12, 12), PROPAGATION)
    found = list(follow(encoder, frames, mask, 96))
    assert len(found) == len(frames) and torch.equal(found[0], mask.long())
    for one, here in zip(tokens[1:], found[1:], strict=True):
        soft = by_hand.step(one).T.view(1, objects, 12, 12)
        assert torch.equal(here, interpolate(soft, (128, 128), mode="bilinear")[0].argmax(0).cpu())


def test_objects_of_scenes_are_followed(encoder, clip):
    frames, masks = clip
    found = list(follow(encoder, frames, torch.from_numpy(masks[0]) > 0, 192))
    overlaps = [region_similarity(one.numpy() > 0, mask > 0) for one, mask in zip(found[1:], masks[1:], strict=True)]
    still = [region_similarity(masks[0] > 0, mask > 0) for mask in masks[1:]]
    assert np.mean(overlaps) > 0.8 > np.mean(still) + 0.1


def test_frames_are_read_only_when_asked_for(encoder, clip):
    read = []

    def frames():
        for frame in clip[0]:
            read.append(frame)
            yield frame

    following = follow(encoder, frames(), torch.from_numpy(clip[1][0]), 48, Propagation(1, 3, 1, 0.1))
    next(following), next(following)
    assert len(read) == 2


def test_a_mask_of_another_size_is_refused(encoder):
    frames = [Image.new("RGB", (32, 24))] * 2
    with pytest.raises(ValueError, match=r"^mask: got shape \(32, 24\), accepted: \(24, 32\), as frames$"):
        list(follow(encoder, frames, torch.ones(32, 24), 48))


def test_clips_keep_their_frames_at_one_size(clip):
    frames, _ = clip
    kept = Clip.of([frames[0], frames[1].resize((40, 30))], 5)
    assert len(kept) == 2 and kept[1].size == (128, 128) and kept.rate == 5
    assert np.abs(np.asarray(kept[0], float) - np.asarray(frames[0])).mean() < 3
    assert sum(map(len, kept.frames)) < 2 * 128 * 128 * 3 / 4


def test_videos_hold_the_frames_at_their_rate(tmp_path):
    pytest.importorskip("av")
    frames = [Image.new("RGB", (61, 35), (20 * number, 100, 50)) for number in range(10)]
    write_video(iter(frames), 2.5, tmp_path / "clip.mp4")
    read, rate = read_clip(tmp_path / "clip.mp4", 512)
    assert rate == pytest.approx(2.5) and [frame.size for frame in read] == [(62, 36)] * 10
    for number, frame in enumerate(read):
        assert np.abs(np.subtract(frame.getpixel((30, 17)), (20 * number, 100, 50))).max() < 8
