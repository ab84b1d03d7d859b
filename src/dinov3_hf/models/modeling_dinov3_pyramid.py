"""Feature maps of several strides from a DINOv3 vision transformer, for heads that need them."""

from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from .configuration_dinov3_pyramid import Dinov3PyramidConfig
from .modeling_dinov3 import Dinov3Backbone


class Dinov3PyramidBackbone(BackboneMixin, PreTrainedModel):
    """Simple feature pyramid: transposed convolutions to finer maps, max-pooling to coarser (ViTDet, section 3)."""

    config: Dinov3PyramidConfig
    base_model_prefix = "pyramid"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Dinov3Embeddings", "Dinov3Layer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Dinov3PyramidConfig):
        super().__init__(config)
        # No longer a dictionary or None, as the field may be when a configuration is built.
        vit: Any = config.vit_config
        width, patch_size = vit.hidden_size, vit.patch_size
        self.vit = Dinov3Backbone(vit)
        self.levels = nn.ModuleList(_level(width, patch_size, stride) for stride in config.strides)
        self.num_features = [width] * len(config.strides)
        # The ViT has its hooks already: transformers would install them again here, and record every block twice.
        self._output_capturing_hooks_installed = True
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vit.get_input_embeddings()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """Images [B,C,H,W] to a map [B,D,H/stride,W/stride] for each of `config.out_features`.

        Raises:
            ValueError: H or W is no multiple of the largest stride, so that the maps would not be aligned.
        """
        largest, (height, width) = max(self.config.strides), pixel_values.shape[2:]
        if height % largest or width % largest:
            raise ValueError(f"pixel_values: got {height}x{width} pixels, accepted: multiples of the stride {largest}")
        output = self.vit(pixel_values, **kwargs)
        maps = output.feature_maps * (1 if len(output.feature_maps) > 1 else len(self.levels))
        return BackboneOutput(
            feature_maps=tuple(self.levels[index](maps[index]) for index in self.out_indices),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


def _level(width: int, patch_size: int, stride: int) -> nn.Sequential:
    """Return layers from a patch map [B,D,h,w] to a map of `stride`; none if the patch map has this stride."""
    if stride > patch_size:
        return nn.Sequential(nn.MaxPool2d(stride // patch_size))
    layers = []
    for step in range((patch_size // stride).bit_length() - 1):
        # GroupNorm of one group is the layer norm of a map.
        layers += [nn.GroupNorm(1, width), nn.GELU()] if step else []
        layers.append(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2))
    return nn.Sequential(*layers)


AutoConfig.register(Dinov3PyramidConfig.model_type, Dinov3PyramidConfig, exist_ok=True)
AutoBackbone.register(Dinov3PyramidConfig, Dinov3PyramidBackbone, exist_ok=True)


__all__ = ["Dinov3PyramidBackbone"]
