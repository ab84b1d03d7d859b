"""Video label propagation: labels of patches passed from frame to frame by similarity (DINOv3, section 6.1.5)."""

from collections import deque
from dataclasses import dataclass

import torch

from ..errors import Refused
from .neighbours import CosineBank


# Side in patches of the square tile of queries that is processed at once. Small tiles compare fewer patches that lie
# outside the radius.
TILE = 8


@dataclass(frozen=True)
class Propagation:
    """Settings of label propagation.

    Args:
        context_frames: number of previous frames to search, in addition to the first frame.
        radius: distance in patches within which similar patches are searched.
        top_k: number of most similar patches whose labels are averaged.
        temperature: of the softmax over their cosine similarities.
    """

    context_frames: int
    radius: float
    top_k: int
    temperature: float

    def __post_init__(self) -> None:
        for name, least in (("context_frames", 0), ("radius", 0), ("top_k", 1)):
            if not getattr(self, name) >= least:
                raise Refused(f"{name}: got {getattr(self, name)}, accepted: at least {least}")
        if not self.temperature > 0:
            raise Refused(f"temperature: got {self.temperature}, accepted: above 0")


class LabelPropagation:
    """Propagates the soft labels [P,C] of the patches of a first frame through the following frames.

    A patch gets the mean label of the `top_k` patches most similar to it, weighted by softmax(cosine / temperature).
    They are searched in the first frame and the last `context_frames` frames, within `radius` patches of its position.
    Memory is needed for these frames and for the similarities of one tile.
    """

    def __init__(self, tokens: torch.Tensor, labels: torch.Tensor, grid: tuple[int, int], settings: Propagation):
        self.grid, self.settings = grid, settings
        self.bank = CosineBank(tokens)
        self.first = (self.bank.features, labels)
        self.recent: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=settings.context_frames)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the soft labels [P,C] of the next frame, given its tokens [P,D]; it is added to the context."""
        queries, context = self.bank.shift(tokens), [self.first, *self.recent]
        features, labels = (torch.stack(parts).unflatten(1, self.grid) for parts in zip(*context, strict=True))
        half_norms = features.square().sum(3) / 2
        propagated = torch.empty_like(labels[0])
        for top in range(0, self.grid[0], TILE):
            for left in range(0, self.grid[1], TILE):
                tile = (slice(top, top + TILE), slice(left, left + TILE))
                propagated[tile] = self._step_tile(queries.unflatten(0, self.grid), features, half_norms, labels, tile)
        propagated = propagated.flatten(0, 1)
        self.recent.append((queries, propagated))
        return propagated

    def _step_tile(
        self,
        queries: torch.Tensor,
        features: torch.Tensor,
        half_norms: torch.Tensor,
        labels: torch.Tensor,
        tile: tuple[slice, slice],
    ) -> torch.Tensor:
        """Return the labels [a,b,C] of a tile of queries [h,w,D], from a context [T,h,w,D] with labels [T,h,w,C]."""
        settings = self.settings
        reach = int(min(settings.radius, max(self.grid)))
        near = tuple(slice(max(0, part.start - reach), part.stop + reach) for part in tile)
        places = [torch.arange(length, device=queries.device) for length in self.grid]
        down, across = (
            (place[inner, None] - place[outer]).square()
            for place, inner, outer in zip(places, tile, near, strict=True)
        )
        far = down[:, None, :, None] + across[None, :, None, :] > settings.radius**2
        queries, bank = queries[tile], features[:, *near].flatten(0, 2)
        # This is the cosine plus a constant per query, which does not change the softmax.
        scores = (queries.flatten(0, 1) @ bank.T).sub_(half_norms[:, *near].flatten())
        scores.unflatten(1, (len(features), -1)).masked_fill_(far.flatten(2).flatten(0, 1)[:, None], -torch.inf)
        scores, indices = scores.topk(min(settings.top_k, scores.shape[1]), dim=1)
        weights = (scores / settings.temperature).softmax(1)
        mixed = weights[:, None] @ labels[:, *near].flatten(0, 2)[indices]
        return mixed.view(*queries.shape[:2], -1)


def soft_labels(indices: torch.Tensor, num_classes: int, grid: tuple[int, int]) -> torch.Tensor:
    """Return the fraction [P,C] of every patch's area that each class covers, for a mask [H,W] of class indices."""
    down, across = (_area_matrix(*lengths) for lengths in zip(indices.shape, grid, strict=True))
    shares = [down @ (indices == index).double() @ across.T for index in range(num_classes)]
    return torch.stack(shares, dim=-1).flatten(0, 1).float()


def _area_matrix(length: int, cells: int) -> torch.Tensor:
    """Return the fraction [cells,length] of each cell along a side that each pixel covers."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * length / cells
    pixels = torch.arange(length, dtype=torch.float64)
    shared = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return shared.clamp(min=0) * cells / length
