"""`--task segmentation`."""

from typing import TYPE_CHECKING, Any

from ..arguments import (
    AugmentArguments,
    DataArguments,
    DenseHeadArguments,
    MaskArguments,
    MaskValueArguments,
    NameArguments,
    NetworkArguments,
    StepsArguments,
    TrainArguments,
)
from ..result import Result
from ..rows import class_mask_column, class_values, ignored_class, image_column, is_rendered
from ..task import Evaluation, Task
from .linear_sgd import head_steps
from .zero_shot_segmentation import mask_names


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


def run(bench: "Bench", train: "Dataset", test: "Dataset", recipe: Evaluation) -> Result:
    from ..segmentation import PAPER_STEPS, evaluate_segmentation

    data = recipe.of(DataArguments).data
    names = recipe.of(NameArguments).class_names or (mask_names(data) if is_rendered(data) else None)
    return evaluate_segmentation(
        bench,
        train,
        test,
        image_column(train, recipe),
        class_mask_column(recipe),
        ignored_class(recipe),
        recipe.of(DenseHeadArguments).batch_norm,
        class_names=names,
        mask_values=class_values(recipe),
        **head_training(recipe, PAPER_STEPS, 1e-3),
    )


def head_training(recipe: Evaluation, paper_steps: int, paper_rate: float) -> dict[str, Any]:
    """Return steps, learning rate and augmentation of a dense head.

    Below a quarter of the paper's steps the default rate is ten times the paper's, at which the head would hardly
    move.
    """
    steps = head_steps(recipe) or paper_steps
    rate = recipe.of(DenseHeadArguments).lr or (paper_rate if steps >= paper_steps / 4 else 10 * paper_rate)
    return {"steps": steps, "lr": rate, "augment": recipe.of(AugmentArguments).augment}


TASK = Task(
    name="segmentation",
    help="linear segmentation, mIoU",
    reads=(
        TrainArguments,
        NetworkArguments,
        MaskArguments,
        MaskValueArguments,
        NameArguments,
        StepsArguments,
        AugmentArguments,
        DenseHeadArguments,
    ),
    run=run,
    scenes="crowded",
    repeated_by=("layers", "resolution"),
    hub_task="image-segmentation",
)
