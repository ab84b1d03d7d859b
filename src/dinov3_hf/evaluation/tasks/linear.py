"""`--task linear`."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import Refused
from ..arguments import (
    DataArguments,
    LabelArguments,
    NetworkArguments,
    OutOfDistributionArguments,
    TrainArguments,
)
from ..result import Result
from ..rows import draw_images, image_column, load_rows
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


def run(bench: "Bench", train: "Dataset", test: "Dataset", recipe: Evaluation) -> Result:
    from ..linear import evaluate_linear

    columns = (image_column(train, recipe), recipe.of(LabelArguments).label_column)
    return evaluate_linear(bench, train, test, *columns, load_others(recipe))


def load_others(recipe: Evaluation) -> "dict[str, Dataset]":
    """Load the out-of-distribution test sets, named by the last part of their source."""
    others, data = {}, recipe.of(DataArguments)
    for source in recipe.of(OutOfDistributionArguments).ood_data:
        title = Path(source.split("*")[0].rstrip("/")).stem or source
        if title in others:
            raise Refused(f"ood_data: got two sources called {title!r}, accepted: different names")
        rows = load_rows(source, data.test_split, data.num_test, recipe)
        others[title] = draw_images(rows, data.num_test, recipe)
    return others


TASK = Task(
    name="linear",
    help="logistic regression, its regularisation chosen on a held-out part of train",
    reads=(TrainArguments, NetworkArguments, LabelArguments, OutOfDistributionArguments),
    run=run,
    scenes="single",
    repeated_by=("layers", "resolution", "fairness"),
    hub_task="image-classification",
)
