"""`--task resolution`: others repeated at several image sizes."""

from dataclasses import dataclass

from ...recipe import described
from ..arguments import NetworkArguments, RepeatArguments
from ..result import Result
from ..task import Repetition


@dataclass
class ResolutionArguments:
    """Which image sizes."""

    sizes: list[int] = described("image sizes of resolution, in pixels", [224, 448, 896], at_least=1, common=True)


def run(bench, evaluate, test, recipe) -> Result:
    from ..resolution import evaluate_resolution

    return evaluate_resolution(bench, evaluate, recipe.of(ResolutionArguments).sizes)


TASK = Repetition(
    name="resolution",
    help="the tasks of --of from --sizes small to large",
    reads=(NetworkArguments, RepeatArguments, ResolutionArguments),
    run=run,
    default=("knn", "patch-knn"),
)
