"""What a task of `dinov3 evaluate` is: one entry of the table in `tasks/`, made in the task's own file."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ..errors import Refused
from ..recipe import Recipe, nearest, require
from .arguments import ALWAYS, DataArguments, RepeatArguments, TrainArguments, WhatArguments
from .rows import train_and_test


if TYPE_CHECKING:
    from .result import Result

Group = TypeVar("Group")


@dataclass(frozen=True)
class Task:
    """A protocol as `dinov3 evaluate` runs it.

    Attributes:
        name: what --task calls it.
        help: one line for --help.
        reads: the groups of fields that it reads besides those of every evaluation.
        run: `run(subject, train, test, recipe)` measures and returns a `Result`; `subject` is a `Bench`, of a task with
            text an `Aligned`; `train` is None where `rows` gives none.
        scenes: the subset of the rendered scenes that fits, read with --data scenes.
        rows: `rows(task, recipe)` loads train and test rows, before any model is loaded; refuses what has wrong columns.
        repeated_by: the names of the tasks that can repeat it.
        has_text: whether it needs a text tower.
        needs_layers: whether it measures layer by layer, as no ConvNeXt can be.
        may_share_split: whether train and test may be the same rows.
        hub_task: the Hub's name for what is measured, for the metadata of model cards.
    """

    name: str
    help: str
    reads: tuple[type, ...]
    run: Callable[..., "Result"]
    scenes: str
    rows: Callable[..., tuple] = train_and_test
    repeated_by: tuple[str, ...] = ()
    has_text: bool = False
    needs_layers: bool = False
    may_share_split: bool = False
    hub_task: str = "image-feature-extraction"

    def source(self, data: str) -> str:
        """Return the source of images that it reads where --data says `data`."""
        return f"scenes:{self.scenes}" if data == "scenes" else data


@dataclass(frozen=True)
class Repetition:
    """A task that repeats others: `run(bench, evaluate, test, recipe)` calls `evaluate(bench)` and joins the results."""

    name: str
    help: str
    reads: tuple[type, ...]
    run: Callable[..., "Result"]
    default: tuple[str, ...]
    needs_layers: bool = False


Table = dict[str, Task | Repetition]


class Evaluation(Recipe):
    """All fields of an evaluation, one group for each class that a task reads; made by `make_recipe`."""

    table: Table

    def of(self, group: type[Group]) -> Group:
        """Return the fields of one group."""
        return getattr(self, group_name(group))

    @property
    def chosen(self) -> list[Task | Repetition]:
        """The tasks asked for, each once."""
        return [self.table[name] for name in dict.fromkeys(self.of(WhatArguments).task)]

    @property
    def has_text(self) -> bool:
        return any(isinstance(task, Task) and task.has_text for task in self.chosen)

    def repeated(self, task: Repetition) -> list[Task]:
        """Return the tasks that one repeats."""
        return [self.table[name] for name in self.of(RepeatArguments).of or task.default]

    def measured(self) -> list[Task]:
        """Return every protocol that runs, those that others repeat included, each once."""
        found = [self.repeated(task) if isinstance(task, Repetition) else [task] for task in self.chosen]
        return list(dict.fromkeys(task for tasks in found for task in tasks))

    def groups_read(self) -> set[type]:
        """Return the groups of fields that the chosen tasks read."""
        return {group for task in (*self.chosen, *self.measured()) for group in task.reads} | set(ALWAYS)

    def validate(self) -> "Evaluation":
        """Raise `Refused`, in one line, for the first field that cannot be."""
        self.check_fields()
        names = self.of(WhatArguments).task
        require(names, "task", names, ", ".join(self.table))
        check_names("task", names, self.table)
        for task in self.chosen:
            if isinstance(task, Repetition):
                able = [one.name for one in protocols(self.table) if task.name in one.repeated_by]
                check_names("of", self.of(RepeatArguments).of, able)
        for group in self.groups_read():
            if hasattr(group, "validate"):
                self.of(group).validate()
        with_text = [one.name for one in protocols(self.table) if one.has_text]
        require(
            not self.has_text or set(names) <= set(with_text), "task", ", ".join(names),
            f"in one call either tasks of a text-aligned model ({', '.join(with_text)}) or others",
        )  # fmt: skip
        split = self.of(DataArguments).test_split
        for task in self.measured():
            is_own = TrainArguments in task.reads and split == self.of(TrainArguments).train_split
            require(
                not is_own or task.may_share_split, "test_split", split,
                f"for {task.name} another split than train_split, where every image finds itself",
            )  # fmt: skip
        return self

    def check_given(self, values: Mapping[str, object]) -> None:
        """Refuse a field that was set though no chosen task reads it."""
        read = self.groups_read()
        for group in dataclasses.fields(self):
            kind = group.default_factory
            unread = [item.name for item in dataclasses.fields(kind) if item.name in values and kind not in read]
            if unread:
                readers = [task.name for task in self.table.values() if kind in task.reads]
                raise Refused(
                    f"{unread[0]}: got {values[unread[0]]!r}, which {', '.join(task.name for task in self.chosen)} does not read; "
                    f"accepted: without it, or a task that reads it ({', '.join(readers)})"
                )

    def as_flat_dict(self) -> dict:
        """Return the fields that the chosen tasks read, as a recipe file holds them."""
        read = self.groups_read()
        groups = [getattr(self, group.name) for group in dataclasses.fields(self) if group.default_factory in read]
        return {key: value for group in groups for key, value in dataclasses.asdict(group).items()}


def protocols(table: Table) -> list[Task]:
    """Return the tasks of a table that measure by themselves."""
    return [task for task in table.values() if isinstance(task, Task)]


def group_name(group: type) -> str:
    """Return the name of a group of fields: "patch_knn" of `PatchKnnArguments`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", group.__name__.removesuffix("Arguments")).lower()


def make_table(tasks: Iterable[Task | Repetition]) -> Table:
    """Return tasks by name, in their order."""
    return {task.name: task for task in tasks}


def make_recipe(table: Table) -> type[Evaluation]:
    """Return the recipe whose groups of fields are those that the tasks of a table read."""
    groups = dict.fromkeys((*ALWAYS, *(group for task in table.values() for group in task.reads)))
    found = [(group_name(group), group, field(default_factory=group)) for group in groups]
    return dataclasses.make_dataclass(
        "EvaluateRecipe", found, bases=(Evaluation,), namespace={"table": table, "__module__": __name__}
    )


def check_names(name: str, values: Iterable[str], accepted: Collection[str]) -> None:
    """Refuse, with the nearest name, the first value that is none of those accepted."""
    for value in values:
        require(value in accepted, name, value, ", ".join(accepted) + nearest(value, accepted))
