"""State dicts: gathered from a model in training, read from a file, loaded into a new model."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

from ..errors import Refused


if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROJECTION_HEADS = ("dino_head", "ibot_head")


def gather(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's unsharded tensors on the CPU; an empty dictionary on all processes but the first."""
    keep, result = not dist.is_initialized() or dist.get_rank() == 0, {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        if keep:
            result[name] = tensor.cpu().contiguous()
    return result


def read_state_dict(source: str | os.PathLike | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return the state dict of a .safetensors or torch file, or of its loaded content; `Refused` if there is none."""
    if not isinstance(source, Mapping):
        path = Path(source)
        if not path.is_file():
            raise Refused(f"no checkpoint file {path}")
        if path.suffix == ".safetensors":
            source = load_file(path)
        else:
            source = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("teacher", "model", "state_dict"):
        if isinstance(source, Mapping) and isinstance(source.get(name), Mapping):
            source = source[name]
    if not isinstance(source, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in source.values()):
        raise Refused("a checkpoint in Meta's layout is a flat mapping of names to tensors")
    return source


def build_model(
    model_class: "type[PreTrainedModel]", tensors: dict, fields: dict, overrides: dict
) -> "PreTrainedModel":
    """Build a model with these tensors, in eval mode, from `fields` inferred from the checkpoint and `overrides`.

    Raises `Refused` for an override that contradicts the checkpoint, and for missing, unexpected or misshapen tensors.
    """
    told = set(fields) - {"layerscale_value", "hidden_act"}
    for name, value in overrides.items():
        if name in told and value != fields[name]:
            raise Refused(f"{name}={value} contradicts the checkpoint, which has {fields[name]}")
    with torch.device("meta"):
        model = model_class(model_class.config_class(**{**fields, **overrides}))
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise Refused(" ".join(str(error).split())) from None
    return model.eval()


def under(source: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names have a prefix, under their names without it."""
    return {k.removeprefix(f"{prefix}."): v for k, v in source.items() if k.startswith(f"{prefix}.")}


def head_fields(head: str, weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the configuration fields of a projection head, inferred from its weights."""
    layers = [tensor for name, tensor in weights.items() if re.match(r"^mlp\.\d+\.weight$", name)]
    if not layers or "last_layer.weight" not in weights:
        raise Refused(f"training checkpoint has no {head}.mlp and {head}.last_layer")
    prototypes, bottleneck = weights["last_layer.weight"].shape
    return {
        f"{head}_num_prototypes": prototypes,
        f"{head}_bottleneck_size": bottleneck,
        f"{head}_hidden_size": weights["mlp.0.weight"].shape[0],
        f"{head}_num_layers": len(layers),
    }


def omitted(names: Iterable[str]) -> list[str]:
    """Return the names of parameters that layouts for inference omit: mask token, local norm, heads."""
    kept = r"(dinov3\.)?(embeddings\.(?!mask_token)|(layer|norm|stages|layer_norm)\.)"
    return [name for name in names if not re.match(kept, name)]


def summarise(names: Iterable[str]) -> str:
    """Return the names of the modules of these parameters as one text, each once."""
    short = (re.sub(r"^(dinov3\.)?(embeddings\.)?", "", name).split(".")[0] for name in names)
    return ", ".join(dict.fromkeys(short))
