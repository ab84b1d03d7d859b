"""Classes of the tasks of `dinov3 evaluate`, which are defined in `tasks/`, and of the recipe made from them."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import Refused
from ..recipe import Recipe, groups_of, nearest, require
from .arguments import ALWAYS, DataArguments, RepeatArguments, TrainArguments, WhatArguments
from .rows import Group, train_and_test


if TYPE_CHECKING:
    from datasets import Dataset

    from .result import Result


@dataclass(frozen=True)
class Task:
    """A protocol as `dinov3 evaluate` runs it.

    Attributes:
        name: its name as a value of --task.
        help: one line for --help.
        reads: the groups of fields that it reads, in addition to those of every evaluation (`ALWAYS`).
        run: `run(subject, train, test, recipe)` measures and returns a `Result`; `subject` is a `Bench`, or an
            `Aligned` for tasks with text; `train` is None if `rows` returns no train rows.
        scenes: the subset of the rendered scenes that it uses with --data scenes.
        rows: `rows(task, recipe)` loads train and test rows before any model is loaded, and raises `Refused` for data
            with wrong columns.
        repeated_by: the names of the tasks that can repeat it.
        has_text: whether it needs a text tower.
        needs_layers: whether it measures layer by layer, which is not supported for ConvNeXt.
        may_share_split: whether train and test may be the same rows.
        hub_task: the Hub's name of the task, for the metadata of model cards.
    """

    name: str
    help: str
    reads: tuple[type, ...]
    run: Callable[..., "Result"]
    scenes: str
    rows: Callable[..., "tuple[Dataset | None, Dataset]"] = train_and_test
    repeated_by: tuple[str, ...] = ()
    has_text: bool = False
    needs_layers: bool = False
    may_share_split: bool = False
    hub_task: str = "image-feature-extraction"

    def source(self, data: str) -> str:
        """Return the source of images for a value of --data; for "scenes" the subset of this task."""
        return f"scenes:{self.scenes}" if data == "scenes" else data


@dataclass(frozen=True)
class Repetition:
    """A task that repeats another: `run(bench, evaluate, test, recipe)` joins the results of `evaluate(bench)`."""

    name: str
    help: str
    reads: tuple[type, ...]
    run: Callable[..., "Result"]
    default: tuple[str, ...]
    needs_layers: bool = False


Table = dict[str, Task | Repetition]


class Evaluation(Recipe):
    """The recipe of an evaluation: a group of fields for each class that a task reads; made by `make_recipe`."""

    table: Table

    def of(self, group: type[Group]) -> Group:
        """Return the fields of one group."""
        return getattr(self, group_name(group))

    @property
    def chosen(self) -> list[Task | Repetition]:
        """The tasks of the recipe, without duplicates."""
        return [self.table[name] for name in dict.fromkeys(self.of(WhatArguments).task)]

    @property
    def has_text(self) -> bool:
        return any(isinstance(task, Task) and task.has_text for task in self.chosen)

    def repeated(self, task: Repetition) -> list[Task]:
        """Return the tasks that a repetition repeats."""
        tasks = {one.name: one for one in protocols(self.table)}
        return [tasks[name] for name in self.of(RepeatArguments).of or task.default]

    def measured(self) -> list[Task]:
        """Return all tasks that run, including repeated ones, without duplicates."""
        lists = [self.repeated(task) if isinstance(task, Repetition) else [task] for task in self.chosen]
        return list(dict.fromkeys(task for tasks in lists for task in tasks))

    def groups_read(self) -> set[type]:
        """Return the groups of fields that the chosen tasks read."""
        return {group for task in (*self.chosen, *self.measured()) for group in task.reads} | set(ALWAYS)

    def validate(self) -> "Evaluation":
        """Raise `Refused`, with a message of one line, for the first invalid field; return the recipe."""
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
        """Raise `Refused` for a field that was set although no chosen task reads it."""
        read = self.groups_read()
        for kind in groups_of(type(self)).values():
            unread = [item.name for item in dataclasses.fields(kind) if item.name in values and kind not in read]
            if unread:
                readers = [task.name for task in self.table.values() if kind in task.reads]
                raise Refused(
                    f"{unread[0]}: got {values[unread[0]]!r}, which "
                    f"{', '.join(task.name for task in self.chosen)} does not read; "
                    f"accepted: without it, or a task that reads it ({', '.join(readers)})"
                )

    def as_flat_dict(self) -> dict:
        """Return the fields that the chosen tasks read, by name, as in a recipe file."""
        read = self.groups_read()
        groups = [getattr(self, name) for name, kind in groups_of(type(self)).items() if kind in read]
        return {key: value for group in groups for key, value in dataclasses.asdict(group).items()}


def protocols(table: Table) -> list[Task]:
    """Return the tasks of a table that are not repetitions of others."""
    return [task for task in table.values() if isinstance(task, Task)]


def group_name(group: type) -> str:
    """Return the name of a group of fields, as "patch_knn" for `PatchKnnArguments`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", group.__name__.removesuffix("Arguments")).lower()


def make_table(tasks: Iterable[Task | Repetition]) -> Table:
    """Return tasks by name, in the given order."""
    return {task.name: task for task in tasks}


def make_recipe(table: Table) -> type[Evaluation]:
    """Return the recipe class whose groups of fields are those that the tasks of a table read."""
    groups = dict.fromkeys((*ALWAYS, *(group for task in table.values() for group in task.reads)))
    members = [(group_name(group), group, field(default_factory=group)) for group in groups]
    return dataclasses.make_dataclass(
        "EvaluateRecipe", members, bases=(Evaluation,), namespace={"table": table, "__module__": __name__}
    )


def check_names(name: str, values: Iterable[str], accepted: Collection[str]) -> None:
    """Raise `Refused` for the first value that is not accepted, and suggest the nearest accepted name."""
    for value in values:
        require(value in accepted, name, value, ", ".join(accepted) + nearest(value, accepted))
