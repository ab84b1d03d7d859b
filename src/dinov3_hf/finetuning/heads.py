"""Heads of transformers for segmentation, detection and depth, built on a pretrained backbone.

The function `load_backbone` of transformers 5 always initialises a backbone randomly; `build_head` copies the
pretrained weights in.
"""

import copy
import difflib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import DINOv3ViTConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..checkpoints import export
from ..errors import Refused
from ..models.configuration_dinov3 import Dinov3Config
from ..models.configuration_dinov3_pyramid import Dinov3PyramidConfig
from ..models.modeling_dinov3 import Dinov3Model

# Registers the pyramid, which heads find by its configuration.
from ..models.modeling_dinov3_pyramid import Dinov3PyramidBackbone  # noqa: F401
from .adapters import backbone_of


@dataclass(frozen=True)
class Head:
    """A head of transformers, and what it needs from a backbone.

    Args:
        tasks: the tasks it can be trained for.
        model: its class in transformers.
        blocks: number of evenly spaced blocks whose feature maps it takes.
        strides: strides of the feature pyramid it takes; empty if it takes patch maps directly.
        tokens: whether it takes the class token and patch tokens [B,1+P,D] instead of maps.
    """

    tasks: tuple[str, ...]
    model: str
    blocks: int = 4
    strides: tuple[int, ...] = ()
    tokens: bool = False


DENSE_HEADS = {
    "upernet": Head(("segmentation",), "UperNetForSemanticSegmentation"),
    "mask2former": Head(("segmentation", "universal"), "Mask2FormerForUniversalSegmentation", strides=(4, 8, 16, 32)),
    "eomt": Head(("segmentation", "universal"), "EomtDinov3ForUniversalSegmentation", blocks=0),
    "detr": Head(("detection",), "DetrForObjectDetection", blocks=1),
    "conditional_detr": Head(("detection",), "ConditionalDetrForObjectDetection", blocks=1),
    "rtdetr_v2": Head(("detection",), "RTDetrV2ForObjectDetection", blocks=3, strides=(8, 16, 32)),
    "dpt": Head(("depth",), "DPTForDepthEstimation", tokens=True),
    "depth_anything": Head(("depth",), "DepthAnythingForDepthEstimation", tokens=True),
    "zoedepth": Head(("depth",), "ZoeDepthForDepthEstimation", tokens=True),
    "chmv2": Head(("depth",), "CHMv2ForDepthEstimation"),
}
DEFAULTS = {"segmentation": "upernet", "depth": "dpt", "detection": "detr", "universal": "mask2former"}


def build_head(
    backbone: Dinov3Model,
    task: str,
    head: str | None = None,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    freeze_backbone: bool = False,
    **config: Any,
) -> PreTrainedModel:
    """Return a model of transformers with a randomly initialised head on a copy of `backbone`, in eval mode.

    Tasks and their heads, the default first: segmentation (upernet, mask2former, eomt), depth (dpt, depth_anything,
    zoedepth, chmv2), detection (detr, conditional_detr, rtdetr_v2), universal, that is instance and panoptic
    segmentation (mask2former, eomt). Heads that take several blocks get evenly spaced ones, including the last.
    mask2former and rtdetr_v2 take them through a feature pyramid, which replaces the paper's adapter (DINOv3, section
    6.3.2), and need images whose sides are multiples of 32. conditional_detr is closest to the paper's detector: plain
    attention, in an encoder of its own on the last patch map (section 6.3.1). `config` are fields of the head's
    configuration. Nothing is downloaded. With `freeze_backbone` the copied weights are not trained.

    Raises:
        Refused: for an invalid task, head, number of labels or configuration field.
    """
    name = check_head(task, head)
    kind = DENSE_HEADS[name]
    if not isinstance(backbone, Dinov3Model):
        raise Refused(f"backbone: got {type(backbone).__name__}, accepted: Dinov3Backbone or Dinov3Model")
    model_class = getattr(transformers, kind.model)
    check_fields(model_class.config_class, config)
    config |= label_fields(task, num_labels, id2label)
    if name == "eomt":
        model, loaded = build_eomt(backbone, model_class, config)
    else:
        inner = backbone_config(backbone.config, name, freeze_backbone)
        config = head_fields(name, backbone.config) | config
        model = model_class(model_class.config_class(backbone_config=inner, **config))
        prefix, module = backbone_of(model)
        module.load_state_dict(backbone.state_dict())
        loaded = [f"{prefix}.{own}" for own, _ in module.named_parameters()]
    if freeze_backbone:
        for own in loaded:
            model.get_parameter(own).requires_grad_(False)
    return model.to(backbone.device).eval()


