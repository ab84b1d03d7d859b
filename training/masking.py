"""Block masks of the patch objective (iBOT, section 3.3, after BEiT), one for each position in the global batch."""

import math
from collections.abc import Sequence

import numpy as np


# Constants that give independent random streams under the same seed.
SELECTION, SHAPE = 0x5E1EC7, 0x5A4BE
MIN_BLOCK_PATCHES, MIN_ASPECT, TRIES = 4, 0.3, 10


def mask_targets(
    num_crops: int, probability: float, ratio: Sequence[float], patches: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the number of masked patches of each crop [num_crops]: 0, or one of evenly spaced counts, shuffled."""
    masked = int(num_crops * probability)
    least, most = ratio
    shares = np.linspace(least, most, masked + 1)[1:]
    targets = np.zeros(num_crops, dtype=int)
    targets[rng.permutation(num_crops)[:masked]] = (patches * shares).astype(int)
    return targets


def block_mask(grid: tuple[int, int], target: int, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of exactly `target` patches, bool [h, w]: rectangles first, then single patches."""
    height, width = grid
    mask = np.zeros(grid, dtype=bool)
    count, largest = 0, height * width // 2
    while count < target:
        missing = min(target - count, largest)
        for _ in range(TRIES):
            area = rng.uniform(MIN_BLOCK_PATCHES, max(missing, MIN_BLOCK_PATCHES))
            aspect = math.exp(rng.uniform(math.log(MIN_ASPECT), -math.log(MIN_ASPECT)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < h < height and 0 < w < width):
                continue
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            block = mask[top : top + h, left : left + w]
            new = h * w - int(block.sum())
            if 0 < new <= missing:
                block[:] = True
                count += new
                break
        else:
            break
    free = np.flatnonzero(~mask)
    mask.flat[rng.permutation(free)[: target - count]] = True
    return mask


def draw_masks(
    grid: tuple[int, int],
    num_crops: int,
    global_batch: int,
    step: int,
    seed: int,
    probability: float,
    ratio: Sequence[float],
    start: int,
    stop: int,
) -> np.ndarray:
    """Draw the masks of a step for images `start` to `stop` of the global batch: bool [num_crops, stop - start, P].

    The masked crops and their numbers of masked patches are drawn for the whole global batch, the shape of each mask
    from the crop's position in it, so that the masks do not depend on the number of processes.
    """
    patches = grid[0] * grid[1]
    rng = np.random.default_rng([seed, SELECTION, step])
    targets = mask_targets(num_crops * global_batch, probability, ratio, patches, rng).reshape(num_crops, global_batch)
    masks = np.zeros((num_crops, stop - start, patches), dtype=bool)
    for crop in range(num_crops):
        for position in range(start, stop):
            if targets[crop, position]:
                rng = np.random.default_rng([seed, SHAPE, step, crop, position])
                masks[crop, position - start] = block_mask(grid, targets[crop, position], rng).ravel()
    return masks
