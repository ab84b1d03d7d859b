"""`--task zero-shot`."""

from ...errors import Refused
from ..arguments import DataArguments, LabelArguments, NameArguments, PromptArguments
from ..result import Result
from ..rows import image_column, only_test
from ..task import Task


def rows(task, recipe) -> tuple:
    from ...data.columns import check_column

    train, test = only_test(task, recipe)
    check_column(test, recipe.of(LabelArguments).label_column, "label_column")
    return train, test


def run(aligned, train, test, recipe) -> Result:
    from ..zero_shot import evaluate_zero_shot

    names, templates = read_names(recipe), read_templates(recipe)
    columns = (image_column(test, recipe), recipe.of(LabelArguments).label_column)
    batch_size = recipe.of(DataArguments).batch_size
    return evaluate_zero_shot(aligned.model, aligned.processor, test, names, templates, *columns, batch_size)


def read_names(recipe) -> list[str] | None:
    """Return the names asked for, ImageNet's for "imagenet", None where none are."""
    from ...pipelines.class_embeddings import imagenet_class_names

    names = recipe.of(NameArguments).class_names
    return from_open_clip(imagenet_class_names) if names == ["imagenet"] else names or None


def read_templates(recipe) -> list[str] | None:
    """Return the templates asked for, OpenAI's for "openai", None where none are."""
    from ...pipelines.class_embeddings import openai_templates

    templates = recipe.of(PromptArguments).templates
    return from_open_clip(openai_templates) if templates == ["openai"] else templates or None


def from_open_clip(read) -> list[str]:
    """Call a function that needs open_clip; `Refused` where it is not installed."""
    try:
        return read()
    except ImportError as error:
        raise Refused(str(error)) from None


TASK = Task(
    name="zero-shot",
    help="classification by the classes' names",
    reads=(LabelArguments, NameArguments, PromptArguments),
    run=run,
    scenes="single",
    rows=rows,
    has_text=True,
    hub_task="zero-shot-image-classification",
)
