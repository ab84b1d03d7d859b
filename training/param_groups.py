"""Parameter groups: layer-wise learning rates and what is not decayed (DINOv2, appendix; BEiT)."""

import re

from torch import nn


def parameter_groups(model: nn.Module, layerwise_decay: float, patch_embed_lr_mult: float) -> list[dict]:
    """Group the trainable parameters of a model by their multipliers.

    Block i of n learns at `layerwise_decay ** (n - i)` of the rate, tokens and patch embedding (times
    `patch_embed_lr_mult`) one power further down, final norms and heads at the full rate. Biases, norms and layer
    scales are not decayed. Returns dictionaries of "params", "names", "lr_multiplier", "wd_multiplier", "is_last_layer"
    (prototypes, which may be frozen at first) and "is_backbone" (which may rest while new heads warm up).
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = 1 + max(
        (int(found[1]) for name in names if (found := re.search(r"(?:^|\.)layer\.(\d+)\.", name))), default=-1
    )
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = blocks + 1
        if found := re.search(r"(?:^|\.)layer\.(\d+)\.", name):
            depth = int(found[1]) + 1
        elif "embeddings." in name:
            depth = 0
        lr_multiplier = layerwise_decay ** (blocks + 1 - depth)
        if "patch_embeddings." in name:
            lr_multiplier *= patch_embed_lr_mult
        # Tokens have three dimensions; biases, norms and layer scales, and nothing else, have one.
        wd_multiplier = 0.0 if parameter.ndim < 2 else 1.0
        key = (lr_multiplier, wd_multiplier, "last_layer" in name, "_head." not in name)
        kinds = ("lr_multiplier", "wd_multiplier", "is_last_layer", "is_backbone")
        group = groups.setdefault(key, {"params": [], "names": [], **dict(zip(kinds, key, strict=True))})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
