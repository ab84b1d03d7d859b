"""The rows that the tasks of `dinov3 evaluate` measure: sources, splits, and what is drawn from them."""

from ..data.splits import draw_rows, split_off_test
from ..errors import Refused
from .arguments import DataArguments, MaskArguments, SequenceArguments, TrainArguments


def is_rendered(data: str) -> bool:
    """Say whether a source is the rendered scenes."""
    return data.split(":")[0] == "scenes"


def draw_images(rows, count: int, recipe):
    """Return at most `count` rows, drawn by seed."""
    return draw_rows(rows, count, recipe.of(DataArguments).seed)


def train_and_test(task, recipe, draw=draw_images) -> tuple:
    """Return rows to learn from and rows to measure, drawn by seed; of data without splits a fifth is measured.

    Raises `Refused` for a split without rows.
    """
    learnt, measured = recipe.of(TrainArguments), recipe.of(DataArguments)
    source = task.source(measured.data)
    train = load_rows(source, learnt.train_split, learnt.num_train, recipe)
    test = load_rows(source, measured.test_split, measured.num_test, recipe)
    title = f"{task.name}: {measured.data}"
    train, test = split_off_test(train, test, measured.seed, title, measured.test_split)
    return draw(train, learnt.num_train, recipe), draw(test, measured.num_test, recipe)


def only_test(task, recipe, draw=draw_images) -> tuple:
    """Return None and rows to measure, drawn by seed; `Refused` for a split without rows."""
    measured = recipe.of(DataArguments)
    rows = load_rows(task.source(measured.data), measured.test_split, measured.num_test, recipe)
    return None, draw(rows, measured.num_test, recipe)


def load_rows(source: str, split: str, count: int, recipe):
    """Open one split; `Refused` where it has no rows."""
    from ..data.streams import load_source

    column = recipe.of(DataArguments).image_column
    rows = load_source(source, split, streaming=False, image_column=column, num_images=count)
    if not len(rows):
        raise Refused(f"data: split {split!r} of {source!r} has no rows, accepted: at least one image")
    return rows


def draw_sequences(rows, count: int, recipe):
    """Return whole videos, in an order drawn by seed, until they have `count` frames."""
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


def image_column(rows, recipe) -> str:
    """Return the column of the images: the one asked for, or the only one."""
    from ..data.columns import find_image_column

    return find_image_column(rows, recipe.of(DataArguments).image_column)


def sequence_column(recipe) -> str:
    """Return the column of the videos; the scenes call theirs `scene`."""
    column = recipe.of(SequenceArguments).sequence_column
    return "scene" if is_rendered(recipe.of(DataArguments).data) and column == "sequence" else column


def class_mask_column(recipe) -> str:
    """Return the column of the masks of classes."""
    return recipe.of(MaskArguments).mask_column or "mask"


def object_mask_column(recipe) -> str:
    """Return the column of the masks of objects, which the scenes have besides those of classes."""
    default = "instances" if is_rendered(recipe.of(DataArguments).data) else "mask"
    return recipe.of(MaskArguments).mask_column or default


def ignored_class(recipe) -> int:
    """Return the value of class masks that does not count; masks of objects have none unless it is given."""
    from ..data.masks import IGNORE_INDEX

    given = recipe.of(MaskArguments).ignore_index
    return IGNORE_INDEX if given is None else given


def describe_rows(split: str, rows) -> dict:
    """Return what says which rows were measured."""
    version = str(rows.version) if rows.version else None
    return {"split": split, "images": len(rows), "fingerprint": rows._fingerprint, "version": version}
