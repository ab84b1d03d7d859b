"""`--task depth`."""

from dataclasses import dataclass

from ...recipe import described, require
from ..arguments import (
    Arguments,
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
class DepthArguments(Arguments):
    """Depth maps."""

    depth_column: str = described("column of the depth maps, images where 0 is unknown", "depth")
    depth_unit: float = described("metres of a stored unit of depth", 0.001)
    max_depth: float = described("metres beyond which depth does not count (KITTI: 80)", 10.0)

    def validate(self) -> None:
        for name in ("depth_unit", "max_depth"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")


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
