"""Read timm's DINOv3 weights, and write a directory for `timm.create_model("local-dir:...")`.

The conversion goes through Meta's names; timm's differ from them in the pairs below and in the query and value biases.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import cached_file, logging

from ..errors import Refused
from ..models.configuration_dinov3 import SIZES, Dinov3Config
from ..models.modeling_dinov3 import Dinov3Model
from .meta_vit import load_meta_vit, vit_to_meta
from .weights import summarise


logger = logging.get_logger(__name__)

_META_TO_TIMM = {
    "storage_tokens": "reg_token",
    ".ls1.gamma": ".gamma_1",
    ".ls2.gamma": ".gamma_2",
    ".mlp.w1.": ".mlp.fc1_g.",
    ".mlp.w2.": ".mlp.fc1_x.",
    ".mlp.w3.": ".mlp.fc2.",
}
_ARCHITECTURES = {
    "vits16": "vit_small_patch16_dinov3",
    "vits16plus": "vit_small_plus_patch16_dinov3",
    "vitb16": "vit_base_patch16_dinov3",
    "vitl16": "vit_large_patch16_dinov3",
    "vith16plus": "vit_huge_plus_patch16_dinov3",
    "vit7b16": "vit_7b_patch16_dinov3",
}
# What timm builds without an argument to change it.
_FIXED = {
    "rope_normalize_coords": "separate",
    "rope_min_period": None,
    "layer_norm_eps": 1e-5,
    "key_bias": False,
    "proj_bias": True,
    "mlp_bias": True,
}


def write_timm(
    config: Dinov3Config, tensors: dict[str, torch.Tensor], extra: dict[str, torch.Tensor], directory: Path
) -> None:
    """Write a backbone's `tensors` as model.safetensors and config.json, without its mask token and local norm.

    `extra` (heads) is not written; a warning names it. timm's `forward_features` then gives our `last_hidden_state`,
    its `forward` our `pooler_output`.

    Raises:
        Refused: a model that timm cannot build.
    """
    fixed = _FIXED | {"hidden_act": "silu" if config.use_gated_mlp else "gelu", "query_bias": config.value_bias}
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise Refused(f"{name}: got {getattr(config, name)!r}, accepted: {value!r} in timm's layout")
    written = {}
    for name, tensor in vit_to_meta(config, tensors).items():
        if name.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            written[name.replace("qkv.bias", "q_bias")] = query.clone()
            written[name.replace("qkv.bias", "v_bias")] = value.clone()
        elif not re.match(r"mask_token|local_cls_norm\.|rope_embed\.|.*bias_mask$", name):
            written[_replace(name, _META_TO_TIMM)] = tensor
    directory.mkdir(parents=True, exist_ok=True)
    save_file(written, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(timm_config(config), indent=2) + "\n")
    if extra:
        logger.warning_once(f"timm's layout holds the backbone only, without {summarise(extra)}.")


def timm_config(config: Dinov3Config) -> dict[str, Any]:
    """Return the config.json from which timm builds the model: one of timm's architectures, every size an argument."""
    width, hidden = config.hidden_size, config.intermediate_size
    ratio = hidden / width
    size = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
    arguments = {
        "img_size": list(size),
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": width,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        # timm truncates the product with the width to an integer, which rounding can make one too small.
        "mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
        "swiglu_mlp": config.use_gated_mlp,
        "swiglu_align_to": int(config.use_gated_mlp),
        "qkv_bias": config.query_bias,
        "init_values": config.layerscale_value or None,
        "num_reg_tokens": config.num_register_tokens,
        "rope_temperature": config.rope_theta,
        "global_pool": "token",
    }
    normalisation = {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD)}
    return {
        "architecture": _architecture(config),
        "num_classes": 0,
        "num_features": width,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [config.num_channels, *size],
            "fixed_input_size": False,
            "pool_size": None,
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            **normalisation,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def load_timm(name: str | os.PathLike) -> Dinov3Model:
    """Load timm's DINOv3 weights from a directory or hub id with config.json and model.safetensors.

    timm has no mask token: it is set to zero.

    Raises:
        Refused: an architecture that is no DINOv3 ViT.
    """
    stored = json.loads(Path(cached_file(name, "config.json")).read_text())
    architecture, arguments = stored.get("architecture") or "", stored.get("model_args") or {}
    sizes = [size for size, theirs in _ARCHITECTURES.items() if architecture.removesuffix("_qkvb") == theirs]
    if not sizes:
        raise Refused(f"architecture: got {architecture!r}, accepted: {', '.join(_ARCHITECTURES.values())}")
    source = load_file(cached_file(name, "model.safetensors"))
    to_meta = {theirs: meta for meta, theirs in _META_TO_TIMM.items()}
    if not any(".mlp.fc1_g." in key for key in source):
        # Without a gate both call the second layer fc2.
        del to_meta[".mlp.fc2."]
    tensors = {_replace(key, to_meta): tensor for key, tensor in source.items() if not key.endswith("_bias")}
    for key in [key for key in source if key.endswith(".q_bias")]:
        block, query, value = key.removesuffix("q_bias"), source[key], source[key.replace("q_bias", "v_bias")]
        nothing = torch.zeros_like(query)
        tensors[f"{block}qkv.bias"] = torch.cat([query, nothing, value])
        tensors[f"{block}qkv.bias_mask"] = torch.cat([nothing + 1, nothing, nothing + 1])
    tensors["mask_token"] = torch.zeros_like(tensors["cls_token"][0])
    input_size = arguments.get("img_size") or stored["pretrained_cfg"]["input_size"][1:]
    fields = {
        "num_attention_heads": arguments.get("num_heads", SIZES[sizes[0]]["num_attention_heads"]),
        "rope_theta": arguments.get("rope_temperature", 100.0),
        "image_size": input_size[0] if len(set(input_size)) == 1 else tuple(input_size),
    }
    if arguments.get("init_values"):
        fields["layerscale_value"] = arguments["init_values"]
    return load_meta_vit(tensors, fields)


def _architecture(config: Dinov3Config) -> str:
    same = ("hidden_size", "num_hidden_layers", "use_gated_mlp")
    keys = [getattr(config, name) for name in same]
    # Other sizes are written as the small architecture with all its arguments overridden.
    size = "vits16plus" if config.use_gated_mlp else "vits16"
    for name, fields in SIZES.items():
        if [fields.get(key, False) for key in same] == keys:
            size = name
    return _ARCHITECTURES[size] + ("_qkvb" if config.query_bias and size != "vit7b16" else "")


def _replace(name: str, pairs: dict[str, str]) -> str:
    for old, new in pairs.items():
        name = name.replace(old, new)
    return name
