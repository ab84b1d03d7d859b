"""Load the model to evaluate: a vision model as a `Bench`, or a text-aligned model with its processor."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Refused
from ..provenance import describe_weights, is_local
from .arguments import DataArguments, NetworkArguments, OutputArguments, WhatArguments
from .rows import is_rendered
from .task import Evaluation


if TYPE_CHECKING:
    from torch import nn

    from ..data.views import Preprocessing
    from ..models.modeling_dinotxt import DinoTxtModel
    from ..models.processing_dinotxt import DinoTxtProcessor
    from .bench import Bench


@dataclass
class Aligned:
    """A text-aligned model in fp32, and its processor."""

    model: "DinoTxtModel"
    processor: "DinoTxtProcessor"


def load_evaluated_model(recipe: Evaluation) -> "tuple[nn.Module, dict, Preprocessing]":
    """Return the model in the recipe's dtype, the provenance of its weights, and its processor's preprocessing."""
    import torch

    from ..checkpoints import load_model
    from ..checkpoints.processors import image_side, processor_for
    from ..data.views import Preprocessing
    from ..models.modeling_dinov3 import Dinov3ForPreTraining
    from ..pipelines.windows import Windowed

    name, network = recipe.of(WhatArguments).model, recipe.of(NetworkArguments)
    assert name is not None, "checked by validate"
    model = load_model(name)
    model = model.dinov3 if isinstance(model, Dinov3ForPreTraining) else model
    provenance, processor = describe_weights(name, model), processor_for(name, model.config.image_size)
    image_size = network.image_size or image_side(processor)
    is_scene = is_rendered(recipe.of(DataArguments).data)
    resize_size = network.resize_size or (image_size if is_scene else round(image_size * 256 / 224))
    statistics = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    model = model.to(device, getattr(torch, network.dtype)).eval()
    if network.window is not None:
        model = Windowed(model, network.window)
    return model, provenance, Preprocessing(image_size, resize_size, **statistics)


def load_bench(recipe: Evaluation, processes: dict) -> "tuple[Bench, dict]":
    """Return the bench of a vision model and its weights' provenance; `processes` are arguments of `FeatureStore`."""
    from ..data.views import check_image_size
    from .bench import Bench
    from .feature_store import FeatureStore

    model, provenance, preprocessing = load_evaluated_model(recipe)
    check_image_size(preprocessing.image_size, model.config.patch_size)
    by_layer = [task.name for task in recipe.chosen if task.needs_layers]
    if by_layer and not hasattr(model.config, "num_hidden_layers"):
        raise Refused(f"task: got {by_layer[0]}, accepted: another one; the stages of a ConvNeXt share no width")
    network, data = recipe.of(NetworkArguments), recipe.of(DataArguments)
    store = FeatureStore(features_folder(recipe), **processes)
    bench = Bench(model, preprocessing, store, data.batch_size, data.seed, network.baselines, store.rank == 0)
    return bench, provenance


def features_folder(recipe: Evaluation) -> Path:
    """Return the folder in which features are cached."""
    return Path(recipe.of(NetworkArguments).cache_dir or Path(recipe.of(OutputArguments).output_dir) / "features")


def load_evaluated_text_model(name: str) -> tuple[Aligned, dict]:
    """Return a text-aligned model with its processor, and the provenance of its weights."""
    import torch
    from transformers import PreTrainedConfig

    from ..checkpoints.loading import load_whole, readable
    from ..models.modeling_dinotxt import DinoTxtModel
    from ..models.processing_dinotxt import DinoTxtProcessor

    accepted = "accepted for tasks with text: a dinotxt directory, as dinov3 align writes it, or such a hub id"
    path = Path(name)
    if path.is_file() or (is_local(name) and not (path / "config.json").is_file()):
        raise Refused(f"model: got {name!r}, {accepted}")
    # As it is written: `read_config` takes a dinov3_vit for one of ours.
    with readable(name, "model"):
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    if kind != "dinotxt":
        raise Refused(f"model: {name!r} is of type {kind!r}, {accepted}")
    try:
        processor = DinoTxtProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise Refused(f"model: {name!r} has no processor ({str(error).splitlines()[0]}), {accepted}") from None
    model = load_whole(DinoTxtModel, name, "model")
    provenance = describe_weights(name, model)
    if model.config.backbone is not None:
        provenance["backbone"] = {"path": model.config.backbone, "revision": model.config.backbone_revision}
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return Aligned(model, processor), provenance
