"""`--task video`."""

from typing import TYPE_CHECKING

from ..arguments import LabelArguments, NetworkArguments, SequenceArguments, StepsArguments, TrainArguments
from ..result import Result
from ..rows import draw_sequences, image_column, sequence_column, train_and_test
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


# The probe is a transformer: a step takes about a second on a CPU.
DEFAULT_STEPS = 300


def rows(task: Task, recipe: Evaluation) -> "tuple[Dataset, Dataset]":
    return train_and_test(task, recipe, draw_sequences)


def run(bench: "Bench", train: "Dataset", test: "Dataset", recipe: Evaluation) -> Result:
    from ..video import evaluate_video

    return evaluate_video(
        bench,
        train,
        test,
        image_column(train, recipe),
        recipe.of(LabelArguments).label_column,
        sequence_column(recipe),
        recipe.of(SequenceArguments).frame_column,
        steps=recipe.of(StepsArguments).steps or DEFAULT_STEPS,
    )


TASK = Task(
    name="video",
    help="classification of clips by an attentive probe, top-1",
    reads=(TrainArguments, NetworkArguments, LabelArguments, SequenceArguments, StepsArguments),
    run=run,
    scenes="clips",
    rows=rows,
    hub_task="video-classification",
)
