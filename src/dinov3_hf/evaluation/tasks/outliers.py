"""`--task outliers`."""

from typing import TYPE_CHECKING

from ..arguments import NetworkArguments
from ..result import Result
from ..rows import image_column, only_test
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


def run(bench: "Bench", train: None, test: "Dataset", recipe: Evaluation) -> Result:
    from ..outliers import evaluate_outliers

    return evaluate_outliers(bench, test, image_column(test, recipe))


TASK = Task(
    name="outliers",
    help="patches of high norm and dimensions of extreme magnitude, layer by layer",
    reads=(NetworkArguments,),
    run=run,
    scenes="crowded",
    rows=only_test,
    needs_layers=True,
)
