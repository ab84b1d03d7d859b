"""Load weights as a model of this package, from a directory, a hub id, or a file in Meta's layout."""

import contextlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import logging

from ..errors import Refused
from ..models.configuration_dinotxt import DinoTxtConfig
from ..models.configuration_dinov3 import Dinov3Config
from ..models.modeling_dinotxt import DinoTxtModel
from ..models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3Model
from ..models.modeling_dinov3_convnext import Dinov3ConvNextModel
from ..models.processing_dinotxt import DinoTxtProcessor
from ..provenance import is_local
from .meta_convnext import load_meta_convnext
from .meta_vit import load_meta_vit
from .names import WEIGHT_SUFFIXES
from .timm import load_timm
from .transformers import HEADS_FILE, load_pretraining
from .weights import PROJECTION_HEADS, read_state_dict


_CONVNEXT_TYPES = ("dinov3_hf_convnext", "dinov3_convnext")


def load_meta(
    path_or_state_dict: str | os.PathLike | Mapping[str, torch.Tensor], **config_overrides: Any
) -> Dinov3Model | Dinov3ConvNextModel | Dinov3ForPreTraining:
    """Load a checkpoint in Meta's layout: a file (.pth or .safetensors) or its state dict.

    Sizes and options are inferred from the tensors; the number of heads from the RoPE periods if the checkpoint holds
    them, else from the published model of this width. `config_overrides` set what tensors do not tell
    (`layer_norm_eps`, `rope_normalize_coords`). A training state dict (prefixes backbone. dino_head. ibot_head.) gives
    a `Dinov3ForPreTraining`.

    Raises:
        Refused: no such file, another architecture, or an override that contradicts the tensors.
    """
    source = read_state_dict(path_or_state_dict)
    load = load_meta_convnext if "downsample_layers.0.0.weight" in source else load_meta_vit
    return load(source, config_overrides)


def load_model(name: str, field: str = "model") -> Dinov3Model | Dinov3ConvNextModel | Dinov3ForPreTraining:
    """Load a model in fp32: a directory or hub id of this package, transformers or timm, or a file in Meta's layout.

    A directory or training file with projection heads gives a `Dinov3ForPreTraining`. Errors call `name` `field`.

    Raises:
        Refused: nothing found, an unreadable file, another file type or architecture, or missing weights.
    """
    path = Path(name)
    if os.path.isfile(path):
        if path.suffix not in WEIGHT_SUFFIXES:
            raise Refused(
                f"{field}: got {name!r}, accepted: a directory, a hub id, or a {', '.join(WEIGHT_SUFFIXES)} file"
            )
        with readable(name, field):
            return load_meta(path).float()
    kind = read_config(name, field).get("model_type")
    if kind == "timm_wrapper":
        with readable(name, field):
            return load_timm(name).float()
    if kind in _CONVNEXT_TYPES:
        return load_whole(Dinov3ConvNextModel, name, field)
    if kind != Dinov3Config.model_type:
        accepted = ", ".join((Dinov3Config.model_type, "dinov3_vit", *_CONVNEXT_TYPES))
        raise Refused(f"{field}: {name!r} is of type {kind!r}, accepted: {accepted}")
    if os.path.isfile(path / HEADS_FILE):
        with readable(name, field), safe_open(path / HEADS_FILE, "pt") as heads:
            # A backbone alone may have its local norm there.
            if any(key.startswith(PROJECTION_HEADS) for key in heads.keys()):
                return load_pretraining(path).float()
    return load_whole(Dinov3Model, name, field)


def load_aligned(name: str, field: str = "model") -> tuple[DinoTxtModel, DinoTxtProcessor]:
    """Load a model with a text tower, in fp32, and its processor; raises as `load_model`."""
    accepted = "accepted: a dinotxt directory, as dinov3 align writes it, or such a hub id"
    if os.path.isfile(name):
        raise Refused(f"{field}: got {name!r}, {accepted}")
    kind = read_config(name, field).get("model_type")
    if kind != DinoTxtConfig.model_type:
        raise Refused(f"{field}: {name!r} is of type {kind!r}, {accepted}")
    with readable(name, field):
        processor = DinoTxtProcessor.from_pretrained(name)
    return load_whole(DinoTxtModel, name, field), processor


def read_config(name: str, field: str = "model") -> dict:
    """Return the configuration of a directory or hub id as a dictionary; raises as `load_model`."""
    file = Path(name) / "config.json"
    if is_local(name):
        if not os.path.isfile(file):
            accepted = "a model directory, a hub id or a .pth or .safetensors file"
            raise Refused(f"{field}: no config.json in {name!r}, accepted: {accepted}")
        with readable(file, field):
            stored = json.loads(file.read_text("utf-8"))
        if not isinstance(stored, dict):
            raise Refused(f"{field}: {file} holds a {type(stored).__name__}, accepted: the configuration of a model")
    try:
        with readable(name, field):
            return Dinov3Config.get_config_dict(name)[0]
    except Refused as error:
        if is_local(name):
            raise
        raise Refused(f"{error}: it is no directory here and the hub gave no configuration") from None


def load_whole(model_class: type[PreTrainedModel], name: str, field: str) -> PreTrainedModel:
    """Load a model in fp32; `Refused` for missing weights, which transformers would initialise randomly."""
    with readable(name, field):
        model, report = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if "mask_token" not in key)
    if missing:
        raise Refused(
            f"{field}: {name!r} lacks {len(missing)} weights ({', '.join(missing[:3])}, ...), accepted: a whole "
            f"{model.config.model_type}"
        )
    return model


@contextlib.contextmanager
def readable(name: str | os.PathLike, field: str) -> Iterator[None]:
    """Turn any error from reading a wrong or broken file into a `Refused` that names the field and the file."""
    progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    # transformers reports mismatches in many lines; callers say them in one.
    logging.set_verbosity_error()
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Readers of JSON, safetensors, pickles and configurations share no class of errors.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its configuration says"
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds no tensors, or more than tensors"
        raise Refused(f"{field}: {str(name)!r} cannot be read ({reason}), accepted: whole files of a model") from error
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


def load_backbone(name: str, field: str = "model") -> Dinov3Model:
    """Load a vision transformer without projection heads; raises as `load_model`."""
    model = load_model(name, field)
    if isinstance(model, Dinov3ConvNextModel):
        raise Refused(f"{field}: got the ConvNeXt {name!r}, accepted: a vision transformer")
    return model.dinov3 if isinstance(model, Dinov3ForPreTraining) else model
