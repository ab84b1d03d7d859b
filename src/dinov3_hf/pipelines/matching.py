"""Matching points of one image in another by the cosine similarity of patch tokens (DINOv3, section 6.1.3)."""

import torch
from torch.nn import functional as F


# Matches are refined to 1/16 of a patch, which is far below the distances used in evaluation.
REFINEMENT_STEPS = 16


def sample_tokens(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Interpolate tokens [h,w,D] bilinearly at points [K,2]; returns [K,D].

    Points are (x, y) in units of patches from the top left corner. Beyond the centres of the outermost patches the
    tokens are constant.
    """
    extent = places.new_tensor([tokens.shape[1], tokens.shape[0]])
    # grid_sample has coordinates from -1 to 1.
    grid = (2 * places / extent - 1).to(tokens)
    return F.grid_sample(tokens.permute(2, 0, 1)[None], grid[None, None], padding_mode="border", align_corners=False)[
        0, :, 0
    ].T


def find_matches(queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the point [K,2] where the tokens [h,w,D] match each query [K,D] best.

    Points are (x, y) in units of patches from the top left corner. First the patch with the largest cosine similarity
    is found, then the best bilinearly interpolated token within one patch of its centre.
    """
    height, width, _ = tokens.shape
    flat = tokens.flatten(0, 1)
    best = (F.normalize(queries, dim=1) @ F.normalize(flat, dim=1).T).argmax(1)
    x, y = best % width, best // width
    # Interpolating the map of similarities would not help: its maximum is always at a patch centre. Instead the tokens
    # are interpolated, as the query was, and compared with the query. This only needs the dot products of the 3x3
    # patches around the best one.
    near = torch.arange(-1, 2, device=tokens.device)
    rows = (y[:, None] + near).clamp(0, height - 1)
    columns = (x[:, None] + near).clamp(0, width - 1)
    around = flat[(rows[:, :, None] * width + columns[:, None]).flatten(1)]
    steps = torch.arange(-REFINEMENT_STEPS, REFINEMENT_STEPS + 1, device=tokens.device) / REFINEMENT_STEPS
    offsets = torch.cartesian_prod(steps, steps)
    # Sorted by distance from the centre, so that among equal points the one nearest to the centre wins.
    offsets = offsets[offsets.square().sum(1).argsort(stable=True)]
    weights = (1 - (offsets[:, :, None] - near).abs()).clamp(min=0)
    weights = (weights[:, 1, :, None] * weights[:, 0, None]).flatten(1)
    products = torch.einsum("mi,kid,kd->km", weights, around, queries)
    lengths = torch.einsum("mi,kij,mj->km", weights, around @ around.mT, weights).clamp(min=1e-12).sqrt()
    points = torch.stack([x, y], 1) + 0.5 + offsets[(products / lengths).argmax(1)]
    return points.clamp(min=0.5).minimum(points.new_tensor([width - 0.5, height - 0.5]))
