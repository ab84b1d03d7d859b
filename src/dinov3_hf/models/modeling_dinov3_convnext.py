"""DINOv3 ConvNeXt: model, backbone and classifier, made of transformers' own blocks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

# Internals of transformers 5 without public names: its heads' backbones and recorded hidden states need them.
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.models.dinov3_convnext.modeling_dinov3_convnext import (
    DINOv3ConvNextLayer,
    DINOv3ConvNextPreTrainedModel,
    DINOv3ConvNextStage,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_dinov3_convnext import Dinov3ConvNextConfig
from .saving_dinov3 import Dinov3SavingMixin


@dataclass
class Dinov3ConvNextModelOutput(BaseModelOutputWithPoolingAndNoAttention):
    """Outputs of `Dinov3ConvNextModel`, named as those of `Dinov3Model`, all after the final norm.

    Args:
        last_hidden_state: class token and P patch tokens [B,1+P,D].
        pooler_output: class token [B,D], the mean of the last map.
        hidden_states: the images, then the map [B,D_i,h,w] of every stage, before the norm.
        register_tokens: empty, [B,0,D].
        patch_tokens: patch tokens [B,P,D], row by row.
    """

    register_tokens: torch.Tensor | None = None
    patch_tokens: torch.Tensor | None = None


class Dinov3ConvNextLayer(GradientCheckpointingLayer, DINOv3ConvNextLayer):
    """transformers' block, with gradient checkpointing."""


class Dinov3ConvNextStage(DINOv3ConvNextStage):
    """Downsampling, then blocks, whose drop path rates are this stage's part of a linear ramp over all blocks."""

    def __init__(self, config: Dinov3ConvNextConfig, index: int):
        super().__init__(config, index)
        first, depth = sum(config.depths[:index]), config.depths[index]
        # Not torch's linspace: a model may be built on the meta device.
        rates = np.linspace(0, config.drop_path_rate, sum(config.depths)).tolist()[first : first + depth]
        self.layers = nn.ModuleList(Dinov3ConvNextLayer(config, config.hidden_sizes[index], rate) for rate in rates)


class Dinov3ConvNextPreTrainedModel(Dinov3SavingMixin, DINOv3ConvNextPreTrainedModel):
    config: Dinov3ConvNextConfig
    base_model_prefix = "dinov3"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Dinov3ConvNextLayer"]
    _can_record_outputs = {"hidden_states": Dinov3ConvNextStage}
    _can_compile_fullgraph = True
    key_mapping = {r"^model\.stages\.": "stages."}
    auto_classes = {
        "AutoConfig": "configuration_dinov3_convnext.Dinov3ConvNextConfig",
        "AutoModel": "modeling_dinov3_convnext.Dinov3ConvNextModel",
        "AutoBackbone": "modeling_dinov3_convnext.Dinov3ConvNextBackbone",
        "AutoModelForImageClassification": "modeling_dinov3_convnext.Dinov3ConvNextForImageClassification",
    }

    def _stage_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Return the images [B,C,H,W], then the map of every stage: [B,D_1,H//4,W//4], [B,D_2,H//8,W//8], ..."""
        stride, channels = self.config.patch_size, self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or min(pixel_values.shape[2:]) < stride:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)} must be [B,{channels},H,W] with H and W at least "
                f"{stride}"
            )
        maps = [pixel_values]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class Dinov3ConvNextModel(Dinov3ConvNextPreTrainedModel):
    """ConvNeXt (DINOv3, section 7.2): images to normalised class and patch tokens, one patch for each 32x32 pixels."""

    def __init__(self, config: Dinov3ConvNextConfig):
        super().__init__(config)
        self.stages = nn.ModuleList(Dinov3ConvNextStage(config, index) for index in range(config.num_stages))
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.stages[0].downsample_layers[0]

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Dinov3ConvNextModelOutput:
        """Images [B,C,H,W] to tokens; a remainder of H or W by the stride of 32 is ignored."""
        patches = self._stage_maps(pixel_values)[-1].flatten(2).transpose(1, 2)
        tokens = self.layer_norm(torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1))
        return Dinov3ConvNextModelOutput(
            last_hidden_state=tokens,
            pooler_output=tokens[:, 0],
            register_tokens=tokens[:, 1:1],
            patch_tokens=tokens[:, 1:],
        )

    def intermediate_maps(self, pixel_values: torch.Tensor, patch_size: int = 16) -> tuple[torch.Tensor, ...]:
        """Images [B,C,H,W] to the maps [B,D_i,H//patch_size,W//patch_size] of all stages, the last one normalised.

        Maps are resized (bilinear, antialiased) before the norm, all to the grid of a vision transformer with this
        patch size. The tokens of `forward` keep the model's own stride.

        Raises:
            ValueError: images smaller than a patch.
        """
        size = [side // patch_size for side in pixel_values.shape[2:]]
        if min(size) < 1:
            raise ValueError(
                f"patch_size: got {patch_size}, accepted: at most the sides of the images "
                f"({min(pixel_values.shape[2:])})"
            )
        # In fp32: antialiasing has no bf16 kernel on every device.
        maps = [
            nn.functional.interpolate(stage_map.float(), size, mode="bilinear", antialias=True).to(stage_map.dtype)
            for stage_map in self._stage_maps(pixel_values)[1:]
        ]
        maps[-1] = self.layer_norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return tuple(maps)


class Dinov3ConvNextBackbone(BackboneMixin, Dinov3ConvNextPreTrainedModel):
    """Maps of the stages, without resizing or norm, for transformers' detection, segmentation and depth heads."""

    has_attentions = False
    # It has no final norm, as a parameter without a gradient would break distributed training.
    _keys_to_ignore_on_load_unexpected = [r"^(dinov3\.)?layer_norm\."]

    def __init__(self, config: Dinov3ConvNextConfig):
        super().__init__(config)
        self.stages = nn.ModuleList(Dinov3ConvNextStage(config, index) for index in range(config.num_stages))
        self.num_features = [config.num_channels, *config.hidden_sizes]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.stages[0].downsample_layers[0]

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """Images [B,C,H,W] to the feature maps of `config.out_features`; "stem" stands for the images themselves."""
        maps = self._stage_maps(pixel_values)
        feature_maps = tuple(maps[index] for index in self.out_indices)
        return BackboneOutput(feature_maps=feature_maps, hidden_states=tuple(maps))


class Dinov3ConvNextForImageClassification(Dinov3ConvNextPreTrainedModel):
    """Linear classifier on the concatenated class token and mean patch token, as in DINOv3's linear probe."""

    def __init__(self, config: Dinov3ConvNextConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dinov3 = Dinov3ConvNextModel(config)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Images [B,C,H,W] and labels [B] to the loss and logits [B,num_labels]."""
        outputs = self.dinov3(pixel_values, **kwargs)
        features = torch.cat([outputs.pooler_output, outputs.patch_tokens.mean(dim=1)], dim=-1)
        logits = self.classifier(features)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = [
    "Dinov3ConvNextBackbone",
    "Dinov3ConvNextForImageClassification",
    "Dinov3ConvNextModel",
    "Dinov3ConvNextPreTrainedModel",
]
