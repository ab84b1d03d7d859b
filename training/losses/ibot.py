"""The patch objective: cross-entropy at masked patches (iBOT, equation 2; DINOv3, section 3.2)."""

import torch


def ibot_loss(
    student_logits: torch.Tensor,
    teacher_probs: torch.Tensor,
    mask_weights: torch.Tensor,
    num_crops: int,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Return the weighted cross-entropy of masked patches, divided by the number of all global crops, in fp32.

    `student_logits` and `teacher_probs` [M, K]; `mask_weights` [M] is 1 / the number of masked patches in the
    patch's crop; `num_crops` counts every global crop, masked or not.
    """
    log_probs = (student_logits.float() / temperature).log_softmax(dim=-1)
    cross_entropy = -(teacher_probs.float() * log_probs).sum(dim=-1)
    return (cross_entropy * mask_weights).sum() / num_crops