def check_head(task: str, head: str | None) -> str:
    """Return the name of the head, for `None` the task's default; `Refused` if it does not exist or fit the task."""
    if task not in DEFAULTS:
        raise Refused(f"task: got {task!r}, accepted: {', '.join(DEFAULTS)}")
    name = head or DEFAULTS[task]
    fitting = [known for known, kind in DENSE_HEADS.items() if task in kind.tasks]
    if name not in DENSE_HEADS:
        nearest = difflib.get_close_matches(name, DENSE_HEADS, n=1, cutoff=0.0)[0]
        raise Refused(f"head: got {name!r} (did you mean {nearest!r}?), accepted for {task}: {', '.join(fitting)}")
    if name not in fitting:
        raise Refused(f"head: got {name!r}, accepted for {task}: {', '.join(fitting)}")
    return name


def label_fields(task: str, num_labels: int | None, id2label: Mapping[int, str] | None) -> dict[str, Any]:
    """Return the fields of a head's configuration that say which labels it has."""
    if task == "depth":
        if num_labels is not None or id2label is not None:
            raise Refused(f"num_labels: got {num_labels or len(id2label or {})}, accepted: none for depth")
        return {}
    if id2label is None:
        least = 2 if task == "segmentation" else 1
        if num_labels is None or num_labels < least:
            raise Refused(f"num_labels: got {num_labels}, accepted: at least {least}, or id2label")
        return {"num_labels": num_labels}
    if sorted(id2label) != list(range(len(id2label))) or num_labels not in (None, len(id2label)):
        raise Refused(
            f"id2label: got keys {sorted(id2label)[:5]} and num_labels={num_labels}, accepted: 0 to num_labels - 1"
        )
    return {"id2label": dict(id2label), "label2id": {label: index for index, label in id2label.items()}}


def check_fields(config_class: type[PreTrainedConfig], config: Mapping[str, Any]) -> None:
    """Raise `Refused` for a field that the head's configuration lacks; transformers would silently ignore it."""
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    known -= {"backbone_config", "id2label", "label2id"}
    for field, value in config.items():
        if field not in known:
            nearest = difflib.get_close_matches(field, sorted(known), n=1, cutoff=0.0)[0]
            raise Refused(f"{field}: got {value!r}, accepted: a field of {config_class.__name__} such as {nearest}")


def backbone_config(config: Dinov3Config, name: str, frozen: bool) -> Dinov3Config | Dinov3PyramidConfig:
    """Return the configuration of the backbone inside a head; with `frozen` it has no dropout or drop path."""
    kind, depth, inner = DENSE_HEADS[name], config.num_hidden_layers, copy.deepcopy(config)
    if depth < kind.blocks:
        raise Refused(f"head: got {name!r} on a backbone of {depth} blocks, accepted: at least {kind.blocks}")
    inner.out_indices = [round(depth * place / kind.blocks) for place in range(1, kind.blocks + 1)]
    inner.reshape_hidden_states = not kind.tokens
    inner.return_class_token = name == "chmv2"
    if frozen:
        inner.drop_path_rate = inner.attention_dropout = 0.0
    return Dinov3PyramidConfig(vit_config=inner, strides=kind.strides) if kind.strides else inner


