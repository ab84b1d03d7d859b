"""`--task retrieval`."""

from dataclasses import dataclass

from ...recipe import described
from ..arguments import DataArguments, NetworkArguments, TrainArguments
from ..result import Result
from ..rows import draw_images, image_column, is_rendered, load_rows, train_and_test
from ..task import Task


@dataclass
class RetrievalArguments:
    """Which images answer a query, and how."""

    positives_column: str | None = described(
        "column of the gallery rows that are right for a query; null: rows of the same instance_column", None
    )
    instance_column: str = described("column that says which images show the same, for retrieval", "instance_id")
    recall_at: list[int] = described("first answers that count in retrieval", [1, 5, 10], at_least=1)
    whole_images: bool = described("retrieval on whole images instead of centre crops (Met)", False)


def rows(task, recipe) -> tuple:
    """Return the gallery and the queries, the same rows where train_split is test_split."""
    data = recipe.of(DataArguments)
    if is_rendered(data.data):
        return views(task, recipe)
    if recipe.of(TrainArguments).train_split == data.test_split:
        # Every image asks for the others.
        found = draw(load_rows(data.data, data.test_split, data.num_test, recipe), data.num_test, recipe)
        return found, found
    return train_and_test(task, recipe, draw)


def draw(found, count: int, recipe):
    """Return rows drawn by seed; all where queries name rows of the gallery, which therefore stays whole."""
    return found if recipe.of(RetrievalArguments).positives_column else draw_images(found, count, recipe)


def views(task, recipe) -> tuple:
    """Return first views as the gallery and second ones as queries, both of scenes that nothing was trained on."""
    data = recipe.of(DataArguments)
    found = load_rows(task.source(data.data), data.test_split, 2 * data.num_test, recipe)
    numbers = found["frame"]
    return tuple(found.select([row for row, view in enumerate(numbers) if view == wanted]) for wanted in (0, 1))


def run(bench, train, test, recipe) -> Result:
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
    help="images of the same instance, mAP, GAP, recall@k",
    reads=(TrainArguments, NetworkArguments, RetrievalArguments),
    run=run,
    scenes="pairs",
    rows=rows,
    repeated_by=("layers", "resolution"),
    may_share_split=True,
)
