"""The objective of pretraining: self-distillation from the student's own moving average (DINOv3, section 3.2)."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from dinov3_hf.checkpoints import export
from dinov3_hf.models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3ForPreTrainingOutput, Dinov3Model

from .arguments import GramArguments, ObjectiveArguments
from .health import assignment_entropy, prototype_usage
from .losses import dino_loss, gram_loss, ibot_loss, koleo_loss, resize_patches, sinkhorn_knopp
from .objective import Objective, ObjectiveOutput, local


if TYPE_CHECKING:
    from .students import HeadedOutput


def prototype_losses(
    student: "Dinov3ForPreTrainingOutput | HeadedOutput",
    patch_logits: torch.Tensor,
    image_targets: torch.Tensor,
    patch_targets: torch.Tensor,
    masks: torch.Tensor,
    arguments: ObjectiveArguments,
    local_weight: float,
    group: dist.ProcessGroup | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the weighted sum of image loss, patch loss and KoLeo, and its parts with statistics of the assignments.

    `student` has dino_logits_global [G, B, K], dino_logits_local [L, B, K] or None, and cls_tokens [G, B, D].
    `patch_logits` and `patch_targets` [M, K] are those of the patches where `masks` [G, B, P] are true;
    `image_targets` [G, B, K].
    """
    num_global, batch_size = masks.shape[:2]
    num_local = 0 if student.dino_logits_local is None else len(student.dino_logits_local)
    temperature = arguments.student_temperature
    dino_global = dino_loss(student.dino_logits_global, image_targets, temperature, arguments.ignore_diagonal)
    dino_local = dino_global.new_zeros(())
    if num_local:
        dino_local = dino_loss(student.dino_logits_local, image_targets, temperature)
    # Each part is weighted by its number of (student, teacher) pairs.
    global_pairs = num_global * (num_global - 1 if arguments.ignore_diagonal else num_global)
    local_pairs = num_global * num_local
    local_share = local_pairs / (local_pairs + global_pairs)
    dino = local_share * local_weight * dino_local + (1 - local_share) * dino_global

    ibot = ibot_loss(patch_logits, patch_targets, mask_weights(masks), num_global * batch_size, temperature)
    koleo = mean_koleo(student.cls_tokens, arguments, group)
    loss = arguments.dino_weight * dino + arguments.ibot_weight * ibot
    loss = loss + arguments.koleo_weight * num_global * koleo
    parts = {"dino_global": dino_global, "dino_local": dino_local, "koleo": koleo, "ibot": ibot}
    assert student.dino_logits_global is not None
    with torch.no_grad():
        assignments = (student.dino_logits_global.flatten(0, 1).float() / temperature).softmax(dim=-1)
        parts["prototype_usage"] = prototype_usage(assignments, group)
        parts["assignment_entropy"] = assignment_entropy(assignments)
        parts["teacher_entropy"] = assignment_entropy(image_targets.flatten(0, 1))
    return loss, parts


def mask_weights(masks: torch.Tensor) -> torch.Tensor:
    """Return the weight [M] of each patch masked in `masks` [G, B, P]: 1 / number of masked patches in its crop."""
    return (1 / masks.sum(dim=-1, keepdim=True).clamp(min=1)).expand(masks.shape)[masks]


