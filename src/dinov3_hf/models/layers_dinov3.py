"""Building blocks of the DINOv3 vision transformer.

Blocks run on one group of crops of the same size as hidden states [B,N,D], or on several groups at once, packed as
[1,sum(B*N),D]: linear layers and norms run on all tokens together; attention, RoPE and drop path on each group alone.
`crop_shapes` holds (B, N) of each group.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_dinov3 import Dinov3Config
from .rope_dinov3 import RotaryTable, apply_rotary


CropShapes = tuple[tuple[int, int], ...]
# A residual branch: from hidden states and the shapes of their crops to the update.
Branch = Callable[[torch.Tensor, CropShapes], torch.Tensor]

_MAX_PLAIN_TOKENS = 1100


def split_crops(packed: torch.Tensor, crop_shapes: CropShapes) -> list[torch.Tensor]:
    """Return views [B,N,*] of the crop groups in `packed` [1,sum(B*N),*] or [B,N,*]."""
    sizes = [batch * length for batch, length in crop_shapes]
    parts = packed.flatten(0, 1).split(sizes)
    return [part.unflatten(0, shape) for part, shape in zip(parts, crop_shapes, strict=True)]


def pack_crops(groups: list[torch.Tensor]) -> torch.Tensor:
    """Join groups [B,N,*] to [1,sum(B*N),*]; a single group stays as it is."""
    if len(groups) == 1:
        return groups[0]
    return torch.cat([group.flatten(0, 1) for group in groups])[None]


def layer_number(name: str, num_layers: int) -> int:
    """Return the depth of a backbone's parameter for layer-wise learning rate decay (BEiT, appendix).

    0 for the embeddings, i + 1 for block i, `num_layers` + 1 for what comes after the blocks.
    """
    if block := re.search(r"(?:^|\.)layer\.(\d+)\.", name):
        return int(block[1]) + 1
    return 0 if re.search(r"(?:^|\.)embeddings\.", name) else num_layers + 1


class Dinov3Embeddings(nn.Module):
    """Patch embedding preceded by the class token and R register tokens."""

    def __init__(self, config: Dinov3Config):
        super().__init__()
        size = config.hidden_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, size))
        self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, size))
        self.patch_embeddings = nn.Conv2d(
            config.num_channels, size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        """Images [B,C,H,W] and masked positions [B,P] bool to tokens [B,1+R+P,D]."""
        patches = self.patch_embeddings(pixel_values.to(self.patch_embeddings.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)
        cls_token = self.cls_token
        if bool_masked_pos is not None:
            if bool_masked_pos.shape != patches.shape[:2]:
                raise ValueError(
                    f"bool_masked_pos of shape {tuple(bool_masked_pos.shape)} must be {tuple(patches.shape[:2])}, "
                    "one value a patch"
                )
            patches = torch.where(bool_masked_pos.bool()[..., None], self.mask_token.to(patches.dtype), patches)
        elif self.training:
            # Gives the mask token a zero gradient, which optimizer state, DDP and FSDP need.
            cls_token = cls_token + 0 * self.mask_token
        prefix = torch.cat([cls_token, self.register_tokens], dim=1).to(patches.dtype)
        return torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.dropout(weights.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


def select_attention(implementation: str, query: torch.Tensor) -> Callable:
    """Return the attention function for a query [B,heads,N,d]."""
    # On CPU in bf16, PyTorch's fused kernel takes 2 (inference) to 5 times (training) as long as plain matrix products
    # up to about a thousand tokens; benchmarks/forward.py shows it.
    if (
        implementation == "sdpa"
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[2] <= _MAX_PLAIN_TOKENS
    ):
        return eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


class Dinov3Attention(nn.Module):
    """Multi-head self-attention with rotary positions, dispatched to `config._attn_implementation`."""

    def __init__(self, config: Dinov3Config):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.query_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.key_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.value_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.proj_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[RotaryTable | None, ...],
        crop_shapes: CropShapes,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens attend within their own crop; a group whose table is `None` gets no rotary positions."""
        heads = (-1, self.head_dim)
        queries = split_crops(self.q_proj(hidden_states).unflatten(-1, heads), crop_shapes)
        keys = split_crops(self.k_proj(hidden_states).unflatten(-1, heads), crop_shapes)
        values = split_crops(self.v_proj(hidden_states).unflatten(-1, heads), crop_shapes)
        outputs, weights = [], None
        for query, key, value, table in zip(queries, keys, values, position_embeddings, strict=True):
            if table is not None:
                query, key = apply_rotary(query, table), apply_rotary(key, table)
            query = query.transpose(1, 2)
            output, weights = select_attention(self.config._attn_implementation, query)(
                self,
                query,
                key.transpose(1, 2),
                value.transpose(1, 2),
                None,
                dropout=self.config.attention_dropout if self.training else 0.0,
                scaling=self.scaling,
                **kwargs,
            )
            outputs.append(output.flatten(2))
        return self.o_proj(pack_crops(outputs)), weights


