"""`--task zero-shot`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...errors import Refused
from ..arguments import DataArguments, LabelArguments, NameArguments, PromptArguments
from ..result import Result
from ..rows import image_column, only_test
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..loading import Aligned


def rows(task: Task, recipe: Evaluation) -> "tuple[None, Dataset]":
    from ...data.columns import check_column

    train, test = only_test(task, recipe)
    check_column(test, recipe.of(LabelArguments).label_column, "label_column")
    return train, test


def run(aligned: "Aligned", train: None, test: "Dataset", recipe: Evaluation) -> Result:
    from ..zero_shot import evaluate_zero_shot

    names, templates = read_names(recipe), read_templates(recipe)
    columns = (image_column(test, recipe), recipe.of(LabelArguments).label_column)
    batch_size = recipe.of(DataArguments).batch_size
    return evaluate_zero_shot(aligned.model, aligned.processor, test, names, templates, *columns, batch_size)


def read_names(recipe: Evaluation) -> list[str] | None:
    """Return the class names of the recipe, those of ImageNet for "imagenet", or None if it has none."""
    from ...pipelines.class_embeddings import imagenet_class_names

    names = recipe.of(NameArguments).class_names
    return from_open_clip(imagenet_class_names) if names == ["imagenet"] else names or None


def read_templates(recipe: Evaluation) -> list[str] | None:
    """Return the prompt templates of the recipe, those of OpenAI for "openai", or None if it has none."""
    from ...pipelines.class_embeddings import openai_templates

    templates = recipe.of(PromptArguments).templates
    return from_open_clip(openai_templates) if templates == ["openai"] else templates or None


def from_open_clip(read: Callable[[], list[str]]) -> list[str]:
    """Call a function that needs open_clip; raises `Refused` if it is not installed."""
    try:
        return read()
    except ImportError as error:
        raise Refused(str(error)) from None


TASK = Task(
    name="zero-shot",
    help="classification by class names, top-1 and top-5",
    reads=(LabelArguments, NameArguments, PromptArguments),
    run=run,
    scenes="single",
    rows=rows,
    has_text=True,
    hub_task="zero-shot-image-classification",
)
