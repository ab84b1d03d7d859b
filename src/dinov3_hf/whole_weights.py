"""Whole weights: of a model in training, its shards gathered and its adapters merged; from a file, and to stock's folders."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import DINOv3ViTImageProcessor, PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# What stock has no place for lies here, beside model.safetensors.
HEADS_FILE = "heads.safetensors"


def gather(model: nn.Module) -> dict[str, torch.Tensor]:
    """Whole tensors on the CPU; other processes than the first only help to gather them."""
    keep, result = not dist.is_initialized() or dist.get_rank() == 0, {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        if keep:
            result[name] = tensor.cpu().contiguous()
    return result


def merge_adapters(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add LoRA adapters to the weights they belong to: W + scale B A, under the names of a model without them."""
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for name, module in model.named_modules() if tensors else ():
        if hasattr(module, "lora_A"):
            for adapter, scale in module.scaling.items():
                down, up = (tensors[f"{name}.lora_{side}.{adapter}.weight"].float() for side in "AB")
                weight = merged[f"{name}.weight"]
                merged[f"{name}.weight"] = (weight.float() + scale * up @ down).to(weight.dtype)
    return merged


def read_state_dict(source: str | os.PathLike | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """State dict of a .safetensors or torch file, or of what such a file holds: FileNotFoundError, ValueError without one."""
    if not isinstance(source, Mapping):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint file {path}")
        if path.suffix == ".safetensors":
            source = load_file(path)
        else:
            source = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("teacher", "model", "state_dict"):
        if isinstance(source, Mapping) and isinstance(source.get(name), Mapping):
            source = source[name]
    if not isinstance(source, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in source.values()):
        raise ValueError("a checkpoint in Meta's layout is a flat mapping of names to tensors")
    return source


def write_stock(config: PreTrainedConfig, tensors: dict, beside: dict, directory: Path) -> None:
    """A directory of stock's with its image processor; what it has no place for goes to heads.safetensors beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(directory)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    size = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
    processor = DINOv3ViTImageProcessor(size={"height": size[0], "width": size[1]}, do_convert_rgb=True)
    processor.save_pretrained(directory)
    if beside:
        save_file(beside, directory / HEADS_FILE, metadata={"format": "pt"})
        parts = ", ".join(sorted({name.removeprefix("dinov3.").split(".")[0] for name in beside}))
        logger.warning_once(f"A {config.model_type} directory has no place for {parts}: see {HEADS_FILE} beside it.")
    else:
        (directory / HEADS_FILE).unlink(missing_ok=True)
