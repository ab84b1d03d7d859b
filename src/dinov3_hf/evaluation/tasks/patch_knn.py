"""`--task patch-knn`."""

from dataclasses import dataclass

from ...recipe import described
from ..arguments import (
    MaskArguments,
    NeighbourArguments,
    NetworkArguments,
    TrainArguments,
)
from ..result import Result
from ..rows import class_mask_column, ignored_class, image_column
from ..task import Task


@dataclass
class PatchKnnArguments:
    """Patches as neighbours."""

    max_bank_patches: int = described("patches kept as neighbours, for patch-knn", 50_000, at_least=1)


def run(bench, train, test, recipe) -> Result:
    from ..patch_knn import evaluate_patch_knn

    columns = (image_column(train, recipe), class_mask_column(recipe))
    ks, patches = recipe.of(NeighbourArguments).k, recipe.of(PatchKnnArguments).max_bank_patches
    return evaluate_patch_knn(bench, train, test, *columns, ks, patches, ignored_class(recipe))


TASK = Task(
    name="patch-knn",
    help="k-NN segmentation on patch tokens",
    reads=(TrainArguments, NetworkArguments, MaskArguments, NeighbourArguments, PatchKnnArguments),
    run=run,
    scenes="crowded",
    repeated_by=("layers", "resolution"),
    hub_task="image-segmentation",
)
