"""`--task discovery`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...recipe import described
from ..arguments import MaskArguments, NetworkArguments
from ..result import Result
from ..rows import image_column, object_mask_column, only_test
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


@dataclass
class DiscoveryArguments:
    """True boxes of objects."""

    box_column: str | None = described(
        "discovery: column of the true boxes, lists of [x0, y0, x1, y1]; null: boxes of the masks", None
    )


def run(bench: "Bench", train: None, test: "Dataset", recipe: Evaluation) -> Result:
    from ..discovery import evaluate_discovery

    columns = (image_column(test, recipe), object_mask_column(recipe), recipe.of(DiscoveryArguments).box_column)
    return evaluate_discovery(bench, test, *columns, ignore_index=recipe.of(MaskArguments).ignore_index)


TASK = Task(
    name="discovery",
    help="unsupervised localisation of the main object (TokenCut), CorLoc",
    reads=(NetworkArguments, MaskArguments, DiscoveryArguments),
    run=run,
    scenes="single",
    rows=only_test,
    repeated_by=("layers", "resolution"),
    hub_task="object-detection",
)
