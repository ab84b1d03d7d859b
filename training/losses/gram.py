"""Gram anchoring: keep the patch similarities close to those of an earlier teacher (DINOv3, section 4.2)."""

from typing import Literal

import torch
from torch.nn import functional as F


def gram_loss(
    student_patches: torch.Tensor,
    teacher_patches: torch.Tensor,
    normalize: bool = True,
    per_image: bool = True,
    clamp: Literal["both", "teacher"] | None = None,
) -> torch.Tensor:
    """Return the mean squared difference of the patches' Gram matrices, in fp32 (equation 2, but with a mean).

    Patches are [B, P, D], or [P, D] of one image; the widths D of student and teacher may differ. Gram matrices are
    [P, P] for each image, or [B P, B P] for the whole batch. `clamp` sets negative similarities of the teacher, or of
    both, to 0. The teacher receives no gradient.
    """
    with torch.autocast(student_patches.device.type, enabled=False):
        similarities = []
        for patches in (student_patches.float(), teacher_patches.detach().float()):
            if normalize:
                patches = F.normalize(patches, dim=-1)
            if not per_image:
                patches = patches.flatten(0, -2)
            similarities.append(patches @ patches.transpose(-1, -2))
        student, teacher = similarities
        if clamp is not None:
            teacher = teacher.clamp(min=0)
        if clamp == "both":
            student = student.clamp(min=0)
        return F.mse_loss(student, teacher)


def resize_patches(patches: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Resize patches [B, P, D] from a grid (h, w) to another grid (bicubic; DINOv3, section 4.3)."""
    if tuple(grid) == tuple(new_grid):
        return patches
    maps = patches.transpose(1, 2).unflatten(2, grid)
    maps = F.interpolate(maps.float(), size=new_grid, mode="bicubic", align_corners=False, antialias=False)
    return maps.flatten(2).transpose(1, 2)
