"""Read and write a ConvNeXt in Meta's layout."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import Refused
from ..models.configuration_dinov3_convnext import Dinov3ConvNextConfig
from ..models.modeling_dinov3_convnext import Dinov3ConvNextModel
from .weights import build_model


# From our names to Meta's, applied in this order.
_RENAMES = {
    r"^stages\.(\d+)\.downsample_layers\.": r"downsample_layers.\1.",
    r"^stages\.(\d+)\.layers\.": r"stages.\1.",
    r"depthwise_conv": "dwconv",
    r"pointwise_conv": "pwconv",
    r"layer_norm": "norm",
}


def load_meta_convnext(source: Mapping[str, torch.Tensor], overrides: dict[str, Any]) -> Dinov3ConvNextModel:
    """Build a model from a state dict in Meta's layout; widths and depths are inferred from the tensors.

    Raises:
        Refused: tensors of another architecture, or an override that contradicts them.
    """
    source, fields = dict(source), _fields(source)
    for kind in ("weight", "bias"):
        norm = source.pop(_norm_of_stage(kind, len(fields["depths"])), None)
        if norm is not None and not torch.equal(norm, source.get(f"norm.{kind}", norm)):
            raise Refused(f"not a DINOv3 ConvNeXt in Meta's layout: its two final norms differ in {kind}")
    with torch.device("meta"):
        names = Dinov3ConvNextModel(Dinov3ConvNextConfig(**fields)).state_dict()
    tensors = {}
    for name in names:
        if _to_meta(name) not in source:
            raise Refused(f"not a DINOv3 ConvNeXt in Meta's layout: no {_to_meta(name)!r}")
        tensors[name] = source.pop(_to_meta(name))
    if source:
        raise Refused(f"not a DINOv3 ConvNeXt in Meta's layout: it also holds {', '.join(sorted(source)[:3])}")
    return build_model(Dinov3ConvNextModel, tensors, fields, overrides)


def write_meta_convnext(config: Dinov3ConvNextConfig, tensors: dict, extra: dict, directory: Path) -> None:
    """Write model.pth; `Refused` for heads, which Meta's layout of a ConvNeXt does not have."""
    if extra:
        raise Refused(f"Meta's layout cannot hold {', '.join(sorted({name.split('.')[0] for name in extra}))}")
    renamed = {_to_meta(name): tensor for name, tensor in tensors.items()}
    for kind in ("weight", "bias"):
        renamed[_norm_of_stage(kind, len(config.depths))] = renamed[f"norm.{kind}"]
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(renamed, directory / "model.pth")


def _fields(source: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    convolutions = [source["downsample_layers.0.0.weight"]]
    while (name := f"downsample_layers.{len(convolutions)}.1.weight") in source:
        convolutions.append(source[name])
    blocks = {tuple(name.split(".")[1:3]) for name in source if name.startswith("stages.")}
    return {
        "num_channels": convolutions[0].shape[1],
        "hidden_sizes": [convolution.shape[0] for convolution in convolutions],
        "depths": [sum(stage == str(index) for stage, _ in blocks) for index in range(len(convolutions))],
    }


def _to_meta(name: str) -> str:
    for pattern, replacement in _RENAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def _norm_of_stage(kind: str, num_stages: int) -> str:
    """Return Meta's second name of the final norm: that of the last stage's norm."""
    return f"norms.{num_stages - 1}.{kind}"
