"""`--task image-text-retrieval`."""

from dataclasses import dataclass

from ...recipe import described
from ..arguments import DataArguments
from ..result import Result
from ..rows import image_column, only_test
from ..task import Task


@dataclass
class CaptionArguments:
    """Captions."""

    caption_columns: list[str] = described(
        "columns of captions, for image-text-retrieval; none: caption, captions", []
    )


def rows(task, recipe) -> tuple:
    from ...data.captions import find_caption_columns

    train, test = only_test(task, recipe)
    find_caption_columns(test, recipe.of(CaptionArguments).caption_columns)
    return train, test


def run(aligned, train, test, recipe) -> Result:
    from ..image_text_retrieval import evaluate_retrieval

    columns = (image_column(test, recipe), recipe.of(CaptionArguments).caption_columns)
    batch_size = recipe.of(DataArguments).batch_size
    return evaluate_retrieval(aligned.model, aligned.processor, test, *columns, batch_size=batch_size)


TASK = Task(
    name="image-text-retrieval",
    help="images by captions and captions by images, recall@k",
    reads=(CaptionArguments,),
    run=run,
    scenes="crowded",
    rows=rows,
    has_text=True,
)
