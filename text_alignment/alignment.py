"""The objective of dino.txt: blocks on a frozen backbone and a text tower with a shared embedding space.

This is locked-image tuning.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from dinov3_hf.checkpoints.weights import gather
from dinov3_hf.models.modeling_dinotxt import MAX_LOGIT_SCALE, DinoTxtModel
from dinov3_hf.training.losses import gram_loss
from dinov3_hf.training.objective import Objective, ObjectiveOutput, local

from .contrastive import contrastive_loss


class TextAlignment(Objective):
    """A `DinoTxtModel` with a frozen backbone, the contrastive loss, and an optional Gram loss on patches.

    With `backbone`, an exported model contains this folder or hub id instead of the weights of the backbone.
    """

    shown_metrics = ("contrastive", "gram", "batch_accuracy")

    def __init__(self, model: DinoTxtModel, gram_weight: float = 0.0, backbone: str | None = None):
        super().__init__()
        self.model, self.gram_weight, self.backbone = model, gram_weight, backbone
        self.model.vision_model.requires_grad_(False).eval()

    def networks(self) -> dict[str, nn.Module]:
        """Return the model, whose frozen backbone has no gradients to clip."""
        return {"dinotxt": self.model}

    def frozen_networks(self) -> dict[str, nn.Module]:
        """Return the backbone, a part of the model."""
        return {"backbone": self.model.vision_model}

    @torch.no_grad()
    def after_step(self, step: int, values: Mapping[str, float]) -> None:
        """Clamp the logit scale to [1, 100]."""
        local(self.model.logit_scale).clamp_(0, MAX_LOGIT_SCALE)

    def forward(self, batch: Mapping[str, torch.Tensor], values: Mapping[str, float]) -> ObjectiveOutput:
        """Compute the loss of a batch of pairs: input_ids [B,N], pixel_values [B,3,S,S] or vision_tokens [B,T,D]."""
        output = self.model(**batch)
        scale = output.logit_scale
        loss = contrastive_loss(output.image_embeds, output.text_embeds, scale, self.process_group)
        metrics = {"contrastive": loss, "logit_scale": scale.squeeze()}
        with torch.no_grad():
            pairs = torch.arange(len(output.logits_per_image), device=loss.device)
            metrics["batch_accuracy"] = (output.logits_per_image.argmax(dim=1) == pairs).float().mean()
        if self.gram_weight:
            metrics["gram"] = gram_loss(output.patch_embeds, output.backbone_patch_tokens)
            loss = loss + self.gram_weight * metrics["gram"]
        return ObjectiveOutput(loss, {name: value.detach().float() for name, value in metrics.items()})

    def export(self, directory: Path) -> Path:
        """Write the model in the transformers layout; all processes must call it, the first one writes."""
        tensors = gather(self.model)
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.model.save_pretrained(directory, backbone=self.backbone, state_dict=tensors)
        return Path(directory)