def head_fields(name: str, config: Dinov3Config) -> dict[str, Any]:
    """Return configuration fields that a head does not read from its backbone's configuration."""
    if name == "depth_anything":
        return {"patch_size": config.patch_size, "reassemble_hidden_size": config.hidden_size}
    if name == "chmv2":
        return {"patch_size": config.patch_size}
    return {}


def build_eomt(
    backbone: Dinov3Model, model_class: type[PreTrainedModel], config: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """Return an EoMT model (Kerssies et al. 2025) with the backbone's weights, and the names of these parameters.

    EoMT implements the blocks itself, so the weights written by `export` are loaded under new names. Its queries are
    added before the last quarter of the blocks, at most four, and its masks have a stride of 4.
    """
    depth, patch_size = backbone.config.num_hidden_layers, backbone.config.patch_size
    with tempfile.TemporaryDirectory() as directory:
        export(backbone, directory)
        reference = DINOv3ViTConfig.from_pretrained(directory).to_dict()
        tensors = load_file(Path(directory) / "model.safetensors")
    known = model_class.config_class.default_config_fields()
    settings = {field: value for field, value in reference.items() if field in known and not field.startswith("_")}
    settings |= {
        "rope_parameters": {"rope_type": "default", "rope_theta": float(backbone.config.rope_theta)},
        "num_blocks": min(4, max(1, depth // 4)),
        "num_upscale_blocks": max(1, patch_size.bit_length() - 3),
    }
    settings |= config
    size, blocks = settings["image_size"], settings["num_blocks"]
    if not isinstance(size, int) or size % patch_size:
        raise Refused(f"image_size: got {size}, accepted for eomt: one side, a multiple of {patch_size}")
    if not 1 <= blocks <= depth:
        raise Refused(f"num_blocks: got {blocks}, accepted: 1 to {depth}, the blocks of the backbone")
    model = model_class(model_class.config_class(**settings))
    tensors.pop("embeddings.mask_token")
    tensors = {re.sub(r"^layer\.", "layers.", re.sub(r"^norm\.", "layernorm.", k)): v for k, v in tensors.items()}
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"EoMT has no {', '.join(unknown[:3])}")
    return model, list(tensors)


def mask_targets(masks: torch.Tensor, ignore_index: int = 255) -> dict[str, list[torch.Tensor]]:
    """Turn masks of class indices [B,H,W] into the targets of mask2former and eomt.

    For each image: the binary masks [C,H,W] of the C classes it contains, and their indices [C].
    """
    classes = [values[values != ignore_index] for values in (mask.unique() for mask in masks)]
    return {
        "mask_labels": [
            (mask == present[:, None, None]).float() for mask, present in zip(masks, classes, strict=True)
        ],
        "class_labels": classes,
    }


def class_scores(outputs: ModelOutput) -> torch.Tensor:
    """Return the unnormalised class scores [B,K,h,w] of the pixels, from the outputs of mask2former or eomt.

    Sums over queries the product of mask probability and class probabilities (MaskFormer, Cheng et al. 2021, section
    3.4).
    """
    classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", classes, outputs.masks_queries_logits.sigmoid())


def build_dense(
    task: str, backbone: Dinov3Model, name: str, head: str | None, names: list[str] | None, fields: dict[str, Any]
) -> PreTrainedModel:
    """Return `build_head` for the classes `names` (`None` for depth); `fields` go to the head's configuration.

    `name` is where the backbone came from; it is saved as the name of the base model.
    """
    model = build_head(backbone, task, head, None if names is None else len(names), **fields)
    if names is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {label: index for index, label in enumerate(names)}
    model.name_or_path = name
    return model


def upsample_to(maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Resize maps [B,C,h,w] bilinearly to the height and width of the labels."""
    return nn.functional.interpolate(maps.float(), labels.shape[-2:], mode="bilinear")


__all__ = ["DEFAULTS", "DENSE_HEADS", "Head", "build_head", "class_scores", "mask_targets"]
