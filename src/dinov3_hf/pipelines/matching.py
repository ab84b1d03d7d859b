"""Places of one image found in another by the cosine of patch tokens (DINOv3, section 6.1.3)."""

import torch
from torch.nn import functional as F


# Places along a patch's side at which a match is looked for: a 16th of a patch is far below every threshold.
REFINEMENT_STEPS = 16


def sample_tokens(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Interpolate tokens [h,w,D] bilinearly at places [K,2]; returns [K,D].

    Places are (x, y) in units of patches from the image's corner; beyond the outermost patches' centres nothing changes.
    """
    extent = places.new_tensor([tokens.shape[1], tokens.shape[0]])
    # grid_sample counts from -1 to 1 over the image.
    grid = (2 * places / extent - 1).to(tokens)
    return F.grid_sample(tokens.permute(2, 0, 1)[None], grid[None, None], padding_mode="border", align_corners=False)[
        0, :, 0
    ].T


def find_matches(queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Place of the best match of each query [K,D] among tokens [h,w,D]: (x, y) [K,2] in patches from the image's corner.

    The nearest patch by cosine, then the best of the bilinearly interpolated tokens up to one patch around its centre.
    """
    height, width, _ = tokens.shape
    flat = tokens.flatten(0, 1)
    best = (F.normalize(queries, dim=1) @ F.normalize(flat, dim=1).T).argmax(1)
    x, y = best % width, best // width
    # An interpolated map of similarities never rises above the patches it is interpolated from: its maximum is the best
    # patch itself. So the tokens are interpolated, as the query was, and the cosine is taken of what results. It needs
    # only the products among the 3x3 patches around the best one.
    near = torch.arange(-1, 2, device=tokens.device)
    rows = (y[:, None] + near).clamp(0, height - 1)
    columns = (x[:, None] + near).clamp(0, width - 1)
    around = flat[(rows[:, :, None] * width + columns[:, None]).flatten(1)]
    steps = torch.arange(-REFINEMENT_STEPS, REFINEMENT_STEPS + 1, device=tokens.device) / REFINEMENT_STEPS
    offsets = torch.cartesian_prod(steps, steps)
    # From the centre outwards, so that of equal places the one nearest to the patch's centre wins.
    offsets = offsets[offsets.square().sum(1).argsort(stable=True)]
    weights = (1 - (offsets[:, :, None] - near).abs()).clamp(min=0)
    weights = (weights[:, 1, :, None] * weights[:, 0, None]).flatten(1)
    products = torch.einsum("mi,kid,kd->km", weights, around, queries)
    lengths = torch.einsum("mi,kij,mj->km", weights, around @ around.mT, weights).clamp(min=1e-12).sqrt()
    found = torch.stack([x, y], 1) + 0.5 + offsets[(products / lengths).argmax(1)]
    return found.clamp(min=0.5).minimum(found.new_tensor([width - 0.5, height - 0.5]))
