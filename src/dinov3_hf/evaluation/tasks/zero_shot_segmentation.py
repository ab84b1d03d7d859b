"""`--task zero-shot-segmentation`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import Refused
from ...recipe import described
from ..arguments import DataArguments, MaskArguments, MaskValueArguments, NameArguments, PromptArguments
from ..result import Result
from ..rows import class_mask_column, class_values, ignored_class, image_column, is_rendered, only_test
from ..task import Evaluation, Task
from .zero_shot import read_names, read_templates


if TYPE_CHECKING:
    from datasets import Dataset

    from ..loading import Aligned


BACKGROUND = "background"


@dataclass
class ZeroShotSegmentationArguments:
    """How pixels are classified."""

    background_threshold: float | None = described(
        "pixels are background where the best cosine exceeds the mean by less than this; null: background is "
        "predicted by its name",
        None,
        at_least=0,
        at_most=2,
    )
    scales: list[float] = described(
        "zero-shot-segmentation: scales of the image over which scores are averaged", [1.0], above=0
    )
    whole_windows: bool = described(
        "zero-shot-segmentation: add the score of each whole window to the scores of its patches", False
    )


def rows(task: Task, recipe: Evaluation) -> "tuple[None, Dataset]":
    from ...data.columns import check_column

    train, test = only_test(task, recipe)
    check_column(test, class_mask_column(recipe), "mask_column")
    return train, test


def run(aligned: "Aligned", train: None, test: "Dataset", recipe: Evaluation) -> Result:
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
        mask_values=class_values(recipe),
    )


def mask_names(data: str) -> list[str]:
    """Return the names of the mask values of rendered scenes; raises `Refused` for other data."""
    if not is_rendered(data):
        raise Refused("class_names: missing, accepted: the names of the mask's values, in order, from 0")
    from ...data.scenes import SCENE_CLASSES

    return [BACKGROUND, *SCENE_CLASSES]


TASK = Task(
    name="zero-shot-segmentation",
    help="segmentation by class names, mIoU",
    reads=(MaskArguments, MaskValueArguments, NameArguments, PromptArguments, ZeroShotSegmentationArguments),
    run=run,
    scenes="crowded",
    rows=rows,
    has_text=True,
    hub_task="image-segmentation",
)
