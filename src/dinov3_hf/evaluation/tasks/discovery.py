"""`--task discovery`."""

from dataclasses import dataclass

from ...recipe import described
from ..arguments import MaskArguments, NetworkArguments
from ..result import Result
from ..rows import image_column, object_mask_column, only_test
from ..task import Task


@dataclass
class DiscoveryArguments:
    """True boxes."""

    box_column: str | None = described(
        "column of true boxes [x0, y0, x1, y1] for discovery; null: from the masks", None
    )


def run(bench, train, test, recipe) -> Result:
    from ..discovery import evaluate_discovery

    columns = (image_column(test, recipe), object_mask_column(recipe), recipe.of(DiscoveryArguments).box_column)
    return evaluate_discovery(bench, test, *columns, ignore_index=recipe.of(MaskArguments).ignore_index)


TASK = Task(
    name="discovery",
    help="the main object found without labels (TokenCut), CorLoc",
    reads=(NetworkArguments, MaskArguments, DiscoveryArguments),
    run=run,
    scenes="single",
    rows=only_test,
    repeated_by=("layers", "resolution"),
    hub_task="object-detection",
)
