"""`--task retrieval`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...recipe import described
from ..arguments import DataArguments, NetworkArguments, TrainArguments
from ..result import Result
from ..rows import Groups, draw_images, image_column, is_rendered, load_rows, train_and_test
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


@dataclass
class RetrievalArguments:
    """Relevant images of a query, and metrics."""

    positives_column: str | None = described(
        "column with a query's list of relevant gallery rows; null: rows of the same value in instance_column", None
    )
    instance_column: str = described("retrieval: column of the instance that an image shows", "instance_id")
    recall_at: list[int] = described("retrieval: values of k in recall@k", [1, 5, 10], at_least=1)
    whole_images: bool = described("retrieval: use uncropped images instead of centre crops (as for Met)", False)


def rows(task: Task, recipe: Evaluation) -> "tuple[Dataset, Dataset]":
    """Return the gallery and the queries, which are the same rows if train_split equals test_split."""
    data = recipe.of(DataArguments)
    if is_rendered(data.data):
        return views(task, recipe)
    if recipe.of(TrainArguments).train_split == data.test_split:
        # Every image is a query for the others.
        images = draw(load_rows(data.data, data.test_split, data.num_test, recipe), data.num_test, recipe)
        return images, images
    return train_and_test(task, recipe, draw)


def draw(images: "Dataset", count: int, recipe: Groups) -> "Dataset":
    """Return rows drawn by seed; all rows if queries list gallery rows by number, which a draw would change."""
    return images if recipe.of(RetrievalArguments).positives_column else draw_images(images, count, recipe)


def views(task: Task, recipe: Evaluation) -> "tuple[Dataset, Dataset]":
    """Return the first views of test scenes as the gallery and their second views as queries."""
    data = recipe.of(DataArguments)
    images = load_rows(task.source(data.data), data.test_split, 2 * data.num_test, recipe)
    numbers = images["frame"]
    return tuple(images.select([row for row, view in enumerate(numbers) if view == wanted]) for wanted in (0, 1))


def run(bench: "Bench", train: "Dataset", test: "Dataset", recipe: Evaluation) -> Result:
    from ..retrieval import evaluate_instance_retrieval

    settings = recipe.of(RetrievalArguments)
    # Two views of a rendered scene show the same objects: the scene is the instance.
    is_default = settings.instance_column == "instance_id"
    instance = "scene" if is_rendered(recipe.of(DataArguments).data) and is_default else settings.instance_column
    return evaluate_instance_retrieval(
        bench,
        train,
        test,
        image_column(train, recipe),
        settings.positives_column,
        instance,
        settings.recall_at,
        exclude_same=train is test,
        whole=settings.whole_images,
    )


TASK = Task(
    name="retrieval",
    help="retrieval of images of the same instance, mAP, GAP, recall@k",
    reads=(TrainArguments, NetworkArguments, RetrievalArguments),
    run=run,
    scenes="pairs",
    rows=rows,
    repeated_by=("layers", "resolution"),
    may_share_split=True,
)
