"""The rows on which the tasks of `dinov3 evaluate` train and test: sources, splits, and random subsets."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..data.splits import draw_rows, split_off_test
from ..errors import Refused
from .arguments import DataArguments, MaskArguments, MaskValueArguments, SequenceArguments, TrainArguments


if TYPE_CHECKING:
    from datasets import Dataset

Group = TypeVar("Group")
# Sources and splits that the current evaluation has printed; several tasks read the same ones.
ANNOUNCED: set[tuple[str, str]] = set()


class Groups(Protocol):
    """The part of an `Evaluation` recipe that this module reads (it cannot import `task`, which imports it)."""

    def of(self, group: type[Group]) -> Group: ...


class Named(Protocol):
    """The part of a `Task` that this module reads."""

    @property
    def name(self) -> str: ...

    def source(self, data: str) -> str: ...


# From rows, the number wanted and the recipe to the rows that are used.
Draw = Callable[["Dataset", int, Groups], "Dataset"]


def is_rendered(data: str) -> bool:
    """Say whether a source is the package's rendered scenes."""
    return data.split(":")[0] == "scenes"


def draw_images(rows: "Dataset", count: int, recipe: Groups) -> "Dataset":
    """Return at most `count` rows, drawn by seed."""
    return draw_rows(rows, count, recipe.of(DataArguments).seed)


def train_and_test(task: Named, recipe: Groups, draw: Draw = draw_images) -> "tuple[Dataset, Dataset]":
    """Return train and test rows, drawn by seed; of data without splits, a fifth becomes the test set.

    Raises `Refused` for a split without rows.
    """
    learnt, measured = recipe.of(TrainArguments), recipe.of(DataArguments)
    source = task.source(measured.data)
    train = load_rows(source, learnt.train_split, learnt.num_train, recipe)
    test = load_rows(source, measured.test_split, measured.num_test, recipe)
    title = f"{task.name}: {measured.data}"
    train, test = split_off_test(train, test, measured.seed, title, measured.test_split)
    return draw(train, learnt.num_train, recipe), draw(test, measured.num_test, recipe)


def only_test(task: Named, recipe: Groups, draw: Draw = draw_images) -> "tuple[None, Dataset]":
    """Return None (no train rows) and test rows, drawn by seed; raises `Refused` for a split without rows."""
    measured = recipe.of(DataArguments)
    rows = load_rows(task.source(measured.data), measured.test_split, measured.num_test, recipe)
    return None, draw(rows, measured.num_test, recipe)


def load_rows(source: str, split: str, count: int, recipe: Groups) -> "Dataset":
    """Open one split and print, once an evaluation, what it was taken for; raises `Refused` if it has no rows."""
    from ..data.sources.account import print_account
    from ..data.streams import load_source

    column = recipe.of(DataArguments).image_column
    rows = load_source(source, split, streaming=False, image_column=column, num_images=count)
    if not len(rows):
        raise Refused(f"data: split {split!r} of {source!r} has no rows, accepted: at least one image")
    if (source, split) not in ANNOUNCED:
        ANNOUNCED.add((source, split))
        print_account(source, split, rows, column)
    return rows


def draw_sequences(rows: "Dataset", count: int, recipe: Groups) -> "Dataset":
    """Return the rows of whole videos, drawn by seed until they have at least `count` frames together."""
    import numpy as np

    from ..data.columns import check_column

    if len(rows) <= count:
        return rows
    column = sequence_column(recipe)
    check_column(rows, column, "sequence_column")
    of_row = rows[column]
    names = list(dict.fromkeys(of_row))
    sizes = dict.fromkeys(names, 0)
    for name in of_row:
        sizes[name] += 1
    chosen, frames = set(), 0
    for index in np.random.default_rng(recipe.of(DataArguments).seed).permutation(len(names)):
        if frames >= count:
            break
        chosen.add(names[index])
        frames += sizes[names[index]]
    return rows.select([row for row, name in enumerate(of_row) if name in chosen])


def image_column(rows: "Dataset", recipe: Groups) -> str:
    """Return the column of the images: that of the recipe, or the only image column."""
    from ..data.columns import find_image_column

    return find_image_column(rows, recipe.of(DataArguments).image_column)


def sequence_column(recipe: Groups) -> str:
    """Return the column that names the videos; for rendered scenes the default is `scene`."""
    column = recipe.of(SequenceArguments).sequence_column
    return "scene" if is_rendered(recipe.of(DataArguments).data) and column == "sequence" else column


def class_mask_column(recipe: Groups) -> str:
    """Return the column of the masks of classes."""
    return recipe.of(MaskArguments).mask_column or "mask"


def object_mask_column(recipe: Groups) -> str:
    """Return the column of the object masks, by default `mask`; for rendered scenes, `instances`."""
    default = "instances" if is_rendered(recipe.of(DataArguments).data) else "mask"
    return recipe.of(MaskArguments).mask_column or default


def ignored_class(recipe: Groups) -> int:
    """Return the value of class masks whose pixels are ignored, by default 255."""
    from ..data.masks import IGNORE_INDEX

    given = recipe.of(MaskArguments).ignore_index
    return IGNORE_INDEX if given is None else given


def class_values(recipe: Groups) -> list[int]:
    """Return the mask values of the classes in their order, empty if these are the indices of the classes.

    Raises `Refused` for values that contradict themselves or the recipe's `ignore_index`.
    """
    from ..data.masks import check_mask_values

    values = recipe.of(MaskValueArguments).mask_values
    check_mask_values(values, recipe.of(MaskArguments).ignore_index)
    return values


def describe_rows(split: str, rows: "Dataset") -> dict[str, str | int | None]:
    """Return the entry of results.json that identifies the rows of a split."""
    version = str(rows.version) if rows.version else None
    return {"split": split, "images": len(rows), "fingerprint": rows._fingerprint, "version": version}
