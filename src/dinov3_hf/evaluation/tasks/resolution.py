"""`--task resolution`: other tasks repeated at several image sizes."""

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
class ResolutionArguments:
    """The image sizes to measure."""

    sizes: list[int] = described(
        "resolution: image sizes to measure, in pixels", [224, 448, 896], at_least=1, common=True
    )


def run(bench: "Bench", evaluate: Callable[["Bench"], Result], test: "Dataset", recipe: Evaluation) -> Result:
    from ..resolution import evaluate_resolution

    return evaluate_resolution(bench, evaluate, recipe.of(ResolutionArguments).sizes)


TASK = Repetition(
    name="resolution",
    help="the tasks of --of repeated at the image sizes of --sizes",
    reads=(NetworkArguments, RepeatArguments, ResolutionArguments),
    run=run,
    default=("knn", "patch-knn"),
)
