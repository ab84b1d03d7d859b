"""`--task fairness`: the accuracy of other tasks, split by group."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...recipe import described, require
from ..arguments import NetworkArguments, RepeatArguments
from ..result import Result
from ..task import Evaluation, Repetition


if TYPE_CHECKING:
    from datasets import Dataset

    from ..bench import Bench


@dataclass
class FairnessArguments:
    """The column of groups."""

    group_column: str | None = described(
        "fairness: column of the groups whose accuracies are compared", None, common=True
    )

    def validate(self) -> None:
        require(self.group_column, "group_column", self.group_column, "for fairness a column of groups")


def run(bench: "Bench", evaluate: Callable[["Bench"], Result], test: "Dataset", recipe: Evaluation) -> Result:
    from ..fairness import by_group, read_groups

    column = recipe.of(FairnessArguments).group_column
    assert column is not None, "checked by validate"
    # Raises `Refused` before anything is measured.
    read_groups(test, column)
    return by_group(evaluate(bench), test, column)


TASK = Repetition(
    name="fairness",
    help="the accuracy of the tasks of --of, split by --group-column",
    reads=(NetworkArguments, RepeatArguments, FairnessArguments),
    run=run,
    default=("knn",),
)
