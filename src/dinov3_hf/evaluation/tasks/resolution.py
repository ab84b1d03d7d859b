"""`--task resolution`: others repeated at several image sizes."""

from dataclasses import dataclass

from ...recipe import described
from ..arguments import Arguments, NetworkArguments, RepeatArguments, require_positive
from ..result import Result
from ..task import Repetition


@dataclass
class ResolutionArguments(Arguments):
    """Which image sizes."""

    sizes: list[int] = described("image sizes of resolution, in pixels", [224, 448, 896])

    def validate(self) -> None:
        require_positive(self, "sizes")


def run(bench, measure, test, recipe) -> Result:
    from ..resolution import evaluate_resolution

    return evaluate_resolution(bench, measure, recipe.of(ResolutionArguments).sizes)


TASK = Repetition(
    name="resolution",
    help="the tasks of --of from --sizes small to large",
    reads=(NetworkArguments, RepeatArguments, ResolutionArguments),
    run=run,
    default=("knn", "patch-knn"),
)
