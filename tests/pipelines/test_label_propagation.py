"""Labels are carried from frame to frame by the nearest patches."""

import math

import pytest
import torch

from dinov3_hf.pipelines import label_propagation
from dinov3_hf.pipelines.label_propagation import LabelPropagation, Propagation, soft_labels


def naive_propagation(frames, first_labels, grid, settings):
    """Labels of every frame after the first, patch by patch, in double precision."""
    unit = [(frame.double() / frame.double().norm(dim=1, keepdim=True)).tolist() for frame in frames]
    labels = [first_labels.double().tolist()]
    for now in range(1, len(frames)):
        context = [0, *range(max(1, now - settings.context_frames), now)]
        found = []
        for patch in range(grid[0] * grid[1]):
            y, x = divmod(patch, grid[1])
            candidates = []
            for frame in context:
                for other in range(grid[0] * grid[1]):
                    v, u = divmod(other, grid[1])
                    if (v - y) ** 2 + (u - x) ** 2 <= settings.radius**2:
                        cosine = sum(a * b for a, b in zip(unit[now][patch], unit[frame][other], strict=True))
                        candidates.append((cosine, labels[frame][other]))
            nearest = sorted(candidates, key=lambda one: -one[0])[: settings.top_k]
            weights = [math.exp(cosine / settings.temperature) for cosine, _ in nearest]
            found.append(
                [
                    sum(w * label[c] for w, (_, label) in zip(weights, nearest, strict=True)) / sum(weights)
                    for c in range(first_labels.shape[1])
                ]
            )
        labels.append(found)
    return [torch.tensor(found, dtype=torch.float64) for found in labels[1:]]


@pytest.mark.parametrize("tile", [2, 8])
@pytest.mark.parametrize(
    "grid, settings",
    [
        ((4, 6), Propagation(7, 12, 5, 0.2)),
        ((5, 4), Propagation(1, 1.5, 3, 0.07)),
        ((3, 5), Propagation(0, 2, 4, 0.5)),
        ((4, 4), Propagation(2, 0, 5, 0.2)),
    ],
)
def test_propagation_is_that_of_a_naive_loop(grid, settings, tile, monkeypatch):
    monkeypatch.setattr(label_propagation, "TILE", tile)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(5, grid[0] * grid[1], 6, generator=generator) + 0.5
    labels = torch.rand(grid[0] * grid[1], 3, generator=generator).softmax(1)
    expected = naive_propagation(frames, labels, grid, settings)
    carried = LabelPropagation(frames[0], labels, grid, settings)
    for frame, wanted in zip(frames[1:], expected, strict=True):
        torch.testing.assert_close(carried.step(frame).double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("radius, taken", [(2.9, False), (3, True), (12, True)])
def test_only_patches_within_the_radius_are_taken(radius, taken):
    # One patch of the first frame is the object; in the next, the patch three to its right looks like it.
    first = torch.tensor([[1.0, 0.0]]).repeat(36, 1)
    second = first.clone()
    first[13], second[16] = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    labels = torch.zeros(36, 2)
    labels[:, 0], labels[13] = 1, torch.tensor([0.0, 1.0])
    found = LabelPropagation(first, labels, (6, 6), Propagation(7, radius, 1, 0.2)).step(second)
    assert found[:, 1].nonzero().flatten().tolist() == ([16] if taken else [])


@pytest.mark.parametrize("context_frames, remembered", [(3, False), (4, True)])
def test_the_queue_forgets_old_frames(context_frames, remembered):
    # A patch moves out of the reach of the first frame's; then hidden for three frames, it is found only in the queue.
    looks = torch.eye(3)
    frames = looks[0].repeat(6, 8, 1)
    for frame, place in ((0, 0), (1, 2), (5, 4)):
        frames[frame, place] = looks[1]
    labels = torch.zeros(8, 2)
    labels[:, 0], labels[0] = 1, torch.tensor([0.0, 1.0])
    carried = LabelPropagation(frames[0], labels, (1, 8), Propagation(context_frames, 2, 1, 0.2))
    found = [carried.step(frame) for frame in frames[1:]]
    assert found[0][2, 1] == 1 and found[3][:, 1].sum() == 0
    assert found[4][4, 1] == (1 if remembered else 0)


def test_soft_labels_are_shares_of_area():
    mask = torch.randint(3, (7, 10), generator=torch.Generator().manual_seed(0))
    fine = mask.repeat_interleave(3, 0).repeat_interleave(4, 1)  # 21x40: whole pixels for cells of 7x10
    cells = torch.nn.functional.one_hot(fine, 3).unflatten(0, (3, 7)).unflatten(2, (4, 10)).double().mean((1, 3))
    torch.testing.assert_close(soft_labels(mask, 3, (3, 4)).double(), cells.flatten(0, 1), rtol=0, atol=1e-6)
    assert torch.equal(soft_labels(mask, 3, (7, 10)), torch.nn.functional.one_hot(mask.flatten(), 3).float())
