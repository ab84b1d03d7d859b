"""Reading and writing DINOv3 weights in the layouts of transformers and of Meta."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import DINOv3ViTConfig, PreTrainedModel
from transformers.utils import logging

from .models.configuration_dinov3 import SIZES, Dinov3Config
from .models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3Model, Dinov3PreTrainedModel
from .models.modeling_dinov3_convnext import Dinov3ConvNextForImageClassification, Dinov3ConvNextModel
from .models.rope_dinov3 import rope_periods
from .whole_weights import HEADS_FILE, gather, merge_adapters, read_state_dict, write_stock


logger = logging.get_logger(__name__)

LAYOUTS = ("transformers", "meta", "timm", "onnx")
WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
_HEADS = ("dino_head", "ibot_head")
_QKV = ("query", "key", "value")
_CONVNEXT_TYPES = ("dinov3_hf_convnext", "dinov3_convnext")

# Ours to Meta's. The fused qkv and the differently shaped mask token are handled apart.
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


def load_meta(
    path_or_state_dict: str | os.PathLike | Mapping[str, torch.Tensor], **config_overrides
) -> Dinov3Model | Dinov3ConvNextModel | Dinov3ForPreTraining:
    """Model of a checkpoint in Meta's layout: a file (.pth or .safetensors) or its state dict.

    Sizes and options are read off the tensors. The number of heads comes from the RoPE periods if the checkpoint holds
    them, else from the published family; `config_overrides` give the rest (`layer_norm_eps`, `rope_normalize_coords`).
    A training state dict (prefixes backbone. dino_head. ibot_head.) gives a `Dinov3ForPreTraining`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another architecture, or an override that contradicts the tensors.
    """
    source = read_state_dict(path_or_state_dict)
    if "downsample_layers.0.0.weight" in source:
        from .checkpoints_convnext import load_meta_convnext

        return load_meta_convnext(source, config_overrides)
    if not any(name.startswith("backbone.") for name in source):
        tensors, fields = _vit_from_meta(source, config_overrides)
        return _build(Dinov3Model, tensors, fields, config_overrides)
    unknown = sorted({name.split(".")[0] for name in source} - {"backbone", *_HEADS})
    if unknown:
        raise ValueError(f"training checkpoint holds {', '.join(unknown)}; accepted: backbone, dino_head, ibot_head")
    tensors, fields = _vit_from_meta(_strip(source, "backbone"), config_overrides)
    tensors = {f"dinov3.{name}": tensor for name, tensor in tensors.items()}
    for head in _HEADS:
        weights = {re.sub(r"^mlp\.(weight|bias)$", r"mlp.0.\1", k): v for k, v in _strip(source, head).items()}
        fields.update(_head_fields(head, weights))
        tensors.update({f"{head}.{name}": tensor for name, tensor in weights.items()})
    return _build(Dinov3ForPreTraining, tensors, fields, config_overrides)


def load_model(name: str, field: str = "model") -> Dinov3Model | Dinov3ConvNextModel | Dinov3ForPreTraining:
    """Model of anyone's weights, in fp32: a directory of ours or of stock, a hub id, or a file in Meta's layout.

    A directory or training file that also holds heads gives a `Dinov3ForPreTraining`. `field` is what errors call `name`.

    Raises:
        FileNotFoundError: nothing there, and the hub has nothing of that name.
        ValueError: another file type or architecture.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix not in WEIGHT_SUFFIXES:
            raise ValueError(
                f"{field}: got {name!r}, accepted: a directory, a hub id, or a {', '.join(WEIGHT_SUFFIXES)} file"
            )
        return load_meta(path).float()
    looks_local = path.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{field}: no config.json in {name!r}, accepted: a model directory, a hub id or a .pth or .safetensors file"
        )
    try:
        found, _ = Dinov3Config.get_config_dict(name)
    except OSError as error:
        raise FileNotFoundError(
            f"{field}: {name!r} is no directory here and the hub gave no configuration: {str(error).splitlines()[0]}"
        ) from None
    if found.get("model_type") == "timm_wrapper":
        from .export_timm import load_timm

        return load_timm(name).float()
    if found.get("model_type") in _CONVNEXT_TYPES:
        return Dinov3ConvNextModel.from_pretrained(name, dtype=torch.float32)
    if found.get("model_type") != Dinov3Config.model_type:
        accepted = ", ".join((Dinov3Config.model_type, "dinov3_vit", *_CONVNEXT_TYPES))
        raise ValueError(f"{field}: {name!r} is of type {found.get('model_type')!r}, accepted: {accepted}")
    if (path / HEADS_FILE).is_file():
        with safe_open(path / HEADS_FILE, "pt") as beside:
            # A backbone alone may have its local norm there.
            if any(key.startswith(_HEADS) for key in beside.keys()):
                return load_pretraining(path).float()
    return Dinov3Model.from_pretrained(name, dtype=torch.float32)