class Dinov3LayerScale(nn.Module):
    """Residual connection with a learned scale for each channel."""

    def __init__(self, config: Dinov3Config):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, update: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(residual, update, self.lambda1)


class Dinov3MLP(nn.Module):
    def __init__(self, config: Dinov3Config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class Dinov3GatedMLP(nn.Module):
    def __init__(self, config: Dinov3Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class Dinov3Layer(GradientCheckpointingLayer):
    """Pre-norm transformer block with drop path by subsets of images.

    Drop path runs a residual branch only on a random subset of each crop group's images, which saves the FLOPs of the
    others, and scales the result by B / kept (DINOv2, section 5). Attention and MLP draw their subsets independently.
    """

    def __init__(self, config: Dinov3Config):
        super().__init__()
        self.drop_path_rate = config.drop_path_rate
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Dinov3Attention(config)
        self.layer_scale1 = Dinov3LayerScale(config) if config.layerscale_value else None
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Dinov3GatedMLP(config) if config.use_gated_mlp else Dinov3MLP(config)
        self.layer_scale2 = Dinov3LayerScale(config) if config.layerscale_value else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[RotaryTable | None, ...],
        crop_shapes: CropShapes,
        **kwargs: Any,
    ) -> torch.Tensor:
        def attention(states: torch.Tensor, crop_shapes: CropShapes) -> torch.Tensor:
            return self.attention(self.norm1(states), position_embeddings, crop_shapes, **kwargs)[0]

        def mlp(states: torch.Tensor, crop_shapes: CropShapes) -> torch.Tensor:
            return self.mlp(self.norm2(states))

        residual = self._drop_path if self.training and self.drop_path_rate > 0 else self._residual
        hidden_states = residual(attention, self.layer_scale1, hidden_states, crop_shapes)
        return residual(mlp, self.layer_scale2, hidden_states, crop_shapes)

    def _residual(
        self,
        branch: Branch,
        layer_scale: Dinov3LayerScale | None,
        hidden_states: torch.Tensor,
        crop_shapes: CropShapes,
    ) -> torch.Tensor:
        update = branch(hidden_states, crop_shapes)
        return hidden_states + update if layer_scale is None else layer_scale(update, hidden_states)

    def _drop_path(
        self,
        branch: Branch,
        layer_scale: Dinov3LayerScale | None,
        hidden_states: torch.Tensor,
        crop_shapes: CropShapes,
    ) -> torch.Tensor:
        groups = split_crops(hidden_states, crop_shapes)
        rows = [
            torch.randperm(batch, device=hidden_states.device)[: max(int(batch * (1 - self.drop_path_rate)), 1)]
            for batch, _ in crop_shapes
        ]
        kept = [group.index_select(0, index) for group, index in zip(groups, rows, strict=True)]
        kept_shapes = tuple((len(index), length) for index, (_, length) in zip(rows, crop_shapes, strict=True))
        update = branch(pack_crops(kept), kept_shapes)
        if layer_scale is not None:
            update = update * layer_scale.lambda1
        updates = split_crops(update.to(hidden_states.dtype), kept_shapes)
        return pack_crops(
            [
                group.index_add(0, index, update, alpha=group.shape[0] / len(index))
                for group, index, update in zip(groups, rows, updates, strict=True)
            ]
        )


__all__ = ["Dinov3Embeddings", "Dinov3Layer"]
