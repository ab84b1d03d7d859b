"""The accuracy of a classification split by group (as in DINOv2, section 8; intervals of Wilson, 1927)."""

from typing import TYPE_CHECKING, Any

import torch

from ..data.columns import named_values
from ..errors import Refused
from ..visualization.charts import bars_picture
from .intervals import wilson_interval
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

MAX_GROUPS = 100
MISSING = "(missing)"


def read_groups(rows: "Dataset", column: str) -> tuple[list[str], list[str]]:
    """Return the group of every row, and the groups in their declared order, else sorted; missing values come last.

    Raises `Refused` for a column that does not exist, holds anything but integers, texts or classes, or has fewer than
    two groups or more than a hundred.
    """
    values = named_values(rows, column, "group_column", "a column of integers, texts or classes")
    declared = getattr(rows.features[column], "names", None)
    # Texts or numbers, never both.
    present: set[Any] = set(values) - {None}
    of_row = [MISSING if value is None else str(value) for value in values]
    order = [name for name in declared if name in present] if declared else [str(value) for value in sorted(present)]
    order += [MISSING] * (MISSING in of_row)
    if not 2 <= len(order) <= MAX_GROUPS:
        raise Refused(
            f"group_column: got {column!r} of {len(order)} different values, accepted: 2 to {MAX_GROUPS} groups"
        )
    return of_row, order


def by_group(result: Result, rows: "Dataset", group_column: str) -> Result:
    """Split the accuracy of a `result` with "hits" by a column of `rows`, the test set of that result.

    The metrics of the returned result are the accuracy of each group, the gap between the best and the worst group,
    and the worst group's accuracy divided by the best one's (NaN where that is 0); "per_group" adds the number of
    images and 95 % intervals. Raises `Refused` for a result without hits, and in the cases of `read_groups`.
    """
    if result.hits is None:
        raise Refused(f"result: got {result.task} without hits row by row, accepted: a task of top-1 accuracy")
    of_row, order = read_groups(rows, group_column)
    hits = {name: of_encoder for name, of_encoder in result.hits.items() if name != "rows"}
    of_hit = [of_row[row] for row in result.hits["rows"]]
    lines: list[dict[str, Any]] = []
    for group in order:
        places = torch.tensor([place for place, name in enumerate(of_hit) if name == group], dtype=torch.long)
        if not len(places):
            continue
        counts = {name: int(of_encoder[places].sum()) for name, of_encoder in hits.items()}
        lines.append(
            {
                "group": group,
                "images": len(places),
                **{name: count / len(places) for name, count in counts.items()},
                "interval": {name: list(wilson_interval(count, len(places))) for name, count in counts.items()},
            }
        )
    worst, best = ({name: pick(line[name] for line in lines) for name in hits} for pick in (min, max))
    of = {"of": result.task}
    metrics = [
        {"metric": "accuracy", **of, "group": line["group"], **{n: line[n] for n in hits}}
        | {"interval": line["interval"]["model"]}
        for line in lines
    ]
    gaps = {name: best[name] - worst[name] for name in hits}
    ratios = {name: worst[name] / best[name] if best[name] else float("nan") for name in hits}
    metrics.append({"metric": "gap between the best and the worst group", **of, "lower_is_better": True, **gaps})
    metrics.append({"metric": "worst group / best group", **of, **ratios})
    bars = {name: [(line[name], *line["interval"][name]) for line in lines] for name in hits}
    titles = [f"{line['group'][:40]}  ({line['images']})" for line in lines]
    return Result(
        task="fairness",
        protocol={
            **result.protocol,
            "fairness_of": result.task,
            "group_column": group_column,
            "groups": {line["group"]: line["images"] for line in lines},
            "accuracy": "that of the task's first metric",
            "intervals": "95 %, Wilson score intervals, one for each group, not corrected for multiple comparisons",
        },
        skipped_images=result.skipped_images,
        metrics=metrics,
        pictures={
            f"{result.task} by {group_column}": bars_picture(
                f"accuracy by {group_column} (images), with 95 % intervals", titles, bars
            )
        },
        details={
            "per_group": lines,
        },
    )
