"""`--task linear`."""

from pathlib import Path

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
from ..task import Task


def run(bench, train, test, recipe) -> Result:
    from ..linear import evaluate_linear

    columns = (image_column(train, recipe), recipe.of(LabelArguments).label_column)
    return evaluate_linear(bench, train, test, *columns, load_others(recipe))


def load_others(recipe) -> dict:
    """Load the out-of-distribution test sets, each under the last part of its source's name."""
    found, data = {}, recipe.of(DataArguments)
    for source in recipe.of(OutOfDistributionArguments).ood_data:
        title = Path(source.split("*")[0].rstrip("/")).stem or source
        if title in found:
            raise Refused(f"ood_data: got two sources called {title!r}, accepted: different names")
        rows = load_rows(source, data.test_split, data.num_test, recipe)
        found[title] = draw_images(rows, data.num_test, recipe)
    return found


TASK = Task(
    name="linear",
    help="logistic regression, its strength of regularisation chosen on a part of train",
    reads=(TrainArguments, NetworkArguments, LabelArguments, OutOfDistributionArguments),
    run=run,
    scenes="single",
    repeated_by=("layers", "resolution", "fairness"),
    hub_task="image-classification",
)
