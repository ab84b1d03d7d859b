"""`--task video`."""

from ..arguments import LabelArguments, NetworkArguments, SequenceArguments, StepsArguments, TrainArguments
from ..result import Result
from ..rows import draw_sequences, image_column, sequence_column, train_and_test
from ..task import Task


# The probe is a transformer: a step on a CPU takes a second.
DEFAULT_STEPS = 300


def rows(task, recipe) -> tuple:
    return train_and_test(task, recipe, draw_sequences)


def run(bench, train, test, recipe) -> Result:
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
    help="classes of clips by an attentive probe",
    reads=(TrainArguments, NetworkArguments, LabelArguments, SequenceArguments, StepsArguments),
    run=run,
    scenes="clips",
    rows=rows,
    hub_task="video-classification",
)