def load_backbone(name: str, field: str = "model") -> Dinov3Model:
    """Vision transformer of anyone's weights, without heads; errors as those of `load_model`."""
    model = load_model(name, field)
    if isinstance(model, Dinov3ConvNextModel):
        raise ValueError(f"{field}: got the ConvNeXt {name!r}, accepted: a vision transformer")
    return model.dinov3 if isinstance(model, Dinov3ForPreTraining) else model


def load_pretraining(directory: str | os.PathLike) -> Dinov3ForPreTraining:
    """Pretraining network of a directory that `export` wrote from one: backbone, heads and local norm."""
    directory = Path(directory)
    if not (directory / HEADS_FILE).is_file():
        raise FileNotFoundError(f"{directory} has no {HEADS_FILE}: export a Dinov3ForPreTraining to get one")
    tensors = {f"dinov3.{k}": v for k, v in load_file(directory / "model.safetensors").items()}
    heads = load_file(directory / HEADS_FILE)
    fields = {k: v for k, v in Dinov3Config.from_pretrained(directory).to_dict().items() if k in _config_fields()}
    fields["untie_global_and_local_cls_norm"] = "dinov3.local_cls_norm.weight" in heads
    for head in _HEADS:
        fields.update(_head_fields(head, _strip(heads, head)))
    return _build(Dinov3ForPreTraining, {**tensors, **heads}, fields, {})


