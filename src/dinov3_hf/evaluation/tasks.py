"""How each task of `dinov3 evaluate` is called: from flags to the protocol's function."""

from collections.abc import Callable
from pathlib import Path

from ..data.splits import draw_rows
from .rows import (
    describe_rows,
    ignored_class,
    is_rendered,
    load_rows,
    load_splits,
    mask_column,
    sequence_column,
    source_of,
)
from .text_tasks import mask_names


DEFAULT_STEPS = 2000
# Its probe is a transformer: a step on a CPU takes a second.
VIDEO_STEPS = 300


def measure(task: str, bench, splits: dict[str, tuple], settings) -> list[dict]:
    """Run one task on the splits loaded for it; returns one result, or one for each task that it repeats."""
    if task in ("layers", "resolution", "fairness"):
        return [measure_again(task, inner, bench, splits[inner], settings) for inner in settings.repeated(task)]
    train, test = splits[task]
    return [described(PROTOCOLS[task](bench, train, test, settings), task, train, test, settings)]


def needed_splits(settings) -> dict[str, tuple]:
    """Load the splits of all tasks that will run, those that others repeat included, each once."""
    tasks = []
    for task in settings.task:
        tasks += settings.repeated(task) if task in ("layers", "resolution", "fairness") else (task,)
    return {task: load_splits(task, settings) for task in dict.fromkeys(tasks)}


def measure_again(task: str, inner: str, bench, rows: tuple, settings) -> dict:
    """Run `inner` layer by layer, at several sizes, or once and split by group."""
    from .layers import evaluate_layers
    from .resolution import evaluate_resolution

    train, test = rows

    def run(other) -> dict:
        return PROTOCOLS[inner](other, train, test, settings)

    if task == "fairness":
        from .fairness import by_group, read_groups

        read_groups(test, settings.group_column)
        result = by_group(run(bench), test, settings.group_column)
    elif task == "layers":
        result = evaluate_layers(bench, run, settings.layers)
    else:
        result = evaluate_resolution(bench, run, settings.sizes)
    return described(result, inner, train, test, settings)


def described(result: dict, task: str, train, test, settings) -> dict:
    """Add to a result what data it was measured on."""
    rows = {"train": (settings.train_split, train), "test": (settings.test_split, test)}
    result["data"] = {"source": source_of(task, settings.data)}
    result["data"] |= {name: describe_rows(*one) for name, one in rows.items() if one[1] is not None}
    return result


def image_column(rows, settings) -> str:
    from ..data.columns import find_image_column

    return find_image_column(rows, settings.image_column)


def names_of_masks(settings) -> list[str] | None:
    """Return the names of the mask's values: those given, or the scenes'."""
    return settings.class_names or (mask_names(settings.data) if is_rendered(settings.data) else None)


def steps(settings) -> dict:
    """Return how long a head is trained: as asked, else the paper's with --augment, else few."""
    if settings.steps is None and settings.augment:
        return {}
    return {"steps": settings.steps or DEFAULT_STEPS}


def steps_and_rate(settings, paper_steps: int, paper_rate: float) -> dict:
    """Return how long and at which rate a dense head is trained; few steps at the paper's rate would leave it where it starts."""
    chosen = steps(settings).get("steps", paper_steps)
    rate = settings.lr or (paper_rate if chosen >= paper_steps / 4 else 10 * paper_rate)
    return {"steps": chosen, "lr": rate, "augment": settings.augment}


def run_knn(bench, train, test, settings) -> dict:
    from .knn import evaluate_knn

    return evaluate_knn(bench, train, test, image_column(train, settings), settings.label_column, settings.k)


def run_patch_knn(bench, train, test, settings) -> dict:
    from .patch_knn import evaluate_patch_knn

    return evaluate_patch_knn(
        bench,
        train,
        test,
        image_column(train, settings),
        mask_column("patch-knn", settings),
        settings.k,
        settings.max_bank_patches,
        ignored_class(settings),
    )


def run_linear(bench, train, test, settings) -> dict:
    from .linear import evaluate_linear

    others = load_others(settings)
    return evaluate_linear(bench, train, test, image_column(train, settings), settings.label_column, others)


