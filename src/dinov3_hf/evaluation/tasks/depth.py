"""`--task depth`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from ..task import Evaluation, Task
from .segmentation import head_training


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


@dataclass
class DepthArguments:
    """Depth maps."""

    depth_column: str = described("column of the depth maps, images where 0 means unknown", "depth", common=True)
    depth_unit: float = described("metres per stored unit of depth", 0.001, above=0)
    max_depth: float = described("largest depth in metres; pixels beyond it are ignored (KITTI: 80)", 10.0, above=0)


def run(bench: "Bench", train: "Dataset", test: "Dataset", recipe: Evaluation) -> Result:
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
    help="linear depth estimation with 256 bins, RMSE, ARel, delta1",
    reads=(TrainArguments, NetworkArguments, DepthArguments, StepsArguments, AugmentArguments, DenseHeadArguments),
    run=run,
    scenes="crowded",
    repeated_by=("layers", "resolution"),
    hub_task="depth-estimation",
)
