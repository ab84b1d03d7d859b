"""Configuration of a pyramid of feature maps on a DINOv3 vision transformer."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Internals of transformers 5 that its own composite backbones are written with.
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from .configuration_dinov3 import Dinov3Config, refuse_unknown_fields


@strict
class Dinov3PyramidConfig(BackboneConfigMixin, PreTrainedConfig):
    """Strides of the feature maps of a `Dinov3PyramidBackbone`, and the vision transformer that they are made from.

    Args:
        vit_config: its `out_indices` name one stage, from which every map is made, or one for each stride, finest
            first.
        strides: stride in pixels of each map, ascending; the patch size times or divided by a power of two.

    Raises:
        ValueError: strides or stages from which no such maps can be made.
        TypeError: an unknown field.
    """

    model_type = "dinov3_hf_pyramid"
    sub_configs_defaults = {"vit_config": SubConfigSpec(config_class=Dinov3Config)}

    vit_config: dict | PreTrainedConfig | None = None
    strides: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_unknown_fields(type(self), kwargs)
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        super().__post_init__(**kwargs)
        self._check()
        self.stage_names = [f"stride{stride}" for stride in self.strides]
        if out_features is None and out_indices is None:
            out_indices = list(range(len(self.strides)))
        self.set_output_features_output_indices(out_indices=out_indices, out_features=out_features)

    def _check(self) -> None:
        # A configuration now, also if a dictionary or None was given.
        vit: Any = self.vit_config
        strides = list(self.strides)
        steps = [max(vit.patch_size, stride) / min(vit.patch_size, stride) for stride in strides if stride > 0]
        if (
            not strides
            or strides != sorted(set(strides))
            or len(steps) < len(strides)
            or any(step != int(step) or int(step).bit_count() != 1 for step in steps)
        ):
            raise ValueError(
                f"strides: got {strides}, accepted: ascending, the patch size {vit.patch_size} times or over a power "
                "of two"
            )
        if len(vit.out_indices) not in (1, len(strides)):
            raise ValueError(f"vit_config.out_indices: got {vit.out_indices}, accepted: one stage or {len(strides)}")
        if not vit.reshape_hidden_states:
            raise ValueError("vit_config.reshape_hidden_states: got False, accepted: True")


__all__ = ["Dinov3PyramidConfig"]
