"""`--task zero-shot-segmentation`."""

from dataclasses import dataclass

from ...errors import Refused
from ...recipe import described
from ..arguments import DataArguments, MaskArguments, NameArguments, PromptArguments
from ..result import Result
from ..rows import class_mask_column, ignored_class, image_column, is_rendered, only_test
from ..task import Task
from .zero_shot import read_names, read_templates


BACKGROUND = "background"


@dataclass
class ZeroShotSegmentationArguments:
    """How pixels get the class they have."""

    background_threshold: float | None = described(
        "how far the best cosine must stand above the mean, else background; null: a name as others",
        None,
        at_least=0,
        at_most=2,
    )
    scales: list[float] = described("sizes of the images over which zero-shot-segmentation averages", [1.0], above=0)
    whole_windows: bool = described("zero-shot-segmentation: count what a window shows as a whole too", False)


def rows(task, recipe) -> tuple:
    from ...data.columns import check_column

    train, test = only_test(task, recipe)
    check_column(test, class_mask_column(recipe), "mask_column")
    return train, test


def run(aligned, train, test, recipe) -> Result:
    from ..zero_shot_segmentation import evaluate_zero_shot_segmentation

    settings = recipe.of(ZeroShotSegmentationArguments)
    names = read_names(recipe) or mask_names(recipe.of(DataArguments).data)
    return evaluate_zero_shot_segmentation(
        aligned.model,
        aligned.processor,
        test,
        names,
        read_templates(recipe),
        image_column(test, recipe),
        class_mask_column(recipe),
        background=names.index(BACKGROUND) if BACKGROUND in names else None,
        background_threshold=settings.background_threshold,
        whole_windows=settings.whole_windows,
        ignore_index=ignored_class(recipe),
        scales=settings.scales,
    )


def mask_names(data: str) -> list[str]:
    """Return what the values of the masks are called: known of the scenes only."""
    if not is_rendered(data):
        raise Refused("class_names: missing, accepted: the names of the mask's values, in order, from 0")
    from ...data.scenes import SCENE_CLASSES

    return [BACKGROUND, *SCENE_CLASSES]


TASK = Task(
    name="zero-shot-segmentation",
    help="segmentation by the classes' names, mIoU",
    reads=(MaskArguments, NameArguments, PromptArguments, ZeroShotSegmentationArguments),
    run=run,
    scenes="crowded",
    rows=rows,
    has_text=True,
    hub_task="image-segmentation",
)
