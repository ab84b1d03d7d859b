"""The objective of pretraining: a student learns its own moving average's view of the image (DINOv3, section 3.2)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dinov3_hf.checkpoints import export
from dinov3_hf.modeling_dinov3 import Dinov3ForPreTraining

from .arguments import ObjectiveArguments
from .losses import dino_loss, ibot_loss, koleo_loss, sinkhorn_knopp


@dataclass
class ObjectiveOutput:
    """The loss to minimise and its unweighted parts, fp32 scalars."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


class SelfDistillation(nn.Module):
    """Student, EMA teacher, and the weighted sum of image loss, patch loss and KoLeo.

    `process_group` is None on one process; the loop sets it where the global batch spans several.
    """

    def __init__(self, student: Dinov3ForPreTraining, arguments: ObjectiveArguments):
        super().__init__()
        self.arguments = arguments
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.teacher.dinov3.rope_augmentation = None
        self.process_group = None

    def train(self, mode: bool = True) -> "SelfDistillation":
        super().train(mode)
        self.teacher.eval()
        return self

    def networks(self) -> dict[str, nn.Module]:
        """Return what is trained, each clipped by itself."""
        return {
            "backbone": self.student.dinov3,
            "dino_head": self.student.dino_head,
            "ibot_head": self.student.ibot_head,
        }

    def frozen_networks(self) -> dict[str, nn.Module]:
        """Return what only follows."""
        return {"teacher": self.teacher}

    def before_step(self, step: int) -> None:
        """Nothing to prepare."""

    @torch.no_grad()
    def after_step(self, step: int, values: Mapping[str, float]) -> None:
        """Move the teacher towards the student: teacher = m teacher + (1 - m) student (DINO, section 3.1)."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - values["momentum"])

    @torch.no_grad()
    def targets(self, batch: Mapping[str, torch.Tensor], temperature: float):
        """Return the teacher's assignments of the global crops [G, B, K] and of the masked patches [M, K]."""
        output = self.teacher(batch["global_crops"], masks=batch["masks"], mask_inputs=False)
        iterations, group = self.arguments.sinkhorn_iterations, self.process_group
        image = sinkhorn_knopp(output.dino_logits_global.flatten(0, 1), temperature, iterations, group)
        patches = sinkhorn_knopp(output.ibot_logits, temperature, iterations, group)
        return image.view_as(output.dino_logits_global), patches

    def forward(self, batch: Mapping[str, torch.Tensor], values: Mapping[str, float]) -> ObjectiveOutput:
        """Compute the loss of a batch.

        `batch`: global_crops [G, B, 3, H, W], local_crops [L, B, 3, h, w] (absent without local crops), masks
        [G, B, P]; `values`: teacher_temperature and local_weight of this step.
        """
        arguments, masks = self.arguments, batch["masks"]
        image_targets, patch_targets = self.targets(batch, values["teacher_temperature"])
        student = self.student(batch["global_crops"], batch.get("local_crops"), masks)
        num_global, batch_size = masks.shape[:2]
        num_local = 0 if student.dino_logits_local is None else len(student.dino_logits_local)

        temperature = arguments.student_temperature
        dino_global = dino_loss(student.dino_logits_global, image_targets, temperature, arguments.ignore_diagonal)
        dino_local = dino_global.new_zeros(())
        if num_local:
            dino_local = dino_loss(student.dino_logits_local, image_targets, temperature)
        # Each part counts by its number of (student, teacher) pairs.
        global_pairs = num_global * (num_global - 1 if arguments.ignore_diagonal else num_global)
        local_pairs = num_global * num_local
        local_share = local_pairs / (local_pairs + global_pairs)
        dino = local_share * values["local_weight"] * dino_local + (1 - local_share) * dino_global

        weights = (1 / masks.sum(dim=-1, keepdim=True).clamp(min=1)).expand(masks.shape)[masks]
        ibot = ibot_loss(student.ibot_logits, patch_targets, weights, num_global * batch_size, temperature)

        group = self.process_group if arguments.koleo_distributed else None
        size = arguments.koleo_group_size
        koleo = torch.stack(
            [koleo_loss(crop, arguments.koleo_topk, size, group) for crop in student.cls_tokens]
        ).mean()

        loss = arguments.dino_weight * dino + arguments.ibot_weight * ibot
        loss = loss + arguments.koleo_weight * num_global * koleo
        parts = {"dino_global": dino_global, "dino_local": dino_local, "koleo": koleo, "ibot": ibot}
        return ObjectiveOutput(loss, {name: value.detach().float() for name, value in parts.items()})

    def export(self, directory: Path) -> None:
        """Write the teacher as a stock `dinov3_vit` directory, its heads beside it."""
        export(self.teacher, directory, layout="transformers")
