"""The image objective: cross-entropy between crops of an image (DINO, equation 3; DINOv3, section 3.2)."""

import torch


def dino_loss(
    student_logits: torch.Tensor,
    teacher_probs: torch.Tensor,
    temperature: float = 0.1,
    ignore_diagonal: bool = False,
) -> torch.Tensor:
    """Return the mean cross-entropy between every student crop and every teacher crop, in fp32.

    `student_logits` [S, B, K], `teacher_probs` [T, B, K]; with `ignore_diagonal` crops are not compared with
    themselves (pairs s == t), and the mean is taken over the other pairs.
    """
    log_probs = (student_logits.float() / temperature).log_softmax(dim=-1)
    # Autocast would run the product in half precision.
    with torch.autocast(student_logits.device.type, enabled=False):
        cross_entropy = -torch.einsum("sbk,tbk->st", log_probs, teacher_probs.float())
    pairs = cross_entropy.numel()
    if ignore_diagonal:
        pairs -= min(cross_entropy.shape)
        cross_entropy = cross_entropy * (1 - torch.eye(*cross_entropy.shape, device=cross_entropy.device))
    return cross_entropy.sum() / (student_logits.shape[1] * pairs)
