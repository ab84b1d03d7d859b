"""`--task depth`."""

from dataclasses import dataclass

from ...recipe import described
from ..arguments import (
    AugmentArguments,
    DenseHeadArguments,
    NetworkArguments,
    StepsArguments,
    TrainArguments,
)
from ..result import Result
from ..rows import image_column
from ..task import Task
from .segmentation import head_training


@dataclass
class DepthArguments:
    """Depth maps."""

    depth_column: str = described("column of the depth maps, images where 0 is unknown", "depth", common=True)
    depth_unit: float = described("metres of a stored unit of depth", 0.001, above=0)
    max_depth: float = described("metres beyond which depth does not count (KITTI: 80)", 10.0, above=0)


def run(bench, train, test, recipe) -> Result:
    from ..depth import PAPER_STEPS, evaluate_depth

    depth = recipe.of(DepthArguments)
    return evaluate_depth(
        bench,
        train,
        test,
        image_column(train, recipe),
        depth.depth_column,
        depth.depth_unit,
        max_depth=depth.max_depth,
        batch_norm=recipe.of(DenseHeadArguments).batch_norm,
        **head_training(recipe, PAPER_STEPS, 3e-4),
    )


TASK = Task(
    name="depth",
    help="linear depth in 256 bins, RMSE, ARel, delta1",
    reads=(TrainArguments, NetworkArguments, DepthArguments, StepsArguments, AugmentArguments, DenseHeadArguments),
    run=run,
    scenes="crowded",
    repeated_by=("layers", "resolution"),
    hub_task="depth-estimation",
)
