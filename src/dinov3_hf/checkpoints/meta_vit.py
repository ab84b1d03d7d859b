"""Read and write a vision transformer in Meta's layout, with the projection heads of a training checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import Refused
from ..models.configuration_dinov3 import SIZES, Dinov3Config
from ..models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3Model
from ..models.rope_dinov3 import rope_periods
from .weights import PROJECTION_HEADS, build_model, head_fields, under


_QKV = ("query", "key", "value")

# From our names to Meta's. Code below handles the fused qkv and the mask token, whose shape differs.
_RENAMES = {
    r"^embeddings\.cls_token$": "cls_token",
    r"^embeddings\.register_tokens$": "storage_tokens",
    r"^embeddings\.patch_embeddings\.": "patch_embed.proj.",
    r"^layer\.(\d+)\.attention\.o_proj\.": r"blocks.\1.attn.proj.",
    r"^layer\.(\d+)\.layer_scale([12])\.lambda1$": r"blocks.\1.ls\2.gamma",
    r"^layer\.(\d+)\.norm([12])\.": r"blocks.\1.norm\2.",
    r"^(local_cls_norm|norm)\.": r"\1.",
}
_MLP_RENAMES = {
    False: {"up_proj": "fc1", "down_proj": "fc2"},
    True: {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"},
}


def load_meta_vit(source: Mapping[str, torch.Tensor], overrides: dict[str, Any]) -> Dinov3Model | Dinov3ForPreTraining:
    """Build a model from a state dict in Meta's layout; sizes and options are inferred from the tensors.

    Raises:
        Refused: tensors of another architecture, or an override that contradicts them.
    """
    if not any(name.startswith("backbone.") for name in source):
        tensors, fields = vit_from_meta(source, overrides)
        return build_model(Dinov3Model, tensors, fields, overrides)
    unknown = sorted({name.split(".")[0] for name in source} - {"backbone", *PROJECTION_HEADS})
    if unknown:
        raise Refused(f"training checkpoint holds {', '.join(unknown)}; accepted: backbone, dino_head, ibot_head")
    tensors, fields = vit_from_meta(under(source, "backbone"), overrides)
    tensors = {f"dinov3.{name}": tensor for name, tensor in tensors.items()}
    for head in PROJECTION_HEADS:
        weights = {re.sub(r"^mlp\.(weight|bias)$", r"mlp.0.\1", k): v for k, v in under(source, head).items()}
        fields.update(head_fields(head, weights))
        tensors.update({f"{head}.{name}": tensor for name, tensor in weights.items()})
    return build_model(Dinov3ForPreTraining, tensors, fields, overrides)


def write_meta_vit(config: Dinov3Config, tensors: dict, extra: dict, directory: Path) -> None:
    """Write model.pth; `Refused` for a model that Meta's layout cannot hold."""
    tensors = vit_to_meta(config, tensors)
    if extra:
        if not all(name.split(".")[0] in PROJECTION_HEADS for name in extra):
            raise Refused(f"Meta's layout cannot hold {', '.join(sorted({name.split('.')[0] for name in extra}))}")
        # Meta names a head's only layer without an index.
        one_layer = {head for head in PROJECTION_HEADS if getattr(config, f"{head}_num_layers") == 1}
        renamed = {
            name.replace("mlp.0.", "mlp.") if name.split(".")[0] in one_layer else name: tensor
            for name, tensor in extra.items()
        }
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()} | renamed
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, directory / "model.pth")


