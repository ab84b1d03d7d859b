"""A task repeated layer by layer (DINOv3, figure 21): how good the features are after each block."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from ..errors import Refused
from ..pipelines.windows import Windowed
from ..visualization.charts import curve_picture
from .bench import Bench
from .result import Result
from .results import MODEL_AND_BASELINES, NOT_PARAMETERS, metric_title


MAX_LAYERS = 12


def up_to_layer(model: nn.Module, layer: int) -> nn.Module:
    """Return the network cut after block `layer` (from 1), followed by the final norm; weights are shared."""
    if isinstance(model, Windowed):
        return Windowed(up_to_layer(model.model, layer), model.window)
    view = copy.copy(model)
    # A shallow copy also shares the dictionary of modules, which must not change for `model`.
    view._modules = dict(model._modules)
    view.config = copy.deepcopy(model.config)
    view.config.num_hidden_layers = layer
    view.layer = nn.ModuleList(model.layer[:layer])
    return view


def choose_layers(num_layers: int, asked: Sequence[int] = ()) -> list[int]:
    """Return the layers to measure: those asked for, else at most twelve evenly spaced ones that include the last."""
    beyond = [layer for layer in asked if not 1 <= layer <= num_layers]
    if beyond:
        raise Refused(f"layers: got {beyond[0]}, accepted: 1 to the model's number of layers ({num_layers})")
    if asked:
        return sorted(set(asked))
    count = min(num_layers, MAX_LAYERS)
    return sorted({round((place + 1) * num_layers / count) for place in range(count)})


def evaluate_layers(bench: Bench, evaluate: Callable[[Bench], Result], layers: Sequence[int] = ()) -> Result:
    """Repeat a task, `evaluate(bench)`, on the network cut after each of `layers`; returns its metrics by layer.

    Each cut network is run separately. Over all layers this costs as much as (layers + 1) / 2 runs of the whole
    network, and no more memory than one.
    """
    chosen = choose_layers(bench.model.config.num_hidden_layers, layers)
    results = {layer: evaluate(replace(bench, model=up_to_layer(bench.model, layer))) for layer in chosen}
    protocol = "tokens after each block, under the final norm; the randomly initialised network has as many blocks"
    return repeated(results, "layer", "layers", protocol)


def repeated(results: dict[int, Result], parameter: str, task: str, protocol: str) -> Result:
    """Join the results of one task at several values of a parameter into one, with a curve for each metric."""
    first = next(iter(results.values()))
    metrics = [{**metric, parameter: value} for value, result in results.items() for metric in result.metrics]
    pictures = {}
    for metric in first.metrics:
        title = metric_title(metric)
        series = {
            name: [(line[parameter], line[name]) for line in metrics if _same(line, metric, parameter)]
            for name in MODEL_AND_BASELINES
            if name in metric
        }
        pictures[title] = curve_picture(f"{first.task} {title}", series, parameter.replace("_", " "))
    return Result(
        task=f"{task} of {first.task}",
        protocol={**first.protocol, task: list(results), "repeated": protocol},
        skipped_images=first.skipped_images,
        metrics=metrics,
        pictures=pictures,
    )


def _same(line: dict, metric: dict, parameter: str) -> bool:
    return all(
        line.get(key) == value for key, value in metric.items() if key not in NOT_PARAMETERS[1:] and key != parameter
    )