def run_linear_sgd(bench, train, test, settings) -> dict:
    from .linear_sgd import evaluate_linear_sgd

    columns = (image_column(train, settings), settings.label_column)
    # The paper's batch of 1024 would be all of a small data set.
    batch_size = min(1024, max(32, len(train) // 8))
    settled = {"batch_size": batch_size, "augment": settings.augment, **steps(settings)}
    return evaluate_linear_sgd(bench, train, test, *columns, load_others(settings), **settled)


def run_segmentation(bench, train, test, settings) -> dict:
    from .segmentation import PAPER_STEPS, evaluate_segmentation

    return evaluate_segmentation(
        bench,
        train,
        test,
        image_column(train, settings),
        mask_column("segmentation", settings),
        ignored_class(settings),
        settings.batch_norm,
        class_names=names_of_masks(settings),
        **steps_and_rate(settings, PAPER_STEPS, 1e-3),
    )


def run_depth(bench, train, test, settings) -> dict:
    from .depth import PAPER_STEPS, evaluate_depth

    return evaluate_depth(
        bench,
        train,
        test,
        image_column(train, settings),
        settings.depth_column,
        settings.depth_unit,
        max_depth=settings.max_depth,
        batch_norm=settings.batch_norm,
        **steps_and_rate(settings, PAPER_STEPS, 3e-4),
    )


def run_correspondence(bench, train, test, settings) -> dict:
    from ..data.streams import load_table
    from .correspondence import evaluate_correspondence

    pairs = load_table(settings.data, settings.pairs_split) if settings.pairs_split else None
    columns = (image_column(test, settings), settings.keypoints_column)
    return evaluate_correspondence(bench, test, pairs, *columns, settings.thresholds)


def run_tracking(bench, train, test, settings) -> dict:
    from .tracking import evaluate_tracking

    return evaluate_tracking(
        bench,
        test,
        image_column(test, settings),
        mask_column("tracking", settings),
        sequence_column(settings),
        settings.frame_column,
        ignore_index=settings.ignore_index,
    )


def run_discovery(bench, train, test, settings) -> dict:
    from .discovery import evaluate_discovery

    return evaluate_discovery(
        bench,
        test,
        image_column(test, settings),
        mask_column("discovery", settings),
        settings.box_column,
        ignore_index=settings.ignore_index,
    )


def run_retrieval(bench, train, test, settings) -> dict:
    from .retrieval import evaluate_instance_retrieval

    # Two views of a rendered scene show the same objects: the scene is the instance.
    is_default = settings.instance_column == "instance_id"
    instance = "scene" if is_rendered(settings.data) and is_default else settings.instance_column
    return evaluate_instance_retrieval(
        bench,
        train,
        test,
        image_column(train, settings),
        settings.positives_column,
        instance,
        settings.recall_at,
        exclude_same=train is test,
        whole=settings.whole_images,
    )


def run_video(bench, train, test, settings) -> dict:
    from .video import evaluate_video

    return evaluate_video(
        bench,
        train,
        test,
        image_column(train, settings),
        settings.label_column,
        sequence_column(settings),
        settings.frame_column,
        steps=settings.steps or VIDEO_STEPS,
    )


def load_others(settings) -> dict:
    """Load the out-of-distribution test sets, each under the last part of its source's name."""
    found = {}
    for source in settings.ood_data:
        title = Path(source.split("*")[0].rstrip("/")).stem or source
        if title in found:
            raise ValueError(f"ood_data: got two sources called {title!r}, accepted: different names")
        rows = load_rows(source, settings.test_split, settings.num_test, settings)
        found[title] = draw_rows(rows, settings.num_test, settings.seed)
    return found


def run_outliers(bench, train, test, settings) -> dict:
    from .outliers import evaluate_outliers

    return evaluate_outliers(bench, test, image_column(test, settings))


PROTOCOLS: dict[str, Callable] = {
    "knn": run_knn,
    "patch-knn": run_patch_knn,
    "linear": run_linear,
    "linear-sgd": run_linear_sgd,
    "segmentation": run_segmentation,
    "depth": run_depth,
    "correspondence": run_correspondence,
    "tracking": run_tracking,
    "discovery": run_discovery,
    "retrieval": run_retrieval,
    "video": run_video,
    "outliers": run_outliers,
}
