"""`--task linear-sgd`."""

from typing import TYPE_CHECKING, Any

from ..arguments import (
    AugmentArguments,
    LabelArguments,
    NetworkArguments,
    OutOfDistributionArguments,
    StepsArguments,
    TrainArguments,
)
from ..result import Result
from ..rows import image_column
from ..task import Evaluation, Task
from .linear import load_others


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


DEFAULT_STEPS = 2000


def run(bench: "Bench", train: "Dataset", test: "Dataset", recipe: Evaluation) -> Result:
    from ..linear_sgd import evaluate_linear_sgd

    columns = (image_column(train, recipe), recipe.of(LabelArguments).label_column)
    # The paper's batch size of 1024 would exceed a small data set.
    batch_size = min(1024, max(32, len(train) // 8))
    augment = recipe.of(AugmentArguments).augment
    steps = head_steps(recipe)
    others = load_others(recipe)
    settings: dict[str, Any] = {"batch_size": batch_size, "augment": augment}
    if steps is not None:
        settings["steps"] = steps
    return evaluate_linear_sgd(bench, train, test, *columns, others, **settings)


def head_steps(recipe: Evaluation) -> int | None:
    """Return the steps of the recipe, by default 2000; with augment the default is None, the paper's number."""
    steps = recipe.of(StepsArguments).steps
    return steps or (None if recipe.of(AugmentArguments).augment else DEFAULT_STEPS)


TASK = Task(
    name="linear-sgd",
    help="linear probe trained by SGD at many learning rates at once",
    reads=(
        TrainArguments,
        NetworkArguments,
        LabelArguments,
        StepsArguments,
        AugmentArguments,
        OutOfDistributionArguments,
    ),
    run=run,
    scenes="single",
    repeated_by=("layers", "resolution", "fairness"),
    hub_task="image-classification",
)