def mean_koleo(
    cls_tokens: torch.Tensor, arguments: ObjectiveArguments, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """Return the mean over crops of the KoLeo loss of class tokens [G, B, D]."""
    group = group if arguments.koleo_distributed else None
    size = arguments.koleo_group_size
    return torch.stack([koleo_loss(crop, arguments.koleo_topk, size, group) for crop in cls_tokens]).mean()


class SelfDistillation(Objective):
    """Student, EMA teacher, Gram teacher, and the weighted sum of image loss, patch loss, KoLeo and Gram loss.

    `gram_teacher` is required for the Gram teachers "checkpoint" and "ema_copy"; the weights of the latter are
    overwritten at gram_start_step.
    """

    shown_metrics = ("dino_global", "dino_local", "ibot", "koleo", "gram")

    def __init__(
        self,
        student: Dinov3ForPreTraining,
        arguments: ObjectiveArguments,
        gram_teacher: Dinov3Model | None = None,
        gram: GramArguments | None = None,
    ):
        super().__init__()
        self.arguments = arguments
        if gram is None and gram_teacher is not None:
            gram = GramArguments(gram_teacher="checkpoint", gram_checkpoint="given")
        self.gram = gram or GramArguments()
        self.gram_teacher = gram_teacher
        if gram_teacher is not None:
            gram_teacher.requires_grad_(False).eval().rope_augmentation = None
        # Saved, so that a resumed run refreshes the Gram teacher as often as an uninterrupted one.
        self.register_buffer("gram_updates", torch.zeros((), dtype=torch.int64))
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.teacher.dinov3.rope_augmentation = None

    def networks(self) -> dict[str, nn.Module]:
        """Return the trained networks, each clipped separately."""
        return {
            "backbone": self.student.dinov3,
            "dino_head": self.student.dino_head,
            "ibot_head": self.student.ibot_head,
        }

    def frozen_networks(self) -> dict[str, nn.Module]:
        """Return the EMA teacher and the Gram teacher, if any."""
        networks = {"teacher": self.teacher, "gram_teacher": self.gram_teacher}
        return {name: network for name, network in networks.items() if network is not None}

    def before_step(self, step: int) -> None:
        """Copy the EMA teacher's weights into the Gram teacher when Gram anchoring starts."""
        if self.gram.gram_teacher == "ema_copy" and step == self.gram.gram_start_step:
            self._copy_gram_teacher()

    @torch.no_grad()
    def after_step(self, step: int, values: Mapping[str, float]) -> None:
        """Update the EMA teacher (DINO, section 3.1) and refresh the Gram teacher if it is due.

        teacher = m teacher + (1 - m) student. The Gram teacher is refreshed every gram_update_every steps from
        gram_first_update on, at most gram_max_updates times (DINOv3, section 4.2).
        """
        # With adapters, the frozen weights are the same in both networks.
        pairs = list(zip(self.teacher.parameters(), self.student.parameters(), strict=True))
        torch._foreach_lerp_(
            [local(mine) for mine, theirs in pairs if theirs.requires_grad],
            [local(theirs) for _, theirs in pairs if theirs.requires_grad],
            1 - values["momentum"],
        )
        gram, every = self.gram, self.gram.gram_update_every
        if every is not None and step + 1 >= gram.gram_first_update and (step + 1) % every == 0:
            if gram.gram_max_updates is None or self.gram_updates < gram.gram_max_updates:
                self._copy_gram_teacher()
                self.gram_updates += 1

    @torch.no_grad()
    def _copy_gram_teacher(self) -> None:
        assert self.gram_teacher is not None
        pairs = zip(self.gram_teacher.parameters(), self.teacher.dinov3.parameters(), strict=True)
        for target, source in pairs:
            local(target).copy_(local(source))

    @torch.no_grad()
    def targets(
        self, batch: Mapping[str, torch.Tensor], temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, Dinov3ForPreTrainingOutput]:
        """Return the teacher's assignments of the global crops [G, B, K] and masked patches [M, K], and its output."""
        output = self.teacher(batch["global_crops"], masks=batch["masks"], mask_inputs=False)
        iterations, group = self.arguments.sinkhorn_iterations, self.process_group
        image = sinkhorn_knopp(output.dino_logits_global.flatten(0, 1), temperature, iterations, group)
        patches = sinkhorn_knopp(output.ibot_logits, temperature, iterations, group)
        return image.view_as(output.dino_logits_global), patches, output

    def forward(self, batch: Mapping[str, torch.Tensor], values: Mapping[str, float]) -> ObjectiveOutput:
        """Compute the loss of a batch.

        `batch`: global_crops [G, B, 3, H, W], local_crops [L, B, 3, h, w] (absent without local crops), masks
        [G, B, P]; `values`: teacher_temperature and local_weight of this step.
        """
        masks = batch["masks"]
        image_targets, patch_targets, teacher = self.targets(batch, values["teacher_temperature"])
        student = self.student(batch["global_crops"], batch.get("local_crops"), masks)
        loss, parts = prototype_losses(
            student,
            student.ibot_logits,
            image_targets,
            patch_targets,
            masks,
            self.arguments,
            values["local_weight"],
            self.process_group,
        )
        if values.get("gram_weight", 0) > 0:
            parts["gram"] = self._gram_loss(batch, student.patch_tokens, teacher.patch_tokens)
            loss = loss + values["gram_weight"] * parts["gram"]
        return ObjectiveOutput(loss, {name: value.detach().float() for name, value in parts.items()})

    def _gram_loss(
        self, batch: Mapping[str, torch.Tensor], student_patches: torch.Tensor, ema_patches: torch.Tensor
    ) -> torch.Tensor:
        """Return the Gram loss of the student's patches [G, B, P, D]; teacher patches are resized to their grid."""
        gram, patch_size = self.gram, self.student.config.patch_size
        teacher_patches = ema_patches.flatten(0, 1)
        if self.gram_teacher is not None:
            crops = batch.get("gram_crops", batch["global_crops"]).flatten(0, 1)
            with torch.no_grad():
                teacher_patches = self.gram_teacher(crops).patch_tokens
            size = self.gram_teacher.config.patch_size
            grid = (crops.shape[-2] // size, crops.shape[-1] // size)
            new_grid = tuple(side // patch_size for side in batch["global_crops"].shape[-2:])
            teacher_patches = resize_patches(teacher_patches, grid, new_grid)
        return gram_loss(
            student_patches.flatten(0, 1), teacher_patches, gram.gram_normalize, gram.gram_per_image, gram.gram_clamp
        )

    def export(self, directory: Path) -> Path:
        """Write the EMA teacher in the transformers layout (`dinov3_vit`), with its heads in heads.safetensors."""
        return export(self.teacher, directory, layout="transformers")
