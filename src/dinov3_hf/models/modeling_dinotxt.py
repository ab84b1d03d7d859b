"""dino.txt: a text tower aligned to a frozen DINOv3 backbone (Jose et al. 2024; DINOv3, section 5.3)."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_dinotxt import DinoTxtConfig, DinoTxtTextConfig
from .configuration_dinov3 import Dinov3Config
from .layers_dinov3 import Dinov3Layer, Dinov3LayerScale, eager_attention_forward
from .modeling_dinov3 import Dinov3Model


# Log of the largest logit scale, to which training clamps it (METHOD: dino.txt, 3).
MAX_LOGIT_SCALE = 4.605170185988092


@dataclass
class DinoTxtOutput(ModelOutput):
    """Outputs of `DinoTxtModel`.

    Args:
        loss: contrastive loss over this batch, with `return_loss=True`.
        logits_per_image: scaled cosine similarities of B images with T texts [B,T].
        logits_per_text: the same, transposed [T,B].
        image_embeds: normalised image features [B,E].
        text_embeds: normalised text features [T,E].
        patch_embeds: patch features [B,P,E/2], before normalisation.
        backbone_patch_tokens: patch tokens of the backbone [B,P,D], normalised by its final norm.
        logit_scale: the factor of the cosine similarities [1].
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    backbone_patch_tokens: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None


def _with_std(layer: nn.Module, std: float) -> nn.Module:
    """Set the standard deviation of a layer's initialisation: CLIP's, by the tower's width and depth."""
    layer.init_std = std
    return layer


