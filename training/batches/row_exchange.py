"""Exchange of batch rows between processes, each of which has one slice of the global batch and needs another."""

import itertools

import torch
import torch.distributed as dist


def slices_of(groups: list[list[int]], global_batch: int) -> list[tuple[int, int]]:
    """Return the images [start, stop) of every process, by rank; each group splits the global batch evenly."""
    slices: dict[int, tuple[int, int]] = {}
    for ranks in groups:
        width = global_batch // len(ranks)
        slices |= {rank: (place * width, (place + 1) * width) for place, rank in enumerate(ranks)}
    return [slices[rank] for rank in sorted(slices)]


def ranks_of(group_sizes: list[int]) -> list[list[int]]:
    """Return the ranks of each group; groups have consecutive ranks."""
    ends = list(itertools.accumulate(group_sizes))
    return [list(range(end - size, end)) for end, size in zip(ends, group_sizes, strict=True)]


class RowExchange:
    """Send images, and rows that belong to images, to the processes that need them.

    Process s of `group` has images s B to (s + 1) B of the global batch; process p receives the images `slices[p]` =
    [start, stop). Each process is sent only what it needs. The exchange is not differentiable.
    """

    def __init__(self, slices: list[tuple[int, int]], group: dist.ProcessGroup):
        self.slices, self.group, self.rank = slices, group, dist.get_rank(group)

    def images(self, values: torch.Tensor) -> torch.Tensor:
        """Exchange values [G, B, ...] of the own images; returns [G, b, ...] of the images of the slice."""
        start, stop = self.slices[self.rank]
        moved = self._move(values.transpose(0, 1), [1] * values.shape[1], [1] * (stop - start))
        return moved.transpose(0, 1).contiguous()

    def patches(self, rows: torch.Tensor, masks: torch.Tensor, moved_masks: torch.Tensor) -> torch.Tensor:
        """Exchange rows [M, K] of the patches selected by masks [G, B, P]; returns the rows of the exchanged masks."""
        held, expected = (mask.sum(dim=(0, 2)).tolist() for mask in (masks, moved_masks))
        moved = self._move(rows[_image_by_image(masks)], held, expected)
        result = torch.empty_like(moved)
        result[_image_by_image(moved_masks)] = moved
        return result

    def _move(self, rows: torch.Tensor, held: list[int], expected: list[int]) -> torch.Tensor:
        """Exchange rows sorted by image: `held[i]` rows of own image i, `expected[j]` rows of image j of the slice."""
        images, starts = len(held), [0, *itertools.accumulate(held)]
        parts = [_overlap(wanted, self.rank * images, images) for wanted in self.slices]
        parts = [rows[starts[first] : starts[last]] for first, last in parts]
        start, stop = self.slices[self.rank]
        starts, sources = [0, *itertools.accumulate(expected)], range(len(self.slices))
        ends = [_overlap((source * images, (source + 1) * images), start, stop - start) for source in sources]
        lengths = [starts[last] - starts[first] for first, last in ends]
        moved = rows.new_empty((starts[-1], *rows.shape[1:]))
        dist.all_to_all_single(moved, torch.cat(parts), lengths, [len(part) for part in parts], group=self.group)
        return moved


def _overlap(wanted: tuple[int, int], start: int, length: int) -> tuple[int, int]:
    """Return the part of [start, start + length) that is in `wanted`, relative to start."""
    first, last = (min(max(end - start, 0), length) for end in wanted)
    return first, last


def _image_by_image(masks: torch.Tensor) -> torch.Tensor:
    """Return the indices that sort the rows selected by masks [G, B, P] from crop by crop to image by image."""
    places = torch.zeros(masks.shape, dtype=torch.long, device=masks.device)
    places[masks] = torch.arange(int(masks.sum()), device=masks.device)
    return places.transpose(0, 1)[masks.transpose(0, 1)]
