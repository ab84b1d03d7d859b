"""`--task tracking`."""

from typing import TYPE_CHECKING

from ..arguments import MaskArguments, NetworkArguments, SequenceArguments
from ..result import Result
from ..rows import draw_sequences, image_column, object_mask_column, only_test, sequence_column
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


def rows(task: Task, recipe: Evaluation) -> "tuple[None, Dataset]":
    return only_test(task, recipe, draw_sequences)


def run(bench: "Bench", train: None, test: "Dataset", recipe: Evaluation) -> Result:
    from ..tracking import evaluate_tracking

    return evaluate_tracking(
        bench,
        test,
        image_column(test, recipe),
        object_mask_column(recipe),
        sequence_column(recipe),
        recipe.of(SequenceArguments).frame_column,
        ignore_index=recipe.of(MaskArguments).ignore_index,
    )


TASK = Task(
    name="tracking",
    help="object masks propagated through a video, J&F",
    reads=(NetworkArguments, MaskArguments, SequenceArguments),
    run=run,
    scenes="clips",
    rows=rows,
    repeated_by=("layers", "resolution"),
    hub_task="mask-generation",
)