def vit_to_meta(config: Dinov3Config, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a backbone's tensors under Meta's names."""
    if config.query_bias != config.value_bias or (config.key_bias and not config.query_bias):
        raise Refused(
            f"query_bias={config.query_bias}, key_bias={config.key_bias}, value_bias={config.value_bias}: "
            "Meta's layout holds query and value biases together, and a key bias only in addition to them"
        )
    result, size = {}, config.hidden_size
    for name, tensor in tensors.items():
        if re.search(r"\.[qkv]_proj\.", name):
            continue
        if name == "embeddings.mask_token":
            result["mask_token"] = tensor.squeeze(0)
        else:
            result[_rename(name, config.use_gated_mlp)] = tensor
    for index in range(config.num_hidden_layers):
        ours, theirs = f"layer.{index}.attention", f"blocks.{index}.attn.qkv"
        result[f"{theirs}.weight"] = torch.cat([tensors[f"{ours}.{n}_proj.weight"] for n in "qkv"])
        if config.query_bias:
            no_bias = torch.zeros(size, dtype=tensors["norm.weight"].dtype)
            result[f"{theirs}.bias"] = torch.cat([tensors.get(f"{ours}.{n}_proj.bias", no_bias) for n in "qkv"])
            if not config.key_bias:
                result[f"{theirs}.bias_mask"] = torch.cat([no_bias + 1, no_bias, no_bias + 1])
    result["rope_embed.periods"] = rope_periods(
        size // config.num_attention_heads, config.rope_theta, config.rope_min_period, config.rope_max_period
    )
    if not config.num_register_tokens:
        del result["storage_tokens"]
    return result


def _rename(name: str, gated: bool) -> str:
    mlp = re.match(r"^layer\.(\d+)\.mlp\.(\w+)\.(weight|bias)$", name)
    if mlp:
        return f"blocks.{mlp[1]}.mlp.{_MLP_RENAMES[gated][mlp[2]]}.{mlp[3]}"
    for pattern, replacement in _RENAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(name)


def vit_from_meta(source: Mapping[str, torch.Tensor], overrides: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors under our names, and the configuration fields inferred from them."""
    needed = ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight")
    missing = [name for name in needed if name not in source]
    if missing:
        some = ", ".join(sorted(source)[:3]) or "nothing"
        raise Refused(f"not a DINOv3 ViT in Meta's layout: no {missing[0]!r}; it holds {some}, ...")
    fields = _vit_fields(source, overrides)
    size = fields["hidden_size"]
    source = dict(source)
    tensors = {
        # A checkpoint without registers still fills the empty parameter.
        "embeddings.register_tokens": source.pop("storage_tokens", torch.zeros(1, 0, size)),
        "embeddings.mask_token": source.pop("mask_token", torch.zeros(1, size)).reshape(1, 1, size),
    }
    source.pop("rope_embed.periods", None)
    for index in range(fields["num_hidden_layers"]):
        ours, theirs = f"layer.{index}.attention", f"blocks.{index}.attn.qkv"
        for kind in ("weight", "bias"):
            parts = source.pop(f"{theirs}.{kind}").chunk(3) if f"{theirs}.{kind}" in source else ()
            for name, part in zip(_QKV, parts, strict=bool(parts)):
                if kind == "weight" or fields[f"{name}_bias"]:
                    tensors[f"{ours}.{name[0]}_proj.{kind}"] = part.clone()
        source.pop(f"{theirs}.bias_mask", None)
    with torch.device("meta"):
        names = Dinov3Model(Dinov3Config(**{**fields, **overrides})).state_dict()
    for name in names:
        if name not in tensors:
            theirs = _rename(name, fields["use_gated_mlp"])
            if theirs not in source:
                raise Refused(f"not a DINOv3 ViT in Meta's layout: no {theirs!r}")
            tensors[name] = source.pop(theirs)
    if source:
        raise Refused(f"not a DINOv3 ViT in Meta's layout: it also holds {', '.join(sorted(source)[:3])}")
    return tensors, fields


def _vit_fields(source: Mapping[str, torch.Tensor], overrides: dict) -> dict[str, Any]:
    hidden_size, channels, patch_size = source["patch_embed.proj.weight"].shape[:3]
    depth = 1 + max(int(name.split(".")[1]) for name in source if name.startswith("blocks."))
    gated = "blocks.0.mlp.w1.weight" in source
    mlp = "blocks.0.mlp.w1" if gated else "blocks.0.mlp.fc1"
    if f"{mlp}.weight" not in source:
        raise Refused(f"not a DINOv3 ViT in Meta's layout: no {f'{mlp}.weight'!r}")
    qkv_bias = "blocks.0.attn.qkv.bias" in source
    # The mask is one where a bias acts; published files hold anything else for the key.
    mask = source.get("blocks.0.attn.qkv.bias_mask")
    fields = {
        "hidden_size": hidden_size,
        "num_channels": channels,
        "patch_size": patch_size,
        "num_hidden_layers": depth,
        "intermediate_size": source[f"{mlp}.weight"].shape[0],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "mlp_bias": f"{mlp}.bias" in source,
        "query_bias": qkv_bias,
        "key_bias": qkv_bias and (mask is None or bool((mask[hidden_size : 2 * hidden_size] == 1).all())),
        "value_bias": qkv_bias,
        "proj_bias": "blocks.0.attn.proj.bias" in source,
        "layerscale_value": 1e-5 if "blocks.0.ls1.gamma" in source else None,
        "num_register_tokens": source["storage_tokens"].shape[1] if "storage_tokens" in source else 0,
        "untie_global_and_local_cls_norm": "local_cls_norm.weight" in source,
    }
    periods = source.get("rope_embed.periods")
    if periods is not None:
        fields["num_attention_heads"] = hidden_size // (4 * len(periods))
        fields.update(_rope_fields(periods.double()))
    elif "num_attention_heads" not in overrides:
        family = [size for size in SIZES.values() if size["hidden_size"] == hidden_size]
        if not family:
            raise Refused(f"num_attention_heads cannot be told from hidden_size={hidden_size}: pass it")
        fields["num_attention_heads"] = family[0]["num_attention_heads"]
    return fields


def _rope_fields(periods: torch.Tensor) -> dict[str, float]:
    first, last, count = periods[0].item(), periods[-1].item(), len(periods)
    if count == 1:
        return {}
    if abs(first - 1) > 1e-3:
        return {"rope_min_period": float(f"{first:.6g}"), "rope_max_period": float(f"{last:.6g}")}
    # Three digits: periods may have been rounded to bf16.
    return {"rope_theta": float(f"{last ** (count / (count - 1)):.3g}")}
