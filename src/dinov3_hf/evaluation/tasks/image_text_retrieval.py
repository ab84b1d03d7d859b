"""`--task image-text-retrieval`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...recipe import described
from ..arguments import DataArguments
from ..result import Result
from ..rows import image_column, only_test
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..loading import Aligned


@dataclass
class CaptionArguments:
    """Captions."""

    caption_columns: list[str] = described("image-text-retrieval: columns of captions; none: caption and captions", [])


def rows(task: Task, recipe: Evaluation) -> "tuple[None, Dataset]":
    from ...data.captions import find_caption_columns

    train, test = only_test(task, recipe)
    find_caption_columns(test, recipe.of(CaptionArguments).caption_columns)
    return train, test


def run(aligned: "Aligned", train: None, test: "Dataset", recipe: Evaluation) -> Result:
    from ..image_text_retrieval import evaluate_retrieval

    columns = (image_column(test, recipe), recipe.of(CaptionArguments).caption_columns)
    batch_size = recipe.of(DataArguments).batch_size
    return evaluate_retrieval(aligned.model, aligned.processor, test, *columns, batch_size=batch_size)


TASK = Task(
    name="image-text-retrieval",
    help="retrieval of images by captions and of captions by images, recall@k",
    reads=(CaptionArguments,),
    run=run,
    scenes="crowded",
    rows=rows,
    has_text=True,
)