def export(model: PreTrainedModel, directory: str | os.PathLike, layout: str = "transformers") -> Path:
    """Writes `model` for use elsewhere and returns the directory.

    "transformers" writes a `dinov3_vit` or `dinov3_convnext` directory with its image processor, which plain `AutoModel`
    reads where this package is absent; heads and local norm, which it has no place for, go to heads.safetensors beside
    it. "meta" writes model.pth with Meta's names, "timm" a directory for `timm.create_model` (no ConvNeXt), "onnx"
    model.onnx; these two leave out mask token, local norm and heads.

    A sharded model is gathered: call it on every process, the first one writes.

    Raises:
        ValueError: an unknown layout, or a model the layout cannot represent.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    convnext = isinstance(model, (Dinov3ConvNextModel, Dinov3ConvNextForImageClassification))
    if not convnext and not isinstance(model, Dinov3PreTrainedModel):
        raise TypeError(f"export needs a whole Dinov3 model of this package, got {type(model).__name__}")
    backbone = getattr(model, "dinov3", model)
    everything, prefix = merge_adapters(model, gather(model)), "" if backbone is model else "dinov3."
    tensors = {name.removeprefix(prefix): value for name, value in everything.items() if name.startswith(prefix)}
    beside = {name: value for name, value in everything.items() if not name.startswith(prefix)}
    directory = Path(directory)
    if dist.is_initialized() and dist.get_rank() > 0:
        return directory
    if layout == "onnx":
        from .export_onnx import export_onnx as write
    elif convnext:
        from .checkpoints_convnext import writer

        write = writer(layout)
    elif layout == "timm":
        from .export_timm import export_timm as write
    else:
        write = {"transformers": _export_transformers, "meta": _export_meta}[layout]
    write(backbone.config, tensors, beside, directory)
    return directory


def _export_transformers(config: Dinov3Config, tensors: dict, beside: dict, directory: Path) -> None:
    if config.rope_normalize_coords != "separate":
        raise ValueError(
            f"rope_normalize_coords={config.rope_normalize_coords!r}: a dinov3_vit directory can only hold 'separate'"
        )
    if config.rope_min_period is not None:
        raise ValueError(
            f"rope_min_period={config.rope_min_period}, rope_max_period={config.rope_max_period}: "
            "a dinov3_vit directory can only hold rope_theta"
        )
    stock = set(DINOv3ViTConfig.default_config_fields())
    fields = {k: v for k, v in config.to_dict().items() if k in stock & _config_fields()}
    fields.update(pos_embed_shift=None, pos_embed_jitter=None, pos_embed_rescale=None, drop_path_rate=0.0)
    if not config.layerscale_value:
        # Stock always has layer scale: ones change nothing.
        fields["layerscale_value"] = 1.0
        ones = torch.ones(config.hidden_size, dtype=tensors["norm.weight"].dtype)
        for index in range(config.num_hidden_layers):
            tensors.update({f"layer.{index}.layer_scale{i}.lambda1": ones.clone() for i in (1, 2)})
    local_norm = [name for name in tensors if name.startswith("local_cls_norm.")]
    beside = beside | {f"dinov3.{name}": tensors.pop(name) for name in local_norm}
    write_stock(DINOv3ViTConfig(**fields, architectures=["DINOv3ViTModel"]), tensors, beside, directory)


def _export_meta(config: Dinov3Config, tensors: dict, beside: dict, directory: Path) -> None:
    tensors = _vit_to_meta(config, tensors)
    if beside:
        if not all(name.split(".")[0] in _HEADS for name in beside):
            raise ValueError(f"Meta's layout has no place for {sorted({name.split('.')[0] for name in beside})}")
        # Meta names a head's only layer without an index.
        one_layer = {head for head in _HEADS if getattr(config, f"{head}_num_layers") == 1}
        renamed = {
            name.replace("mlp.0.", "mlp.") if name.split(".")[0] in one_layer else name: tensor
            for name, tensor in beside.items()
        }
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()} | renamed
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, directory / "model.pth")


def _vit_to_meta(config: Dinov3Config, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if config.query_bias != config.value_bias or (config.key_bias and not config.query_bias):
        raise ValueError(
            f"query_bias={config.query_bias}, key_bias={config.key_bias}, value_bias={config.value_bias}: "
            "Meta's layout holds query and value biases together, and a key bias only besides them"
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


def _vit_from_meta(source: Mapping[str, torch.Tensor], overrides: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """Our tensors and the configuration fields they tell."""
    needed = ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight")
    missing = [name for name in needed if name not in source]
    if missing:
        some = ", ".join(sorted(source)[:3]) or "nothing"
        raise ValueError(f"not a DINOv3 ViT in Meta's layout: no {missing[0]!r}; it holds {some}, ...")
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
                raise ValueError(f"not a DINOv3 ViT in Meta's layout: no {theirs!r}")
            tensors[name] = source.pop(theirs)
    if source:
        raise ValueError(f"not a DINOv3 ViT in Meta's layout: it also holds {', '.join(sorted(source)[:3])}")
    return tensors, fields


def _vit_fields(source: Mapping[str, torch.Tensor], overrides: dict) -> dict[str, Any]:
    hidden_size, channels, patch_size = source["patch_embed.proj.weight"].shape[:3]
    depth = 1 + max(int(name.split(".")[1]) for name in source if name.startswith("blocks."))
    gated = "blocks.0.mlp.w1.weight" in source
    mlp = "blocks.0.mlp.w1" if gated else "blocks.0.mlp.fc1"
    if f"{mlp}.weight" not in source:
        raise ValueError(f"not a DINOv3 ViT in Meta's layout: no {f'{mlp}.weight'!r}")
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
            raise ValueError(f"num_attention_heads cannot be told from hidden_size={hidden_size}: pass it")
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


def _head_fields(head: str, weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    layers = [tensor for name, tensor in weights.items() if re.match(r"^mlp\.\d+\.weight$", name)]
    if not layers or "last_layer.weight" not in weights:
        raise ValueError(f"training checkpoint has no {head}.mlp and {head}.last_layer")
    prototypes, bottleneck = weights["last_layer.weight"].shape
    return {
        f"{head}_num_prototypes": prototypes,
        f"{head}_bottleneck_size": bottleneck,
        f"{head}_hidden_size": weights["mlp.0.weight"].shape[0],
        f"{head}_num_layers": len(layers),
    }


def _build(model_class: type, tensors: dict, fields: dict, overrides: dict) -> nn.Module:
    told = set(fields) - {"layerscale_value", "hidden_act"}
    for name, value in overrides.items():
        if name in told and value != fields[name]:
            raise ValueError(f"{name}={value} contradicts the checkpoint, which has {fields[name]}")
    with torch.device("meta"):
        model = model_class(model_class.config_class(**{**fields, **overrides}))
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return model.eval()


def _strip(source: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in source.items() if k.startswith(f"{prefix}.")}


def _config_fields() -> set[str]:
    return set(Dinov3Config.default_config_fields())


__all__ = ["LAYOUTS", "WEIGHT_SUFFIXES", "export", "load_meta", "load_model", "load_pretraining"]
