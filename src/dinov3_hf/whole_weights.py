"""Whole weights of a model in training: shards gathered from all processes, adapters merged."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor


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
