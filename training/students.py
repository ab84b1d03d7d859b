"""The networks of distillation: teacher and students, each a backbone with an image head and a patch head."""

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from dinov3_hf.checkpoints import load_model, tiny_checkpoint
from dinov3_hf.checkpoints.loading import read_config, readable
from dinov3_hf.checkpoints.weights import PROJECTION_HEADS
from dinov3_hf.errors import Refused
from dinov3_hf.models.configuration_dinov3 import SIZES, Dinov3Config
from dinov3_hf.models.configuration_dinov3_convnext import CONVNEXT_SIZES, Dinov3ConvNextConfig
from dinov3_hf.models.heads_dinov3 import Dinov3ProjectionHead
from dinov3_hf.models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.models.modeling_dinov3_convnext import Dinov3ConvNextModel
from dinov3_hf.models.rope_dinov3 import RopeAugmentation

from .arguments import CropArguments
from .distill_arguments import DistillArguments, StudentSpec
from .losses import resize_patches


@dataclass
class HeadedOutput:
    """Outputs of `HeadedNetwork`; K is the output width of the heads: number of prototypes, or the teacher's width.

    Args:
        dino_logits_global: [G,B,K].
        dino_logits_local: [L,B,K], None without local crops.
        ibot_logits: for each patch size, the logits [M,K] of the masked patches, crop by crop and row by row.
        cls_tokens: [G,B,D], before the head.
        patch_tokens: [G,B,P,D], before the head, on the backbone's grid.
    """

    dino_logits_global: torch.Tensor
    dino_logits_local: torch.Tensor | None
    ibot_logits: dict[int, torch.Tensor]
    cls_tokens: torch.Tensor
    patch_tokens: torch.Tensor


class HeadedNetwork(nn.Module):
    """A backbone (ViT or ConvNeXt) with an image head and a patch head."""

    def __init__(self, backbone: nn.Module, dino_head: nn.Module, ibot_head: nn.Module):
        super().__init__()
        self.backbone, self.dino_head, self.ibot_head = backbone, dino_head, ibot_head

    @property
    def config(self) -> Dinov3Config | Dinov3ConvNextConfig:
        return self.backbone.config

    def activation_checkpointing_enable(self) -> None:
        self.backbone.activation_checkpointing_enable()

    def forward(
        self,
        global_crops: torch.Tensor,
        local_crops: torch.Tensor | None = None,
        masks: Mapping[int, torch.Tensor] | None = None,
    ) -> HeadedOutput:
        """Compute logits of global crops [G,B,3,H,W] and local crops [L,B,3,h,w], neither of them masked.

        `masks` [G,B,P_S] bool, one for each patch size S, select the patches given to the patch head. If S is not
        the patch size of the backbone, the tokens are first resized to the grid of S, so that index p of a mask is the
        same position of the crop in every network.
        """
        crops = [global_crops] if local_crops is None else [global_crops, local_crops]
        images = [crop.flatten(0, 1) for crop in crops]
        if isinstance(self.backbone, Dinov3Model):
            outputs = self.backbone.forward_crops(images)
        else:
            outputs = [self.backbone(pixels) for pixels in images]
        cls_tokens = [output.pooler_output for output in outputs]
        logits = self.dino_head(torch.cat(cls_tokens)).split([len(tokens) for tokens in cls_tokens])
        logits = [part.unflatten(0, crop.shape[:2]) for part, crop in zip(logits, crops, strict=True)]
        patch_tokens, own = outputs[0].patch_tokens, self.config.patch_size
        assert patch_tokens is not None
        ibot_logits: dict[int, torch.Tensor] = {}
        for size, mask in (masks or {}).items():
            tokens = resize_patches(patch_tokens, grid_of(global_crops, own), grid_of(global_crops, size))
            ibot_logits[size] = self.ibot_head(tokens.flatten(0, 1)[mask.flatten().nonzero().squeeze(1)])
        return HeadedOutput(
            dino_logits_global=logits[0],
            dino_logits_local=None if local_crops is None else logits[1],
            ibot_logits=ibot_logits,
            cls_tokens=cls_tokens[0].unflatten(0, global_crops.shape[:2]),
            patch_tokens=patch_tokens.unflatten(0, global_crops.shape[:2]),
        )


def grid_of(crops: torch.Tensor, patch_size: int) -> tuple[int, int]:
    """Return the rows and columns of whole patches in crops [..., H, W]."""
    return crops.shape[-2] // patch_size, crops.shape[-1] // patch_size


def load_teacher(arguments: DistillArguments) -> tuple[HeadedNetwork, Dinov3Config | None]:
    """Load the teacher and the configuration of its heads, which is None in headless mode.

    Raises `Refused` for full mode with a teacher without heads.
    """
    name = arguments.teacher or tiny_checkpoint()
    loaded = load_model(name, "teacher")
    has_heads = isinstance(loaded, Dinov3ForPreTraining)
    if arguments.mode == "full" and not has_heads:
        raise Refused(f"mode: got 'full', accepted: headless or null, as {name!r} has no heads")
    if has_heads and arguments.mode != "headless":
        return HeadedNetwork(loaded.dinov3, loaded.dino_head, loaded.ibot_head), loaded.config
    return HeadedNetwork(loaded.dinov3 if has_heads else loaded, nn.Identity(), nn.Identity()), None


