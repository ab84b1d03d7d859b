"""`--task patch-knn`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...recipe import described
from ..arguments import (
    MaskArguments,
    MaskValueArguments,
    NeighbourArguments,
    NetworkArguments,
    TrainArguments,
)
from ..result import Result
from ..rows import class_mask_column, class_values, ignored_class, image_column
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


@dataclass
class PatchKnnArguments:
    """Bank of patches."""

    max_bank_patches: int = described(
        "patch-knn: largest number of train patches kept as neighbours", 50_000, at_least=1
    )


def run(bench: "Bench", train: "Dataset", test: "Dataset", recipe: Evaluation) -> Result:
    from ..patch_knn import evaluate_patch_knn

    columns = (image_column(train, recipe), class_mask_column(recipe))
    ks, patches = recipe.of(NeighbourArguments).k, recipe.of(PatchKnnArguments).max_bank_patches
    return evaluate_patch_knn(bench, train, test, *columns, ks, patches, ignored_class(recipe), class_values(recipe))


TASK = Task(
    name="patch-knn",
    help="k-NN segmentation on patch tokens",
    reads=(
        TrainArguments,
        NetworkArguments,
        MaskArguments,
        MaskValueArguments,
        NeighbourArguments,
        PatchKnnArguments,
    ),
    run=run,
    scenes="crowded",
    repeated_by=("layers", "resolution"),
    hub_task="image-segmentation",
)
