"""Anyone's weights as a model of this package: a directory, a hub id, or a file in Meta's layout."""

import contextlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

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
    path_or_state_dict: str | os.PathLike | Mapping[str, torch.Tensor], **config_overrides
) -> Dinov3Model | Dinov3ConvNextModel | Dinov3ForPreTraining:
    """Model of a checkpoint in Meta's layout: a file (.pth or .safetensors) or its state dict.

    Sizes and options are read off the tensors. The number of heads comes from the RoPE periods if the checkpoint holds
    them, else from the published family; `config_overrides` give the rest (`layer_norm_eps`, `rope_normalize_coords`).
    A training state dict (prefixes backbone. dino_head. ibot_head.) gives a `Dinov3ForPreTraining`.

    Raises:
        Refused: no such file, another architecture, or an override that contradicts the tensors.
    """
    source = read_state_dict(path_or_state_dict)
    load = load_meta_convnext if "downsample_layers.0.0.weight" in source else load_meta_vit
    return load(source, config_overrides)


def load_model(name: str, field: str = "model") -> Dinov3Model | Dinov3ConvNextModel | Dinov3ForPreTraining:
    """Model of anyone's weights, in fp32: a directory of ours or of stock, a hub id, or a file in Meta's layout.

    A directory or training file that also holds heads gives a `Dinov3ForPreTraining`. `field` is what errors call `name`.

    Raises:
        Refused: nothing there, a file that cannot be read, another file type or architecture, or weights that are missing.
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
    """Model with a text tower, in fp32, and its processor, of a directory or hub id; errors as those of `load_model`."""
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
    """Configuration of a directory or hub id, as transformers names its type; errors as those of `load_model`."""
    file = Path(name) / "config.json"
    if is_local(name):
        if not os.path.isfile(file):
            raise Refused(
                f"{field}: no config.json in {name!r}, accepted: a model directory, a hub id or a .pth or .safetensors file"
            )
        with readable(file, field):
            found = json.loads(file.read_text("utf-8"))
        if not isinstance(found, dict):
            raise Refused(f"{field}: {file} holds a {type(found).__name__}, accepted: the configuration of a model")
    try:
        with readable(name, field):
            return Dinov3Config.get_config_dict(name)[0]
    except Refused as error:
        if is_local(name):
            raise
        raise Refused(f"{error}: it is no directory here and the hub gave no configuration") from None


def load_whole(model_class: type[PreTrainedModel], name: str, field: str) -> PreTrainedModel:
    """Model of a directory or hub id, in fp32; `Refused` where a weight is missing, which transformers would draw at random."""
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
def readable(name: str | os.PathLike, field: str):
    """Turn whatever a wrong or broken file makes its reader raise into `Refused`, which names the field and the file."""
    progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    # transformers reports at length what does not fit; callers say it in one line.
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
    """Vision transformer of anyone's weights, without heads; errors as those of `load_model`."""
    model = load_model(name, field)
    if isinstance(model, Dinov3ConvNextModel):
        raise Refused(f"{field}: got the ConvNeXt {name!r}, accepted: a vision transformer")
    return model.dinov3 if isinstance(model, Dinov3ForPreTraining) else model
