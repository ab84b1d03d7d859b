"""`--task layers`: others repeated layer by layer."""

from dataclasses import dataclass

from ...recipe import described
from ..arguments import NetworkArguments, RepeatArguments
from ..result import Result
from ..task import Repetition


@dataclass
class LayersArguments:
    """Which layers."""

    layers: list[int] = described("layers that layers measures, from 1; none: at most twelve", [], at_least=1)


def run(bench, evaluate, test, recipe) -> Result:
    from ..layers import evaluate_layers

    return evaluate_layers(bench, evaluate, recipe.of(LayersArguments).layers)


TASK = Repetition(
    name="layers",
    help="the tasks of --of, layer by layer",
    reads=(NetworkArguments, RepeatArguments, LayersArguments),
    run=run,
    default=("knn", "patch-knn"),
    needs_layers=True,
)
