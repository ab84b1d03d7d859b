"""An evaluation from its settings to the record that results.json holds."""

import datetime
import os
from pathlib import Path

from ..provenance import describe_weights, versions
from .arguments import EvaluateArguments
from .rows import is_rendered
from .text_tasks import evaluate_text


def join_processes() -> dict:
    """Return rank, number and barrier of the processes that a launcher started together; nothing for one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    import torch
    from accelerate import PartialState

    # Unless it is told so, Accelerate takes processes without a GPU for strangers.
    state = PartialState(cpu=not torch.cuda.is_available())
    return {"rank": state.process_index, "num_processes": state.num_processes, "wait": state.wait_for_everyone}


def evaluate(settings: EvaluateArguments, processes: dict | None = None) -> dict:
    """Run the tasks and return the record that results.json holds; `processes` are the arguments of `FeatureStore`."""
    if settings.has_text:
        results, provenance = evaluate_text(settings)
    else:
        results, provenance = evaluate_vision(settings, processes or {})
    return {
        "results": results,
        "model": provenance,
        "settings": vars(settings),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def evaluate_vision(settings: EvaluateArguments, processes: dict) -> tuple[list[dict], dict]:
    """Run the tasks of a vision model; returns their results and where the model came from."""
    from ..data.views import check_image_size
    from ..evaluation.tasks import measure, needed_splits
    from .bench import Bench
    from .feature_store import FeatureStore

    splits = needed_splits(settings)
    model, provenance, preprocessing = load_model(settings)
    check_image_size(preprocessing.image_size, model.config.patch_size)
    by_layer = sorted({"layers", "outliers"} & set(settings.task))
    if by_layer and not hasattr(model.config, "num_hidden_layers"):
        raise ValueError(f"task: got {by_layer[0]}, accepted: another one; the stages of a ConvNeXt share no width")
    store = FeatureStore(settings.cache_dir or Path(settings.output_dir) / "features", **processes)
    is_main = store.rank == 0
    bench = Bench(model, preprocessing, store, settings.batch_size, settings.seed, settings.controls, is_main)
    results = []
    for task in dict.fromkeys(settings.task):
        results += measure(task, bench, splits, settings)
    return results, provenance


def load_model(settings: EvaluateArguments):
    """Return the model in the asked type, where it came from, and the preprocessing its processor asks for."""
    import torch

    from ..checkpoints import load_model as load_any
    from ..checkpoints.processors import image_side, processor_for
    from ..data.views import Preprocessing
    from ..models.modeling_dinov3 import Dinov3ForPreTraining
    from ..pipelines.windows import Windowed

    name = settings.model
    model = load_any(name)
    model = model.dinov3 if isinstance(model, Dinov3ForPreTraining) else model
    provenance, processor = describe_weights(name, model), processor_for(name, model.config.image_size)
    image_size = settings.image_size or image_side(processor)
    resize_size = settings.resize_size or (image_size if is_rendered(settings.data) else round(image_size * 256 / 224))
    statistics = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    model = model.to(device, getattr(torch, settings.dtype)).eval()
    if settings.window is not None:
        model = Windowed(model, settings.window)
    return model, provenance, Preprocessing(image_size, resize_size, **statistics)
