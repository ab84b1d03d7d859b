"""How each task of `dinov3 evaluate` is called: from flags to the protocol's function."""

from collections.abc import Callable

from .evaluate_data import describe_rows, is_rendered, load_splits, mask_column, source_of
from .evaluate_text import mask_names


DEFAULT_STEPS = 2000


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
    from dinov3_hf.evaluation.features import check_column
    from dinov3_hf.evaluation.layers import evaluate_layers
    from dinov3_hf.evaluation.resolution import evaluate_resolution

    train, test = rows

    def run(other) -> dict:
        return PROTOCOLS[inner](other, train, test, settings)

    if task == "fairness":
        from dinov3_hf.evaluation.fairness import by_group

        check_column(test, settings.group_column, "group_column")
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
    from dinov3_hf.data.streams import find_image_column

    return find_image_column(rows, settings.image_column)


def names_of_masks(settings) -> list[str] | None:
    """Return the names of the mask's values: those given, or the scenes'."""
    return settings.class_names or (mask_names(settings.data) if is_rendered(settings.data) else None)


def steps(settings) -> dict:
    """Return how long a head is trained: as asked, else the paper's with --augment, else few."""
    if settings.steps is None and settings.augment:
        return {}
    return {"steps": settings.steps or DEFAULT_STEPS}


def run_knn(bench, train, test, settings) -> dict:
    from dinov3_hf.evaluation.knn import evaluate_knn

    return evaluate_knn(bench, train, test, image_column(train, settings), settings.label_column, settings.k)


def run_patch_knn(bench, train, test, settings) -> dict:
    from dinov3_hf.evaluation.patch_knn import evaluate_patch_knn

    return evaluate_patch_knn(
        bench,
        train,
        test,
        image_column(train, settings),
        mask_column("patch-knn", settings),
        settings.k,
        settings.max_bank_patches,
        settings.ignore_index,
    )


def run_outliers(bench, train, test, settings) -> dict:
    from dinov3_hf.evaluation.outliers import evaluate_outliers

    return evaluate_outliers(bench, test, image_column(test, settings))


PROTOCOLS: dict[str, Callable] = {
    "knn": run_knn,
    "patch-knn": run_patch_knn,
    "outliers": run_outliers,
}
