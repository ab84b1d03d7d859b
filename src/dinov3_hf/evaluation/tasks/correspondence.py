"""`--task correspondence`."""

from dataclasses import dataclass

from ...recipe import described
from ..arguments import DataArguments, NetworkArguments
from ..result import Result
from ..rows import image_column, only_test
from ..task import Task


@dataclass
class CorrespondenceArguments:
    """Keypoints, and which rows are matched."""

    keypoints_column: str = described(
        "column of the keypoints: a list of [x, y] or [x, y, visible] in pixels", "keypoints"
    )
    pairs_split: str | None = described(
        "split of the pairs of rows to match, columns src, trg and optionally bbox_trg; null: every two rows", None
    )
    thresholds: list[float] = described(
        "distances that count as found, in sides of the target's box or image, for correspondence",
        [0.05, 0.1, 0.15],
        above=0,
        at_most=1,
    )


def draw_pairs(rows, count: int, recipe):
    """Return the first rows, an even number of them, as pairs are of neighbours; all where a split numbers the rows."""
    if len(rows) <= count or recipe.of(CorrespondenceArguments).pairs_split:
        return rows
    return rows.select(range(count - count % 2))


def rows(task, recipe) -> tuple:
    return only_test(task, recipe, draw_pairs)


def run(bench, train, test, recipe) -> Result:
    from ...data.streams import load_table
    from ..correspondence import evaluate_correspondence

    settings = recipe.of(CorrespondenceArguments)
    split = settings.pairs_split
    pairs = load_table(recipe.of(DataArguments).data, split) if split else None
    columns = (image_column(test, recipe), settings.keypoints_column)
    return evaluate_correspondence(bench, test, pairs, *columns, settings.thresholds)


TASK = Task(
    name="correspondence",
    help="keypoints found again in another image, PCK",
    reads=(NetworkArguments, CorrespondenceArguments),
    run=run,
    scenes="pairs",
    rows=rows,
    repeated_by=("layers", "resolution"),
    hub_task="keypoint-detection",
)
