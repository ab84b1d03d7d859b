"""Configuration of dino.txt: a text tower aligned to a DINOv3 backbone."""

import math
from typing import Any

# Internal of transformers 5: the decorator with which its own configurations check field types.
from huggingface_hub.dataclasses import strict
from transformers import DINOv3ViTConfig, PreTrainedConfig

from .configuration_dinov3 import Dinov3Config


@strict
class DinoTxtTextConfig(PreTrainedConfig):
    """Sizes of the text tower; the defaults are those of the released model (METHOD: dino.txt, section 3).

    Args:
        max_position_embeddings: longest text in tokens, start and end included.
        eos_token_id: end token, where a text is pooled.
    """

    model_type = "dinotxt_text"
    base_config_key = "text_config"

    vocab_size: int = 49408
    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 24
    num_attention_heads: int = 20
    max_position_embeddings: int = 77
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407
    pad_token_id: int | None = 0

    def validate_architecture(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.max_position_embeddings < 3:
            raise ValueError(f"max_position_embeddings={self.max_position_embeddings} must be at least 3")


def vision_head_fields(vision: Dinov3Config) -> dict[str, Any]:
    """Return the fields of the trainable blocks on a backbone: two, SwiGLU, without query, key and value biases."""
    return {
        "hidden_size": vision.hidden_size,
        "num_attention_heads": vision.num_attention_heads,
        "num_hidden_layers": 2,
        # As many parameters as an MLP of four times the width.
        "intermediate_size": -(-8 * vision.hidden_size // 3 // 8) * 8,
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "query_bias": False,
        "key_bias": False,
        "value_bias": False,
        "layerscale_value": 1e-5,
        "drop_path_rate": 0.3,
        "num_register_tokens": vision.num_register_tokens,
        "patch_size": vision.patch_size,
        "image_size": vision.image_size,
    }


@strict
class DinoTxtConfig(PreTrainedConfig):
    """A backbone, the trainable blocks on it, and a text tower.

    Args:
        vision_config: the backbone: a `Dinov3Config`, its dictionary, or a `dinov3_vit` configuration of transformers.
        vision_head_config: the blocks between backbone and image feature, fields of `Dinov3Config`; omitted fields
            follow the backbone.
        text_config: the text tower, fields of `DinoTxtTextConfig`.
        projection_dim: width E of image and text features, even: the first half stands for the class token, the
            second for the patches. `None`: twice the backbone's width, without a projection.
        logit_scale_init_value: log of the first logit scale.
        backbone: folder or hub id of the backbone, if its weights are not saved with this model.
        backbone_revision: revision of that hub id.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    model_type = "dinotxt"
    sub_configs_defaults = {
        "vision_config": Dinov3Config,
        "vision_head_config": Dinov3Config,
        "text_config": DinoTxtTextConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    vision_head_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int | None = None
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    backbone: str | None = None
    backbone_revision: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        vision = self.vision_config or {}
        vision = vision.to_dict() if isinstance(vision, PreTrainedConfig) else dict(vision)
        if vision.get("model_type") == DINOv3ViTConfig.model_type:
            vision = Dinov3Config._translate_transformers_fields(vision)
        # A path of one machine; to refer to the backbone by name, there is the field `backbone`.
        vision.pop("_name_or_path", None)
        self.vision_config = Dinov3Config.from_dict(vision)
        head = self.vision_head_config or {}
        if not isinstance(head, PreTrainedConfig):
            head = Dinov3Config.from_dict(vision_head_fields(self.vision_config) | dict(head))
        self.vision_head_config = head
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = DinoTxtTextConfig(**(self.text_config or {}))
        if self.projection_dim is None:
            self.projection_dim = 2 * self.vision_config.hidden_size
        # Raised here, not by a validator, whose error `strict` would wrap in its own.
        width, backbone = head.hidden_size, self.vision_config.hidden_size
        if width != backbone:
            raise ValueError(f"vision_head_config.hidden_size={width} must be the backbone's width ({backbone})")
        if self.projection_dim < 2 or self.projection_dim % 2:
            raise ValueError(f"projection_dim={self.projection_dim} must be even and at least 2")
        super().__post_init__(**kwargs)


__all__ = ["DinoTxtConfig", "DinoTxtTextConfig"]
