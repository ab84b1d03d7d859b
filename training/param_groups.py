"""Parameter groups: layer-wise learning rates, and parameters without weight decay (DINOv2, appendix; BEiT)."""

from typing import Any

from torch import nn

from dinov3_hf.models.layers_dinov3 import layer_number


def parameter_groups(model: nn.Module, layerwise_decay: float, patch_embed_lr_mult: float) -> list[dict]:
    """Group the trainable parameters of a model by their multipliers.

    The learning rate of block i of n is multiplied by `layerwise_decay ** (n - i)`; that of tokens and patch embedding
    by one more power of `layerwise_decay`, and for the patch embedding also by `patch_embed_lr_mult`; final norms and
    heads have the full rate. Biases, norms and layer scales have no weight decay. Returns dictionaries of "params",
    "names", "lr_multiplier", "wd_multiplier", "is_last_layer" (the prototypes, which may be frozen at first) and
    "is_backbone" (which may be frozen while new heads warm up).
    """
    names = [name for name, _ in model.named_parameters()]
    # The number of blocks decides the position of what comes after them.
    blocks = max(0, *(layer_number(name, -1) for name in names))
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr_multiplier = layerwise_decay ** (blocks + 1 - layer_number(name, blocks))
        if "patch_embeddings." in name:
            lr_multiplier *= patch_embed_lr_mult
        # Only biases, norms and layer scales have one dimension; tokens have three.
        wd_multiplier = 0.0 if parameter.ndim < 2 else 1.0
        key = (lr_multiplier, wd_multiplier, "last_layer" in name, "_head." not in name)
        kinds = ("lr_multiplier", "wd_multiplier", "is_last_layer", "is_backbone")
        group = groups.setdefault(key, {"params": [], "names": [], **dict(zip(kinds, key, strict=True))})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
