"""KoLeo: spread the features of a batch (Sablayrolles et al. 2019; DINOv3, section 3.2)."""

import warnings

import torch
import torch.distributed as dist

from .gather import gather_rows


EPSILON = 1e-8


def koleo_loss(
    features: torch.Tensor, topk: int = 1, group_size: int | None = None, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Return minus the mean log distance of each feature to its `topk` nearest neighbours, in fp32.

    `features` [B, D] are L2-normalised here. Without a process group, neighbours are searched in the batch. With one,
    they are searched in the batches of all processes (ordered by rank), or in the group of `group_size` consecutive
    rows of these that contains the row. A batch without neighbours gives 0 and a warning. Raises ValueError for a
    group size that does not fit the batches.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = torch.nn.functional.normalize(features.float(), eps=EPSILON, dim=-1)
        batch, start, everyone = len(features), 0, features
        if group is not None:
            everyone = gather_rows(features, group)
            start = dist.get_rank(group) * batch
            if group_size is not None:
                if group_size % batch or len(everyone) % group_size:
                    raise ValueError(
                        f"group_size: got {group_size}, accepted: a multiple of the local batch ({batch}) that "
                        f"divides the global one ({len(everyone)})"
                    )
                first = start // group_size * group_size
                everyone, start = everyone[first : first + group_size], start - first
        neighbours = min(topk, len(everyone) - 1)
        if neighbours < 1:
            warnings.warn("KoLeo needs at least two images in a batch: its loss is 0", stacklevel=2)
            return features.sum() * 0
        with torch.no_grad():
            similarities = features @ everyone.T
            rows = torch.arange(batch, device=features.device)
            similarities[rows, rows + start] = -torch.inf
            nearest = similarities.topk(neighbours, dim=1).indices
        distances = (features[:, None] - everyone[nearest] + EPSILON).norm(dim=-1)
        return -(distances + EPSILON).log().mean()
