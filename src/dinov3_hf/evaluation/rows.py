"""The rows that each task of `dinov3 evaluate` measures: sources, splits, and what is drawn from them."""

from ..data.splits import draw_rows, split_off_test


# What a task reads of the scenes: one object for whole images, crowds for patches, pairs and clips for their tasks.
SCENES = {
    "knn": "single",
    "linear": "single",
    "linear-sgd": "single",
    "patch-knn": "crowded",
    "segmentation": "crowded",
    "depth": "crowded",
    "correspondence": "pairs",
    "tracking": "clips",
    "discovery": "single",
    "retrieval": "pairs",
    "video": "clips",
    "outliers": "crowded",
}
TEST_ONLY = ("correspondence", "tracking", "discovery", "outliers")
SEQUENCES = ("tracking", "video")


def source_of(task: str, data: str) -> str:
    """Return the source that a task reads."""
    return f"scenes:{SCENES[task]}" if data == "scenes" else data


def is_rendered(data: str) -> bool:
    return data.split(":")[0] == "scenes"


def load_splits(task: str, settings) -> tuple:
    """Return a task's train (None where it needs none) and test rows, drawn by seed.

    Raises ValueError for a split without rows.
    """
    source = source_of(task, settings.data)
    if task == "retrieval" and is_rendered(settings.data):
        return rendered_views(source, settings)
    if task == "retrieval" and settings.train_split == settings.test_split:
        # Every image asks for the others.
        rows = draw(
            task, load_rows(source, settings.test_split, settings.num_test, settings), settings.num_test, settings
        )
        return rows, rows
    counts = {settings.train_split: settings.num_train, settings.test_split: settings.num_test}
    if task in TEST_ONLY:
        counts.pop(settings.train_split)
    splits = [load_rows(source, split, count, settings) for split, count in counts.items()]
    if len(splits) == 2:
        splits = split_off_test(*splits, settings.seed, f"{task}: {settings.data}", settings.test_split)
    drawn = [draw(task, rows, count, settings) for rows, count in zip(splits, counts.values(), strict=True)]
    return (None, *drawn) if len(drawn) == 1 else tuple(drawn)


def load_rows(source: str, split: str, count: int, settings):
    """Open one split; ValueError where it has no rows."""
    from ..data.streams import load_source

    rows = load_source(source, split, streaming=False, image_column=settings.image_column, num_images=count)
    if not len(rows):
        raise ValueError(f"data: split {split!r} of {source!r} has no rows, accepted: at least one image")
    return rows


def rendered_views(source: str, settings) -> tuple:
    """Return first views as the gallery and second ones as queries, both of scenes that nothing was trained on."""
    rows = load_rows(source, settings.test_split, 2 * settings.num_test, settings)
    views = rows["frame"]
    return tuple(rows.select([row for row, view in enumerate(views) if view == wanted]) for wanted in (0, 1))


def draw(task: str, rows, count: int, settings):
    """Return about `count` rows: of videos whole ones are drawn; of pairs the first ones, as rows are numbered by others."""
    if len(rows) <= count or (task == "correspondence" and settings.pairs_split):
        return rows
    if task == "correspondence":
        return rows.select(range(count - count % 2))
    if task == "retrieval" and settings.positives_column:
        # Queries name rows of the gallery, which therefore stays whole.
        return rows
    if task in SEQUENCES:
        return draw_sequences(rows, count, settings)
    return draw_rows(rows, count, settings.seed)


def draw_sequences(rows, count: int, settings):
    """Return whole videos, in an order drawn by seed, until they have `count` frames."""
    import numpy as np

    from ..data.columns import check_column

    column = sequence_column(settings)
    check_column(rows, column, "sequence_column")
    of_row = rows[column]
    names = list(dict.fromkeys(of_row))
    sizes = dict.fromkeys(names, 0)
    for name in of_row:
        sizes[name] += 1
    chosen, frames = set(), 0
    for index in np.random.default_rng(settings.seed).permutation(len(names)):
        if frames >= count:
            break
        chosen.add(names[index])
        frames += sizes[names[index]]
    return rows.select([row for row, name in enumerate(of_row) if name in chosen])


def sequence_column(settings) -> str:
    """Return the column of the videos; the scenes call theirs `scene`."""
    is_default = settings.sequence_column == "sequence"
    return "scene" if is_rendered(settings.data) and is_default else settings.sequence_column


def mask_column(task: str, settings) -> str:
    """Return the column of the masks: of classes, or of the scenes' objects where a task is about objects."""
    if settings.mask_column is not None:
        return settings.mask_column
    return "instances" if is_rendered(settings.data) and task in ("discovery", "tracking") else "mask"


def ignored_class(settings) -> int:
    """Return the value of class masks that does not count; masks of objects have none unless it is given."""
    from ..data.masks import IGNORE_INDEX

    return IGNORE_INDEX if settings.ignore_index is None else settings.ignore_index


def describe_rows(split: str, rows) -> dict:
    """Return what says which rows were measured."""
    version = str(rows.version) if rows.version else None
    return {"split": split, "images": len(rows), "fingerprint": rows._fingerprint, "version": version}
