"""Directories of transformers' own DINOv3 classes, which `AutoModel` reads, with our heads in a file next to them."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DINOv3ConvNextConfig, DINOv3ViTConfig, DINOv3ViTImageProcessor, PreTrainedConfig
from transformers.utils import logging

from ..errors import Refused
from ..models.configuration_dinov3 import Dinov3Config, field_names
from ..models.configuration_dinov3_convnext import Dinov3ConvNextConfig
from ..models.modeling_dinov3 import Dinov3ForPreTraining
from .weights import PROJECTION_HEADS, build_model, head_fields, under


logger = logging.get_logger(__name__)

# Holds, next to model.safetensors, what transformers' DINOv3 classes do not have: projection heads and local norm.
HEADS_FILE = "heads.safetensors"


def load_pretraining(directory: str | os.PathLike) -> Dinov3ForPreTraining:
    """Load a pretraining network (backbone, heads and local norm) from a directory that `export` wrote."""
    directory = Path(directory)
    if not (directory / HEADS_FILE).is_file():
        raise Refused(f"{directory} has no {HEADS_FILE}: export a Dinov3ForPreTraining to get one")
    tensors = {f"dinov3.{k}": v for k, v in load_file(directory / "model.safetensors").items()}
    heads = load_file(directory / HEADS_FILE)
    fields = {
        k: v for k, v in Dinov3Config.from_pretrained(directory).to_dict().items() if k in field_names(Dinov3Config)
    }
    fields["untie_global_and_local_cls_norm"] = "dinov3.local_cls_norm.weight" in heads
    for head in PROJECTION_HEADS:
        fields.update(head_fields(head, under(heads, head)))
    return build_model(Dinov3ForPreTraining, {**tensors, **heads}, fields, {})


def write_vit(config: Dinov3Config, tensors: dict, extra: dict, directory: Path) -> None:
    """Write a `dinov3_vit` directory; `Refused` for a model that it cannot hold."""
    if config.rope_normalize_coords != "separate":
        raise Refused(
            f"rope_normalize_coords={config.rope_normalize_coords!r}: a dinov3_vit directory can only hold 'separate'"
        )
    if config.rope_min_period is not None:
        raise Refused(
            f"rope_min_period={config.rope_min_period}, rope_max_period={config.rope_max_period}: "
            "a dinov3_vit directory can only hold rope_theta"
        )
    reference = set(DINOv3ViTConfig.default_config_fields())
    fields = {k: v for k, v in config.to_dict().items() if k in reference & field_names(Dinov3Config)}
    fields.update(pos_embed_shift=None, pos_embed_jitter=None, pos_embed_rescale=None, drop_path_rate=0.0)
    if not config.layerscale_value:
        # transformers' model always has layer scale: ones change nothing.
        fields["layerscale_value"] = 1.0
        ones = torch.ones(config.hidden_size, dtype=tensors["norm.weight"].dtype)
        for index in range(config.num_hidden_layers):
            tensors.update({f"layer.{index}.layer_scale{i}.lambda1": ones.clone() for i in (1, 2)})
    local_norm = [name for name in tensors if name.startswith("local_cls_norm.")]
    extra = extra | {f"dinov3.{name}": tensors.pop(name) for name in local_norm}
    _write(DINOv3ViTConfig(**fields, architectures=["DINOv3ViTModel"]), tensors, extra, directory)


def write_convnext(config: Dinov3ConvNextConfig, tensors: dict, extra: dict, directory: Path) -> None:
    """Write a `dinov3_convnext` directory."""
    names = field_names(DINOv3ConvNextConfig) - field_names(PreTrainedConfig)
    fields = {name: getattr(config, name) for name in names}
    fields |= {"architectures": ["DINOv3ConvNextModel"], "drop_path_rate": 0.0}
    _write(DINOv3ConvNextConfig(**fields), tensors, extra, directory)


def _write(config: PreTrainedConfig, tensors: dict, extra: dict, directory: Path) -> None:
    """Write a model and its image processor as transformers does, and `extra` to heads.safetensors next to them."""
    directory.mkdir(parents=True, exist_ok=True)
    config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(directory)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    size = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
    processor = DINOv3ViTImageProcessor(size={"height": size[0], "width": size[1]}, do_convert_rgb=True)
    processor.save_pretrained(directory)
    if extra:
        save_file(extra, directory / HEADS_FILE, metadata={"format": "pt"})
        logger.warning_once(
            f"Saved {_describe(extra)} to {HEADS_FILE}, as a {config.model_type} directory cannot hold them."
        )
    else:
        (directory / HEADS_FILE).unlink(missing_ok=True)


def _describe(names: Iterable[str]) -> str:
    """Return in words what these parameters belong to."""
    modules = sorted({name.removeprefix("dinov3.").split(".")[0] for name in names})
    kinds = dict.fromkeys(PROJECTION_HEADS, "projection heads") | {"local_cls_norm": "local norm weights"}
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(kinds.get(module, "other weights"), []).append(module)
    return " and ".join(f"{kind} ({', '.join(members)})" for kind, members in groups.items())
