"""Configuration of the DINOv3 ConvNeXt."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.models.dinov3_convnext.configuration_dinov3_convnext import DINOv3ConvNextConfig

from .configuration_dinov3 import known_fields, refuse_unknown_fields


# The published family (DINOv3, section 7.2): the ConvNeXt paper's T, S, B and L.
CONVNEXT_SIZES: dict[str, dict[str, Any]] = {
    "convnext_tiny": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    "convnext_small": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 27, 3]},
    "convnext_base": {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
    "convnext_large": {"hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]},
}


@strict
class Dinov3ConvNextConfig(DINOv3ConvNextConfig):
    """Sizes and options of a DINOv3 ConvNeXt; the defaults are ConvNeXt-T.

    Fields are those of transformers' `DINOv3ConvNextConfig`. Unknown ones are refused with the nearest name;
    `from_pretrained` also reads a `dinov3_convnext` directory and ignores what it does not know with one warning.

    Args:
        hidden_sizes: width of each stage; tokens have the width of the last one.
        depths: blocks of each stage.
        layer_scale_init_value: initial layer scale.
        drop_path_rate: probability that an image skips the last block in training; it rises linearly from 0 at the
            first block.

    Raises:
        ValueError: a value, or a combination of values, that no model can be built from.
        TypeError: an unknown field.
    """

    model_type = "dinov3_hf_convnext"

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_unknown_fields(type(self), kwargs)
        super().__post_init__(**kwargs)
        self._check()

    def validate_architecture(self) -> None:
        super().validate_architecture()
        self._check()

    def _check(self) -> None:
        for name in ("hidden_sizes", "depths"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, accepted: a number of at least 1 for each stage")
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"depths: got {len(self.depths)} stages, accepted: as many as hidden_sizes ({len(self.hidden_sizes)})"
            )
        if self.num_channels < 1:
            raise ValueError(f"num_channels: got {self.num_channels}, accepted: at least 1")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate: got {self.drop_path_rate}, accepted: at least 0 and below 1")

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self.hidden_sizes[-1]

    @property
    def patch_size(self) -> int:
        """Stride of the tokens in pixels: 4 after the stem, doubled by every further stage."""
        return 2 ** (len(self.depths) + 1)

    @property
    def num_register_tokens(self) -> int:
        return 0

    @classmethod
    def from_size(cls, name: str, **overrides: Any) -> "Dinov3ConvNextConfig":
        """Configuration of a published size: convnext_tiny, convnext_small, convnext_base or convnext_large."""
        if name not in CONVNEXT_SIZES:
            raise ValueError(f"size {name!r} must be one of {', '.join(CONVNEXT_SIZES)}")
        return cls(**{**CONVNEXT_SIZES[name], **overrides})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") == DINOv3ConvNextConfig.model_type:
            config = {k: v for k, v in config.items() if k not in ("architectures", "auto_map")}
            config["model_type"] = cls.model_type
        return config, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "Dinov3ConvNextConfig":
        return super().from_dict(known_fields(cls, config_dict), **kwargs)


__all__ = ["CONVNEXT_SIZES", "Dinov3ConvNextConfig"]