def student_config(
    spec: StudentSpec, arguments: DistillArguments, crops: CropArguments, heads: Dinov3Config | None
) -> Dinov3Config | Dinov3ConvNextConfig:
    """Return a student's configuration: that of a named size or of a folder, with the recipe's training settings.

    With `heads` (full mode), a ViT also has heads with the teacher's number of prototypes and the recipe's widths.
    """
    free = {"drop_path_rate": arguments.drop_path_rate, "image_size": crops.global_crop_size}
    try:
        if spec.source in CONVNEXT_SIZES:
            return Dinov3ConvNextConfig.from_size(spec.source, **spec.overrides | free)
        if spec.source in SIZES:
            config = Dinov3Config.from_size(spec.source, **spec.overrides)
        elif os.path.isfile(Path(spec.source) / "config.json"):
            is_convnext = "convnext" in str(read_config(spec.source, "students").get("model_type"))
            with readable(spec.source, "students"):
                config = (Dinov3ConvNextConfig if is_convnext else Dinov3Config).from_pretrained(spec.source)
        else:
            sizes = ", ".join([*SIZES, *CONVNEXT_SIZES])
            raise Refused(f"got {spec.source!r}, accepted: {sizes}, or a folder with a config.json")
        fields = {
            name: getattr(config, name) for name in type(config).default_config_fields() if name[0] != "_"
        } | free
        if isinstance(config, Dinov3ConvNextConfig):
            return Dinov3ConvNextConfig(**fields)
        fields |= {
            f"pos_embed_{kind}": getattr(arguments, f"pos_embed_{kind}") for kind in ("shift", "jitter", "rescale")
        }
        # Without local crops, their final norm would never be used.
        fields["untie_global_and_local_cls_norm"] &= heads is not None and crops.local_crops > 0
        return Dinov3Config(**fields | (head_fields(arguments, heads) if heads is not None else {}))
    except (TypeError, ValueError, StrictDataclassError) as error:
        # An unknown configuration field, or a value that the configuration does not accept.
        raise Refused(
            str(error) if str(error).startswith("students:") else f"students: {spec.name}: {error}"
        ) from error


def head_fields(arguments: DistillArguments, teacher: Dinov3Config) -> dict[str, Any]:
    """Return the configuration of a student's heads: prototypes and layers as the teacher, widths from the recipe."""
    fields = {"head_initializer_range": arguments.head_initializer_range}
    for head in PROJECTION_HEADS:
        for part in ("num_prototypes", "num_layers", "hidden_size", "bottleneck_size"):
            name = f"{head}_{part}"
            own = getattr(arguments, name, None)
            fields[name] = getattr(teacher, name) if own is None else own
    return fields


def build_heads(width: int, fields: Mapping[str, Any] | None, target_width: int, std: float) -> list[nn.Module]:
    """Build a student's image and patch head: projection heads or, without `fields`, linear maps to `target_width`."""
    heads = []
    for head in PROJECTION_HEADS:
        if fields is None:
            heads.append(nn.Linear(width, target_width))
        else:
            parts = ("hidden_size", "bottleneck_size", "num_prototypes", "num_layers")
            heads.append(Dinov3ProjectionHead(width, *(fields[f"{head}_{part}"] for part in parts)))
        for layer in heads[-1].modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return heads


def new_student(
    name: str,
    config: Dinov3Config | Dinov3ConvNextConfig,
    arguments: DistillArguments,
    teacher: HeadedNetwork,
    heads: Dinov3Config | None,
    seed: int,
) -> HeadedNetwork:
    """Build a student; its initial weights depend only on the seed and its name, not on the other students."""
    torch.manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
    backbone = (Dinov3ConvNextModel if isinstance(config, Dinov3ConvNextConfig) else Dinov3Model)(config)
    fields = None if heads is None else head_fields(arguments, heads)
    built = build_heads(config.hidden_size, fields, teacher.config.hidden_size, arguments.head_initializer_range)
    shift, jitter, rescale = (getattr(config, f"pos_embed_{kind}", None) for kind in ("shift", "jitter", "rescale"))
    if any((shift, jitter, rescale)):
        backbone.rope_augmentation = RopeAugmentation(shift, jitter, rescale)
    return HeadedNetwork(backbone, *built)


def load_weights(student: HeadedNetwork, spec: StudentSpec) -> None:
    """Load the backbone weights from the student's folder, if it has any; heads are always randomly initialised."""
    if spec.has_weights:
        loaded, wanted = load_model(spec.source, "students"), student.backbone.state_dict()
        loaded = loaded.dinov3 if isinstance(loaded, Dinov3ForPreTraining) else loaded
        tensors = {name: tensor for name, tensor in loaded.state_dict().items() if name in wanted}
        with readable(spec.source, "students"):
            student.backbone.load_state_dict(tensors)
