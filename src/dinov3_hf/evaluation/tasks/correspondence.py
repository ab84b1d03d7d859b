"""`--task correspondence`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...recipe import described
from ..arguments import DataArguments, NetworkArguments
from ..result import Result
from ..rows import Groups, image_column, only_test
from ..task import Evaluation, Task


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


@dataclass
class CorrespondenceArguments:
    """Keypoints, and the pairs of images to match."""

    keypoints_column: str = described(
        "column of the keypoints: a list of [x, y] or [x, y, visible] in pixels", "keypoints"
    )
    pairs_split: str | None = described(
        "split that lists the pairs, with columns src, trg (row numbers) and optionally bbox_trg; null: rows 0 and 1, "
        "2 and 3, ...",
        None,
    )
    thresholds: list[float] = described(
        "correspondence: distances up to which a match is correct, as shares of the longer side of the target's box "
        "or image",
        [0.05, 0.1, 0.15],
        above=0,
        at_most=1,
    )


def draw_pairs(rows: "Dataset", count: int, recipe: Groups) -> "Dataset":
    """Return the first rows, an even number because neighbours are pairs; all rows if a split lists the pairs."""
    if len(rows) <= count or recipe.of(CorrespondenceArguments).pairs_split:
        return rows
    return rows.select(range(count - count % 2))


def rows(task: Task, recipe: Evaluation) -> "tuple[None, Dataset]":
    return only_test(task, recipe, draw_pairs)


def run(bench: "Bench", train: None, test: "Dataset", recipe: Evaluation) -> Result:
    from ...data.streams import load_table
    from ..correspondence import evaluate_correspondence

    settings = recipe.of(CorrespondenceArguments)
    split = settings.pairs_split
    pairs = load_table(recipe.of(DataArguments).data, split) if split else None
    columns = (image_column(test, recipe), settings.keypoints_column)
    return evaluate_correspondence(bench, test, pairs, *columns, settings.thresholds)


TASK = Task(
    name="correspondence",
    help="keypoints matched in another image, PCK",
    reads=(NetworkArguments, CorrespondenceArguments),
    run=run,
    scenes="pairs",
    rows=rows,
    repeated_by=("layers", "resolution"),
    hub_task="keypoint-detection",
)
