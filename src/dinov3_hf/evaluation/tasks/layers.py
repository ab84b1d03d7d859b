"""`--task layers`: other tasks repeated layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...recipe import described
from ..arguments import NetworkArguments, RepeatArguments
from ..result import Result
from ..task import Evaluation, Repetition


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


@dataclass
class LayersArguments:
    """The layers to measure."""

    layers: list[int] = described(
        "layers: numbers of the layers to measure, from 1; none: at most twelve, evenly spaced", [], at_least=1
    )


def run(bench: "Bench", evaluate: Callable[["Bench"], Result], test: "Dataset", recipe: Evaluation) -> Result:
    from ..layers import evaluate_layers

    return evaluate_layers(bench, evaluate, recipe.of(LayersArguments).layers)


TASK = Repetition(
    name="layers",
    help="the tasks of --of repeated layer by layer",
    reads=(NetworkArguments, RepeatArguments, LayersArguments),
    run=run,
    default=("knn", "patch-knn"),
    needs_layers=True,
)
