"""Anyone's weights as a model of this package: a directory, a hub id, or a file in Meta's layout."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ..models.configuration_dinov3 import Dinov3Config
from ..models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3Model
from ..models.modeling_dinov3_convnext import Dinov3ConvNextModel
from ..provenance import is_local
from .meta_convnext import load_meta_convnext
from .meta_vit import load_meta_vit
from .timm import load_timm
from .transformers import HEADS_FILE, load_pretraining
from .weights import PROJECTION_HEADS, read_state_dict


WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
_CONVNEXT_TYPES = ("dinov3_hf_convnext", "dinov3_convnext")


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
    load = load_meta_convnext if "downsample_layers.0.0.weight" in source else load_meta_vit
    return load(source, config_overrides)


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
    if is_local(name) and not (path / "config.json").is_file():
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
        return load_timm(name).float()
    if found.get("model_type") in _CONVNEXT_TYPES:
        return Dinov3ConvNextModel.from_pretrained(name, dtype=torch.float32)
    if found.get("model_type") != Dinov3Config.model_type:
        accepted = ", ".join((Dinov3Config.model_type, "dinov3_vit", *_CONVNEXT_TYPES))
        raise ValueError(f"{field}: {name!r} is of type {found.get('model_type')!r}, accepted: {accepted}")
    if (path / HEADS_FILE).is_file():
        with safe_open(path / HEADS_FILE, "pt") as beside:
            # A backbone alone may have its local norm there.
            if any(key.startswith(PROJECTION_HEADS) for key in beside.keys()):
                return load_pretraining(path).float()
    return Dinov3Model.from_pretrained(name, dtype=torch.float32)


def load_backbone(name: str, field: str = "model") -> Dinov3Model:
    """Vision transformer of anyone's weights, without heads; errors as those of `load_model`."""
    model = load_model(name, field)
    if isinstance(model, Dinov3ConvNextModel):
        raise ValueError(f"{field}: got the ConvNeXt {name!r}, accepted: a vision transformer")
    return model.dinov3 if isinstance(model, Dinov3ForPreTraining) else model
