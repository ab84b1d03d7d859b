"""The objective of distillation: several students learn from one pass of a frozen teacher over each batch."""

import copy
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from dinov3_hf.checkpoints import export
from dinov3_hf.models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3Model

from .arguments import ObjectiveArguments
from .batches.collate import MASKS
from .batches.row_exchange import RowExchange, slices_of
from .losses import sinkhorn_knopp
from .objective import Objective, ObjectiveOutput, local
from .self_distillation import mask_weights, mean_koleo, prototype_losses
from .students import HeadedNetwork, HeadedOutput


# Prefixes of the objective's child modules of each student, followed by the student's name.
STUDENT, EMA = "student_", "ema_"


class Distillation(Objective):
    """A frozen teacher, and each student trained by this process with its moving average (DINOv3, section 5.2).

    Full mode: the targets are the teacher's prototype assignments, as in pretraining, but the student's crops are not
    masked: the masks only select the patches of the patch loss. Headless mode: the targets are the teacher's class and
    patch tokens, predicted from the student's tokens by linear layers. Students share only the targets: the training
    of one does not depend on the others.

    With `groups` (ranks of each student's processes, in the order of `skeletons`) a process trains one student, and
    each group processes the whole global batch. `skeletons` contains every student of the run, on the meta device.
    """

    def __init__(
        self,
        teacher: HeadedNetwork,
        students: Mapping[str, HeadedNetwork],
        arguments: ObjectiveArguments,
        feature_loss: str | None = None,
        groups: list[list[int]] | None = None,
        skeletons: Mapping[str, HeadedNetwork] | None = None,
    ):
        super().__init__()
        self.arguments, self.feature_loss, self.groups = arguments, feature_loss, groups
        self.names = list(students)
        self.skeletons = dict(skeletons or {name: copy.deepcopy(net).to("meta") for name, net in students.items()})
        first = "dino_global" if feature_loss is None else "cls"
        self.shown_metrics = tuple(f"{name}/{first}" for name in self.skeletons)
        self.teacher = teacher.requires_grad_(False).eval()
        for name, student in students.items():
            self.add_module(STUDENT + name, student)
            ema = copy.deepcopy(student).requires_grad_(False).eval()
            ema.backbone.rope_augmentation = None
            self.add_module(EMA + name, ema)
        # Checkpoints omit the teacher; it is loaded again from its own files.
        self.register_state_dict_post_hook(_without_teacher)

    def student(self, name: str) -> HeadedNetwork:
        return self.get_submodule(STUDENT + name)

    def ema(self, name: str) -> HeadedNetwork:
        """Return the moving average of a student, which is evaluated and exported."""
        return self.get_submodule(EMA + name)

    def networks(self) -> dict[str, nn.Module]:
        """Return the trained networks: each part of each student, clipped separately."""
        parts = ("backbone", "dino_head", "ibot_head")
        return {f"{name}/{part}": getattr(self.student(name), part) for name in self.names for part in parts}

    def frozen_networks(self) -> dict[str, nn.Module]:
        """Return the teacher and the moving averages of the students."""
        return {"teacher": self.teacher} | {EMA + name: self.ema(name) for name in self.names}

    def process_groups(self) -> list[list[int]] | None:
        """Return the ranks of each student's processes."""
        return self.groups

    def spanning_networks(self) -> tuple[str, ...]:
        """Return the teacher, which computes the targets of all groups."""
        return ("teacher",)

    def part_of(self, name: str) -> str:
        """Return the student to which the named tensor belongs; each student is a separate part of a checkpoint."""
        return name.partition(".")[0].partition("_")[2]

    @torch.no_grad()
    def after_step(self, step: int, values: Mapping[str, float]) -> None:
        """Update every student's moving average: ema = m ema + (1 - m) student."""
        for name in self.names:
            mine, theirs = (list(network.parameters()) for network in (self.ema(name), self.student(name)))
            torch._foreach_lerp_([local(p) for p in mine], [local(p) for p in theirs], 1 - values["momentum"])

    @torch.no_grad()
    def targets(
        self, crops: torch.Tensor, masks: Mapping[int, torch.Tensor], temperature: float
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Return the targets of crops [G, B, K] and, for each patch size, of patches [M, K], from one teacher pass."""
        output = self.teacher(crops, masks=masks)
        if self.feature_loss is not None:
            return output.dino_logits_global.float(), {size: rows.float() for size, rows in output.ibot_logits.items()}
        iterations, group = self.arguments.sinkhorn_iterations, self.process_group
        image = sinkhorn_knopp(output.dino_logits_global.flatten(0, 1), temperature, iterations, group)
        rows = {
            size: sinkhorn_knopp(logits, temperature, iterations, group) for size, logits in output.ibot_logits.items()
        }
        return image.view_as(output.dino_logits_global), rows

    def forward(self, batch: Mapping[str, torch.Tensor], values: Mapping[str, float]) -> ObjectiveOutput:
        """Compute the sum of the losses of this process's students; see `student_losses`."""
        masks = masks_of(batch)
        targets = self.targets(batch["global_crops"], masks, values["teacher_temperature"])
        return self.student_losses(batch, values, *targets)

    def student_losses(
        self,
        batch: Mapping[str, torch.Tensor],
        values: Mapping[str, float],
        image_targets: torch.Tensor,
        patch_targets: Mapping[int, torch.Tensor],
    ) -> ObjectiveOutput:
        """Compute the sum of the losses of this process's students, given the teacher's targets.

        `batch`: global_crops [G, B, 3, H, W], local_crops [L, B, 3, h, w] (absent without local crops), masks_S
        [G, B, P_S] for every patch size S of a student; `values`: teacher_temperature and local_weight of this step.
        """
        global_crops, local_crops = batch["global_crops"], batch.get("local_crops")
        masks = masks_of(batch)
        if self.groups is not None:
            slices = slices_of(self.groups, global_crops.shape[1] * dist.get_world_size(self.process_group))
            exchange = RowExchange(slices, self.process_group)
            moved = {size: exchange.images(mask) for size, mask in masks.items()}
            patch_targets = {size: exchange.patches(patch_targets[size], masks[size], moved[size]) for size in masks}
            masks, image_targets = moved, exchange.images(image_targets)
            global_crops = exchange.images(global_crops)
            local_crops = None if local_crops is None else exchange.images(local_crops)
        # Each student has its own seed, and so has the next pass: a student does not depend on the others.
        seed, following = torch.randint(2**62, (2,)).tolist()
        total: torch.Tensor | float = 0.0
        metrics: dict[str, torch.Tensor] = {}
        for name in self.names:
            torch.manual_seed(seed ^ zlib.crc32(name.encode()))
            student = self.student(name)
            size = student.config.patch_size
            output = student(global_crops, local_crops, {size: masks[size]})
            compare = prototype_losses if self.feature_loss is None else self.feature_losses
            loss, parts = compare(
                output,
                output.ibot_logits[size],
                image_targets,
                patch_targets[size],
                masks[size],
                self.arguments,
                values["local_weight"],
                self.group,
            )
            total = total + loss
            metrics |= {f"{name}/{part}": value.detach().float() for part, value in {"loss": loss, **parts}.items()}
        torch.manual_seed(following)
        return ObjectiveOutput(total, metrics)

    def feature_losses(
        self,
        student: HeadedOutput,
        patch_features: torch.Tensor,
        image_targets: torch.Tensor,
        patch_targets: torch.Tensor,
        masks: torch.Tensor,
        arguments: ObjectiveArguments,
        local_weight: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted sum of the class token, patch token and KoLeo losses, and these parts.

        The tokens of each global crop are compared with the teacher's tokens of the same crop. The cosine loss ignores
        the length of a token, because its direction carries the information that is used. Smooth L1 compares with the
        teacher's token after a layer norm without weights, so that dimensions of large variance do not dominate and no
        batch statistics are needed.
        """

        def distance(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            features = features.float()
            if self.feature_loss == "cosine":
                return 1 - F.cosine_similarity(features, targets, dim=-1)
            targets = F.layer_norm(targets, targets.shape[-1:])
            return F.smooth_l1_loss(features, targets, reduction="none").mean(dim=-1)

        num_global, batch_size = masks.shape[:2]
        cls = distance(student.dino_logits_global, image_targets).mean()
        patch = (distance(patch_features, patch_targets) * mask_weights(masks)).sum() / (num_global * batch_size)
        koleo = mean_koleo(student.cls_tokens, arguments, group)
        loss = arguments.dino_weight * cls + arguments.ibot_weight * patch
        loss = loss + arguments.koleo_weight * num_global * koleo
        return loss, {"cls": cls, "patch": patch, "koleo": koleo}

    @torch.no_grad()
    def export(self, directory: Path) -> list[Path]:
        """Write every student's moving average in the transformers layout, into a folder with the student's name.

        All processes must call it; the first one writes. A ViT trained in full mode is written with its projection
        heads.
        """
        device, is_first = next(self.teacher.parameters()).device, not dist.is_initialized() or dist.get_rank() == 0
        owners = (
            {name: ranks[0] for name, ranks in zip(self.skeletons, self.groups, strict=True)} if self.groups else {}
        )
        for name, skeleton in self.skeletons.items():
            held = self.ema(name).state_dict() if name in self.names else None
            tensors = {}
            for key, like in skeleton.state_dict().items():
                whole = torch.empty_like(like, device=device) if held is None else held[key]
                whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
                if owners.get(name, 0):
                    dist.broadcast(whole, owners[name], self.process_group)
                if is_first:
                    tensors[key] = whole.cpu()
            if is_first:
                export(with_tensors(skeleton, tensors, self.feature_loss is None), Path(directory) / name)
        return [Path(directory) / name for name in self.skeletons]


def masks_of(batch: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Return the masks of a batch by patch size."""
    return {int(name.removeprefix(MASKS)): mask for name, mask in batch.items() if name.startswith(MASKS)}


def with_tensors(skeleton: HeadedNetwork, tensors: dict[str, torch.Tensor], with_heads: bool) -> nn.Module:
    """Return the model to export: a ViT with its heads if `with_heads`, otherwise the backbone alone."""
    backbone = {
        name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")
    }
    with torch.device("meta"):
        kind, has_heads = type(skeleton.backbone), with_heads and isinstance(skeleton.backbone, Dinov3Model)
        model = Dinov3ForPreTraining(skeleton.config) if has_heads else kind(skeleton.config)
    if has_heads:
        backbone = {name.replace("backbone.", "dinov3.", 1): value for name, value in tensors.items()}
    model.load_state_dict(backbone, assign=True)
    return model


def _without_teacher(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}teacher.")]:
        del state[name]
