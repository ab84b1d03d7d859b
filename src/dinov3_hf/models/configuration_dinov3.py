"""Configuration of the DINOv3 vision transformer."""

import difflib
import os
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# The published family (DINOv3, table 2 and section 5.2): patch 16, 4 registers, RoPE theta 100 throughout.
_GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
SIZES: dict[str, dict[str, Any]] = {
    "vits16": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "vits16plus": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        **_GATED,
    },
    "vitb16": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "vitl16": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "vith16plus": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "intermediate_size": 5120,
        **_GATED,
    },
    "vit7b16": {
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "intermediate_size": 8192,
        "query_bias": False,
        "value_bias": False,
        "untie_global_and_local_cls_norm": True,
        **_GATED,
    },
}

# Keys that transformers itself reads or writes, in addition to dataclass fields.
_TRANSFORMERS_KEYS = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "out_features",
    "out_indices",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "rope_parameters",
    "stage_names",
    "tie_last_hidden_states",
    "torch_dtype",
    "transformers_weights",
}
_COORDINATES = ("separate", "min", "max")
_ROPE_AUGMENTATION = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")


@strict
class Dinov3Config(BackboneConfigMixin, PreTrainedConfig):
    """Sizes and options of a DINOv3 vision transformer; the defaults are ViT-S/16.

    Field names are those of transformers' `DINOv3ViTConfig`. Unknown fields are refused with the nearest name;
    `from_pretrained` also reads a `dinov3_vit` directory and ignores what it does not know with one warning.

    Args:
        layerscale_value: initial layer scale; `None` or 0 builds no layer scale.
        rope_theta: base of the RoPE periods, in units where an image spans [-1, 1].
        rope_normalize_coords: divides patch coordinates by height and width ("separate"), or both by the shorter
            ("min") or longer ("max") side.
        rope_min_period: with `rope_max_period`, bounds of log-spaced periods that replace `rope_theta`.
        pos_embed_shift: see `pos_embed_rescale`.
        pos_embed_jitter: see `pos_embed_rescale`.
        pos_embed_rescale: RoPE augmentation of a training recipe. The model does not apply it by itself: a training
            objective sets `model.rope_augmentation`.
        drop_path_rate: share of a batch that skips a residual branch in training, the same in every block.
        untie_global_and_local_cls_norm: in training, class and register tokens of local crops have their own final
            norm.
        apply_layernorm: as a backbone, normalise every selected feature map (the last one always is).
        reshape_hidden_states: as a backbone, return maps [B,D,H,W] rather than tokens [B,1+P,D], class token first.
        return_class_token: as a backbone, also return the class tokens.
        dino_head_num_prototypes: prototypes of the image head. Only `Dinov3ForPreTraining` reads this and the other
            `dino_head_*`, `ibot_head_*` (patch head) and `head_initializer_range`.

    Raises:
        ValueError: a value, or a combination of values, that no model can be built from.
    """

    model_type = "dinov3_hf"

    patch_size: int = 16
    hidden_size: int = 384
    intermediate_size: int = 1536
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    hidden_act: str = "gelu"
    attention_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-5
    rope_theta: float | int = 100.0
    rope_normalize_coords: str = "separate"
    rope_min_period: float | int | None = None
    rope_max_period: float | int | None = None
    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    layerscale_value: float | int | None = 1e-5
    drop_path_rate: float | int = 0.0
    use_gated_mlp: bool = False
    num_register_tokens: int = 4
    untie_global_and_local_cls_norm: bool = False
    pos_embed_shift: float | int | None = None
    pos_embed_jitter: float | int | None = None
    pos_embed_rescale: float | int | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    return_class_token: bool = False
    dino_head_num_prototypes: int = 65536
    dino_head_hidden_size: int = 2048
    dino_head_bottleneck_size: int = 256
    dino_head_num_layers: int = 3
    ibot_head_num_prototypes: int = 65536
    ibot_head_hidden_size: int = 2048
    ibot_head_bottleneck_size: int = 256
    ibot_head_num_layers: int = 3
    head_initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_unknown_fields(type(self), kwargs)
        rope_parameters = kwargs.pop("rope_parameters", None) or {}
        if rope_parameters.get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters: rope_type {rope_parameters['rope_type']!r} must be 'default'")
        self.rope_theta = rope_parameters.get("rope_theta", self.rope_theta)
        self._check()
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        super().validate_architecture()
        self._check()

    def _check(self) -> None:
        """Raise ValueError; called in `__post_init__` too, where `strict` does not wrap the error in its own."""
        for name in ("patch_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("num_hidden_layers", "num_register_tokens", "layerscale_value"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        head_dim = self.hidden_size // self.num_attention_heads
        if head_dim % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} / num_attention_heads={self.num_attention_heads} gives a head dim of "
                f"{head_dim}; RoPE needs a multiple of 4"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be at least 0 and below 1")
        if self.rope_normalize_coords not in _COORDINATES:
            raise ValueError(f"rope_normalize_coords={self.rope_normalize_coords!r} must be one of {_COORDINATES}")
        low, high = self.rope_min_period, self.rope_max_period
        if (low is None) != (high is None) or (low is not None and high is not None and not 0 < low < high):
            raise ValueError(
                f"rope_min_period={low}, rope_max_period={high}: give both with 0 < min < max, or neither"
            )
        if self.rope_theta <= 0:
            raise ValueError(f"rope_theta={self.rope_theta} must be above 0")

    @classmethod
    def from_size(cls, name: str, **overrides: Any) -> "Dinov3Config":
        """Return the configuration of a published size: vits16, vits16plus, vitb16, vitl16, vith16plus or vit7b16."""
        if name not in SIZES:
            raise ValueError(f"size {name!r} must be one of {', '.join(SIZES)}")
        return cls(**{**SIZES[name], **overrides})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") == DINOv3ViTConfig.model_type:
            config = cls._translate_transformers_fields(config)
        return config, kwargs

    @classmethod
    def _translate_transformers_fields(cls, config: dict[str, Any]) -> dict[str, Any]:
        # A field absent from the file means transformers' default, not ours.
        reference = DINOv3ViTConfig.from_dict(dict(config)).to_dict()
        if isinstance(reference["patch_size"], (list, tuple)) and len(set(reference["patch_size"])) == 1:
            reference["patch_size"] = reference["patch_size"][0]
        nulled = [f"{name}={reference[name]}" for name in _ROPE_AUGMENTATION if reference.get(name) is not None]
        if nulled:
            logger.warning_once(
                "RoPE augmentation belongs to a training recipe, not to a checkpoint: "
                f"{', '.join(nulled)} set to null."
            )
        reference.update(dict.fromkeys(_ROPE_AUGMENTATION), model_type=cls.model_type)
        for name in ("architectures", "auto_map", "transformers_version"):
            reference.pop(name, None)
        return reference

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "Dinov3Config":
        return super().from_dict(known_fields(cls, config_dict), **kwargs)


def field_names(cls: type) -> set[str]:
    """Return the names of a configuration's own fields."""
    return {field.name for field in fields(cls) if not field.name.startswith("_")}


def refuse_unknown_fields(cls: type, given: dict[str, Any]) -> None:
    """Raise TypeError, naming the nearest field, for a field that neither the class nor transformers has."""
    for name in given:
        if name not in _TRANSFORMERS_KEYS:
            nearest = difflib.get_close_matches(name, field_names(cls), n=1, cutoff=0.0)[0]
            raise TypeError(f"{cls.__name__} has no field {name!r} (did you mean {nearest!r}?)")


def known_fields(cls: type, stored: dict[str, Any]) -> dict[str, Any]:
    """Return the known fields of a stored configuration; one warning names the others."""
    known = field_names(cls) | _TRANSFORMERS_KEYS
    if unknown := sorted(set(stored) - known):
        logger.warning_once(f"{cls.__name__} ignores unknown fields of the stored configuration: {', '.join(unknown)}")
    return {name: value for name, value in stored.items() if name in known}


__all__ = ["Dinov3Config", "SIZES"]
