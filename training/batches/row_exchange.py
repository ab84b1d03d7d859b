"""Rows of a batch moved between processes: from one slice of the global batch on each to the slice that each needs."""

import itertools

import torch
import torch.distributed as dist


def slices_of(groups: list[list[int]], global_batch: int) -> list[tuple[int, int]]:
    """Return for every process, rank by rank, which images [start, stop) it takes: each group shares out all."""
    slices = {}
    for ranks in groups:
        width = global_batch // len(ranks)
        slices |= {rank: (place * width, (place + 1) * width) for place, rank in enumerate(ranks)}
    return [slices[rank] for rank in sorted(slices)]


def ranks_of(group_sizes: list[int]) -> list[list[int]]:
    """Return the ranks of each group, one group after the other."""
    ends = list(itertools.accumulate(group_sizes))
    return [list(range(end - size, end)) for end, size in zip(ends, group_sizes, strict=True)]


class RowExchange:
    """Hand images, and rows that belong to images, to the processes that need them.

    Process s of `group` holds images s B to (s + 1) B of the global batch; process p gets `slices[p]` = [start, stop).
    Only what a process needs is sent to it, and nothing is differentiated.
    """

    def __init__(self, slices: list[tuple[int, int]], group: dist.ProcessGroup):
        self.slices, self.group, self.rank = slices, group, dist.get_rank(group)

    def images(self, values: torch.Tensor) -> torch.Tensor:
        """Move values [G, B, ...] of own images; returns [G, b, ...] of the images of the slice."""
        start, stop = self.slices[self.rank]
        moved = self._move(values.transpose(0, 1), [1] * values.shape[1], [1] * (stop - start))
        return moved.transpose(0, 1).contiguous()

    def patches(self, rows: torch.Tensor, masks: torch.Tensor, moved_masks: torch.Tensor) -> torch.Tensor:
        """Move rows [M, K] of the patches where masks [G, B, P] are true, crop by crop; returns those of the moved masks."""
        held, expected = (mask.sum(dim=(0, 2)).tolist() for mask in (masks, moved_masks))
        moved = self._move(rows[_image_by_image(masks)], held, expected)
        result = torch.empty_like(moved)
        result[_image_by_image(moved_masks)] = moved
        return result

    def _move(self, rows: torch.Tensor, held: list[int], expected: list[int]) -> torch.Tensor:
        """Move rows that lie image by image: `held[i]` of own image i, `expected[j]` of image j of the slice."""
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
    """Return the part of [start, start + length) that lies in `wanted`, counted from start."""
    first, last = (min(max(end - start, 0), length) for end in wanted)
    return first, last


def _image_by_image(masks: torch.Tensor) -> torch.Tensor:
    """Return the rows' places, crop by crop, in the order image by image; masks [G, B, P] say which have one."""
    places = torch.zeros(masks.shape, dtype=torch.long, device=masks.device)
    places[masks] = torch.arange(int(masks.sum()), device=masks.device)
    return places.transpose(0, 1)[masks.transpose(0, 1)]
