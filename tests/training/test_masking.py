"""Masks: exact counts, blocks, and independence from the number of processes."""

import numpy as np
import pytest

from dinov3_hf.training.masking import block_mask, draw_masks


DRAW = {
    "grid": (8, 6),
    "num_crops": 2,
    "global_batch": 8,
    "step": 3,
    "seed": 0,
    "probability": 0.5,
    "ratio": (0.1, 0.5),
}


def test_counts_are_exactly_those_of_the_method():
    counts = np.sort(draw_masks(**DRAW, start=0, stop=8).sum(-1).ravel())
    expected = [0] * 8 + [int(48 * share) for share in np.linspace(0.1, 0.5, 9)[1:]]
    assert counts.tolist() == expected


def test_shares_of_a_batch_join_to_the_whole():
    whole = draw_masks(**DRAW, start=0, stop=8)
    parts = [draw_masks(**DRAW, start=start, stop=start + 2) for start in range(0, 8, 2)]
    assert whole.shape == (2, 8, 48) and whole.dtype == bool
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_steps_and_seeds_differ():
    whole = draw_masks(**DRAW, start=0, stop=8)
    assert not np.array_equal(whole, draw_masks(**DRAW | {"step": 4}, start=0, stop=8))
    assert not np.array_equal(whole, draw_masks(**DRAW | {"seed": 1}, start=0, stop=8))
    assert np.array_equal(whole, draw_masks(**DRAW, start=0, stop=8))


@pytest.mark.parametrize("grid", [(14, 14), (8, 6), (2, 2), (1, 5), (1, 1)])
def test_every_target_is_met_on_every_grid(grid):
    for target in range(grid[0] * grid[1] + 1):
        mask = block_mask(grid, target, np.random.default_rng(target))
        assert mask.shape == grid and mask.sum() == target


def test_masks_are_blocks_not_specks():
    """Neighbours share their state far more often than in a mask of single patches."""
    agree, single = [], []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        mask = block_mask((14, 14), 60, rng)
        specks = rng.permutation(mask.ravel()).reshape(14, 14)
        agree.append((mask[:, 1:] == mask[:, :-1]).mean())
        single.append((specks[:, 1:] == specks[:, :-1]).mean())
    assert np.mean(agree) > np.mean(single) + 0.15
