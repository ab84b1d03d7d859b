"""LoRA adapters on a backbone's blocks: which layers get them, and how they are added to the weights."""

import re

import torch
from torch import nn

from .names import TARGET_MODULES


def target_pattern(prefix: str = "", target_modules: tuple[str, ...] | list[str] = TARGET_MODULES) -> str:
    """Return a regular expression for the full names of layers that get adapters; `prefix` stands before `layer.0`."""
    return rf"{re.escape(prefix)}layer\.\d+\.(?:\w+\.)?(?:{'|'.join(target_modules)})"


def merge_adapters(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add LoRA adapters to their base weights, W + scale B A, and name all weights as without adapters."""
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for name, module in model.named_modules() if tensors else ():
        if hasattr(module, "lora_A"):
            for adapter, scale in module.scaling.items():
                down, up = (tensors[f"{name}.lora_{side}.{adapter}.weight"].float() for side in "AB")
                weight = merged[f"{name}.weight"]
                merged[f"{name}.weight"] = (weight.float() + scale * up @ down).to(weight.dtype)
    return merged