class DinoTxtTextAttention(nn.Module):
    """Causal multi-head self-attention; only the output projection has a bias."""

    def __init__(self, config: DinoTxtTextConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        width, out_std = config.hidden_size, (2 * config.num_hidden_layers * config.hidden_size) ** -0.5
        self.q_proj = _with_std(nn.Linear(width, width, bias=False), width**-0.5)
        self.k_proj = _with_std(nn.Linear(width, width, bias=False), width**-0.5)
        self.v_proj = _with_std(nn.Linear(width, width, bias=False), width**-0.5)
        self.o_proj = _with_std(nn.Linear(width, width), out_std)

    def forward(self, states: torch.Tensor, causal_mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        implementation = self.config._attn_implementation
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        # The fused kernels take causality from `is_causal`; the plain products need the mask itself.
        mask = causal_mask if attention is eager_attention_forward else None
        dropout = self.config.attention_dropout if self.training else 0.0
        output, _ = attention(self, query, key, value, mask, dropout=dropout, scaling=self.scaling)
        return self.o_proj(output.flatten(2))


class DinoTxtTextLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block of the text tower."""

    def __init__(self, config: DinoTxtTextConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = DinoTxtTextAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        width, hidden = config.hidden_size, config.intermediate_size
        self.up_proj = _with_std(nn.Linear(width, hidden), (2 * width) ** -0.5)
        self.down_proj = _with_std(nn.Linear(hidden, width), (2 * config.num_hidden_layers * width) ** -0.5)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, states: torch.Tensor, causal_mask: torch.Tensor) -> torch.Tensor:
        states = states + self.attention(self.norm1(states), causal_mask)
        return states + self.down_proj(self.act_fn(self.up_proj(self.norm2(states))))


class DinoTxtPreTrainedModel(PreTrainedModel):
    config: DinoTxtConfig
    base_model_prefix = "dinotxt"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Dinov3Layer", "DinoTxtTextLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Leaf by leaf: transformers skips modules without parameters of their own.
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=getattr(module, "init_std", 0.02))
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Dinov3LayerScale):
            init.constant_(module.lambda1, self.config.layerscale_value)
        elif isinstance(module, DinoTxtModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class DinoTxtTextModel(DinoTxtPreTrainedModel):
    """Token ids [T,N] to the normalised state at each text's first end token [T,W]; later tokens have no influence."""

    config: DinoTxtTextConfig
    main_input_name = "input_ids"

    def __init__(self, config: DinoTxtTextConfig):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = _with_std(nn.Embedding(config.max_position_embeddings, config.hidden_size), 0.01)
        self.layer = nn.ModuleList(DinoTxtTextLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        texts, length = input_ids.shape
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids of {length} tokens, accepted: at most {self.config.max_position_embeddings}; "
                "truncate texts"
            )
        positions = torch.arange(length, device=input_ids.device)
        states = self.token_embedding(input_ids) + self.position_embedding(positions)
        mask = states.new_full((length, length), -torch.inf).triu(1)
        for layer in self.layer:
            states = layer(states, mask)
        # argmax gives the first of equals. A text without an end token is pooled at its last one.
        ends = input_ids == self.config.eos_token_id
        place = torch.where(ends.any(dim=1), ends.int().argmax(dim=1), length - 1)
        return self.norm(states[torch.arange(texts, device=input_ids.device), place])


class DinoTxtVisionHead(DinoTxtPreTrainedModel):
    """Backbone tokens [B,1+R+P,D] to tokens of the shared space [B,1+R+P,E/2]."""

    config: Dinov3Config
    main_input_name = "tokens"

    def __init__(self, config: Dinov3Config, width: int):
        super().__init__(config)
        self.layer = nn.ModuleList(Dinov3Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = None
        if width != config.hidden_size:
            self.projection = _with_std(nn.Linear(config.hidden_size, width, bias=False), config.hidden_size**-0.5)
        self.post_init()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        shapes = ((tokens.shape[0], tokens.shape[1]),)
        states = tokens
        for layer in self.layer:
            # One group of crops, without rotary positions.
            states = layer(states, (None,), shapes)
        states = self.norm(states)
        return states if self.projection is None else self.projection(states)


class DinoTxtModel(DinoTxtPreTrainedModel):
    """Images and texts in one space of features [B,E]: the first half for the class token, the second for patches."""

    # A backbone that the configuration names is not among the saved weights; `from_pretrained` loads it.
    _keys_to_ignore_on_load_missing = [r"^vision_model\."]

    def __init__(self, config: DinoTxtConfig):
        super().__init__(config)
        # Configurations and a width by now, also where dictionaries or None were given.
        vision: Any = config.vision_config
        head: Any = config.vision_head_config
        text: Any = config.text_config
        projection_dim: Any = config.projection_dim
        self.vision_model = Dinov3Model(vision)
        self.vision_head = DinoTxtVisionHead(head, projection_dim // 2)
        self.text_model = DinoTxtTextModel(text)
        width = text.hidden_size
        self.text_projection = _with_std(nn.Linear(width, projection_dim, bias=False), width**-0.5)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.post_init()

    @classmethod
    def from_backbone(
        cls, backbone: Dinov3Model, text_config: DinoTxtTextConfig | dict | None = None, **overrides: Any
    ) -> "DinoTxtModel":
        """Build new blocks and a new text tower for a pretrained backbone, whose weights are copied."""
        model = cls(DinoTxtConfig(vision_config=backbone.config, text_config=text_config, **overrides))
        model.vision_model.load_state_dict(backbone.state_dict())
        return model

    def tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images [B,3,H,W] to the backbone's normalised tokens [B,1+R+P,D], for the argument `vision_tokens`."""
        return self.vision_model(pixel_values).last_hidden_state

    def _vision(
        self, pixel_values: torch.Tensor | None, vision_tokens: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return image features [B,E], patch features [B,P,E/2] and the backbone's patch tokens [B,P,D]."""
        if (pixel_values is None) == (vision_tokens is None):
            raise ValueError("give either pixel_values or vision_tokens")
        tokens = self.tokens(pixel_values) if vision_tokens is None else vision_tokens
        prefix = 1 + self.vision_model.config.num_register_tokens
        states = self.vision_head(tokens)
        patches = states[:, prefix:]
        return torch.cat([states[:, 0], patches.mean(dim=1)], dim=-1), patches, tokens[:, prefix:]

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, vision_tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Images [B,3,H,W], or their backbone tokens, to features [B,E], before normalisation."""
        return self._vision(pixel_values, vision_tokens)[0]

    def get_patch_features(
        self, pixel_values: torch.Tensor | None = None, vision_tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Images [B,3,H,W] to patch features [B,P,E/2], comparable with the second half of text features."""
        return self._vision(pixel_values, vision_tokens)[1]

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids [T,N] to features [T,E], before normalisation. The mask changes nothing: attention is causal."""
        return self.text_projection(self.text_model(input_ids))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        vision_tokens: torch.Tensor | None = None,
        return_loss: bool = False,
        **kwargs: Any,
    ) -> DinoTxtOutput:
        """Token ids [T,N] and images [B,3,H,W], or `vision_tokens` of the backbone, to their similarities."""
        image, patches, backbone_patches = self._vision(pixel_values, vision_tokens)
        # Half precision would round the cosines, and the logit scale would multiply the errors.
        with torch.autocast(image.device.type, enabled=False):
            image_embeds = normalize(image.float(), dim=-1)
        text = self.get_text_features(input_ids)
        with torch.autocast(image.device.type, enabled=False):
            text_embeds = normalize(text.float(), dim=-1)
            scale = self.logit_scale.float().exp()
            logits_per_image = scale * image_embeds @ text_embeds.T
            loss = None
            if return_loss:
                pairs = torch.arange(len(logits_per_image), device=image.device)
                loss = (cross_entropy(logits_per_image, pairs) + cross_entropy(logits_per_image.T, pairs)) / 2
        return DinoTxtOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            patch_embeds=patches,
            backbone_patch_tokens=backbone_patches,
            logit_scale=scale,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Self:
        """As in transformers, from safetensors only; also loads the backbone if the configuration names one."""
        kwargs.setdefault("use_safetensors", True)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        name, revision = model.config.backbone, model.config.backbone_revision
        if name is not None:
            backbone = Dinov3Model.from_pretrained(name, revision=revision or "main", dtype=model.dtype)
            _check_width(backbone.config, model.config.vision_config, name)
            model.vision_model.load_state_dict(backbone.state_dict())
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        backbone: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        """As in transformers; `backbone` (a folder or hub id) is referred to, and its weights are not saved."""
        before = self.config.backbone, self.config.backbone_revision
        self.config.backbone, self.config.backbone_revision = backbone, revision
        if backbone is not None:
            state = kwargs.pop("state_dict", None) or self.state_dict()
            kwargs["state_dict"] = {k: v for k, v in state.items() if not k.startswith("vision_model.")}
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.backbone, self.config.backbone_revision = before


def _check_width(loaded: Dinov3Config, expected: Dinov3Config, name: str) -> None:
    for field in ("hidden_size", "num_hidden_layers", "patch_size", "num_register_tokens"):
        if getattr(loaded, field) != getattr(expected, field):
            raise ValueError(
                f"backbone: {name!r} has {field} {getattr(loaded, field)}, accepted: {getattr(expected, field)}, with "
                "which this text tower was aligned"
            )


__all__ = ["DinoTxtModel", "DinoTxtOutput", "DinoTxtPreTrainedModel", "MAX_LOGIT_SCALE"]
