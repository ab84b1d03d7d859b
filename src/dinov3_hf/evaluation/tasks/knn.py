"""`--task knn`."""

from typing import TYPE_CHECKING

from ..arguments import LabelArguments, NeighbourArguments, NetworkArguments, TrainArguments
from ..result import Result
from ..rows import image_column
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


def run(bench: "Bench", train: "Dataset", test: "Dataset", recipe: Evaluation) -> Result:
    from ..knn import evaluate_knn

    columns = (image_column(train, recipe), recipe.of(LabelArguments).label_column)
    return evaluate_knn(bench, train, test, *columns, recipe.of(NeighbourArguments).k)


TASK = Task(
    name="knn",
    help="k-NN classification on class tokens",
    reads=(TrainArguments, NetworkArguments, LabelArguments, NeighbourArguments),
    run=run,
    scenes="single",
    repeated_by=("layers", "resolution", "fairness"),
    hub_task="image-classification",
)
