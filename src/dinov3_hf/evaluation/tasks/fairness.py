"""`--task fairness`: the accuracy of others, split by group."""

from dataclasses import dataclass

from ...recipe import described, require
from ..arguments import NetworkArguments, RepeatArguments
from ..result import Result
from ..task import Repetition


@dataclass
class FairnessArguments:
    """Which groups."""

    group_column: str | None = described("column of the groups whose accuracies fairness compares", None, common=True)

    def validate(self) -> None:
        require(self.group_column, "group_column", self.group_column, "for fairness a column of groups")


def run(bench, evaluate, test, recipe) -> Result:
    from ..fairness import by_group, read_groups

    column = recipe.of(FairnessArguments).group_column
    # Refused before anything is measured.
    read_groups(test, column)
    return by_group(evaluate(bench), test, column)


TASK = Repetition(
    name="fairness",
    help="the accuracy of the tasks of --of, split by --group-column",
    reads=(NetworkArguments, RepeatArguments, FairnessArguments),
    run=run,
    default=("knn",),
)
