"""The tasks of `dinov3 evaluate` that need a text tower: `DinoTxtModel` directories, measured beside guessing."""

import math
from pathlib import Path


TEXT_TASKS = ("zero-shot", "image-text-retrieval", "zero-shot-segmentation")
SOURCES = {
    "zero-shot": "scenes:single",
    "image-text-retrieval": "scenes:crowded",
    "zero-shot-segmentation": "scenes:crowded",
}
BACKGROUND = "background"


def check_settings(settings) -> None:
    """Raise ValueError for values that no text task accepts."""
    others = [task for task in settings.task if task not in TEXT_TASKS]
    if others:
        raise ValueError(
            f"task: got {', '.join(settings.task)}, accepted: in one call either tasks of a text-aligned model "
            f"({', '.join(TEXT_TASKS)}) or others"
        )
    for name in ("image_size", "resize_size"):
        if getattr(settings, name) is not None:
            raise ValueError(
                f"{name}: got {getattr(settings, name)}, accepted for {settings.task[0]}: none, as the "
                "model's own processor prepares the images"
            )
    threshold = settings.background_threshold
    if threshold is not None and not 0 <= threshold <= 2:
        raise ValueError(f"background_threshold: got {threshold}, accepted: a difference of cosines, 0 to 2")
    if not settings.scales or not all(0 < scale < math.inf for scale in settings.scales):
        raise ValueError(f"scales: got {settings.scales}, accepted: at least one number above 0")


def load_aligned(name: str):
    """Return the text-aligned model in fp32, its processor, and where the weights came from."""
    import torch
    from transformers import PreTrainedConfig

    from ..models.modeling_dinotxt import DinoTxtModel
    from ..models.processing_dinotxt import DinoTxtProcessor
    from ..provenance import describe_weights, is_local

    accepted = "accepted for tasks with text: a dinotxt directory, as dinov3 align writes it, or such a hub id"
    path = Path(name)
    if path.is_file() or (is_local(name) and not (path / "config.json").is_file()):
        raise ValueError(f"model: got {name!r}, {accepted}")
    try:
        found, _ = PreTrainedConfig.get_config_dict(name)
    except OSError as error:
        raise FileNotFoundError(
            f"model: {name!r} is no directory here and the hub gave no configuration: {str(error).splitlines()[0]}"
        ) from None
    if found.get("model_type") != "dinotxt":
        raise ValueError(f"model: {name!r} is of type {found.get('model_type')!r}, {accepted}")
    try:
        processor = DinoTxtProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: {name!r} has no processor ({str(error).splitlines()[0]}), {accepted}") from None
    model = DinoTxtModel.from_pretrained(name, dtype=torch.float32)
    provenance = describe_weights(name, model)
    if model.config.backbone is not None:
        provenance["backbone"] = {"path": model.config.backbone, "revision": model.config.backbone_revision}
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return model, processor, provenance


def evaluate_text(settings) -> tuple[list[dict], dict]:
    """Run the text tasks; returns their results and where the model came from."""
    from ..data.captions import find_caption_columns
    from ..data.columns import check_column
    from ..data.streams import load_source
    from .rows import describe_rows, draw

    sources = {
        task: SOURCES[task] if settings.data == "scenes" else settings.data for task in dict.fromkeys(settings.task)
    }
    splits = {}
    for task, source in sources.items():
        request = {"streaming": False, "image_column": settings.image_column, "num_images": settings.num_test}
        rows = load_source(source, settings.test_split, **request)
        if task == "image-text-retrieval":
            find_caption_columns(rows, settings.caption_columns)
        else:
            field = "label_column" if task == "zero-shot" else "mask_column"
            check_column(rows, settings.label_column if task == "zero-shot" else settings.mask_column or "mask", field)
        splits[task] = draw(task, rows, settings.num_test, settings)
    model, processor, provenance = load_aligned(settings.model)
    results = []
    for task, rows in splits.items():
        result = measure_text(task, model, processor, rows, settings)
        result["data"] = {"source": sources[task], "test": describe_rows(settings.test_split, rows)}
        results.append(result)
    return results, provenance


def measure_text(task: str, model, processor, rows, settings) -> dict:
    """Run one task on its rows."""
    from ..data.columns import find_image_column
    from .image_text_retrieval import evaluate_retrieval
    from .rows import ignored_class
    from .zero_shot import evaluate_zero_shot
    from .zero_shot_segmentation import evaluate_zero_shot_segmentation

    image_column = find_image_column(rows, settings.image_column)
    if task == "image-text-retrieval":
        return evaluate_retrieval(
            model, processor, rows, image_column, settings.caption_columns, batch_size=settings.batch_size
        )
    templates = read_templates(settings.templates)
    names = read_class_names(settings.class_names)
    if task == "zero-shot":
        label_column, batch_size = settings.label_column, settings.batch_size
        return evaluate_zero_shot(model, processor, rows, names, templates, image_column, label_column, batch_size)
    names = names or mask_names(settings.data)
    return evaluate_zero_shot_segmentation(
        model,
        processor,
        rows,
        names,
        templates,
        image_column,
        settings.mask_column or "mask",
        background=names.index(BACKGROUND) if BACKGROUND in names else None,
        background_threshold=settings.background_threshold,
        whole_windows=settings.whole_windows,
        ignore_index=ignored_class(settings),
        scales=settings.scales,
    )


def read_class_names(names: list[str]) -> list[str] | None:
    """Return the names asked for, ImageNet's for "imagenet", None where none are."""
    return from_open_clip("imagenet_class_names") if names == ["imagenet"] else names or None


def read_templates(templates: list[str]) -> list[str] | None:
    """Return the templates asked for, OpenAI's for "openai", None where none are."""
    return from_open_clip("openai_templates") if templates == ["openai"] else templates or None


def from_open_clip(function: str) -> list[str]:
    from . import zero_shot

    try:
        return getattr(zero_shot, function)()
    except ImportError as error:
        raise ValueError(str(error)) from None


def mask_names(data: str) -> list[str]:
    """Return what the values of the masks are called: known of the scenes only."""
    if data.split(":")[0] != "scenes":
        raise ValueError("class_names: missing, accepted: the names of the mask's values, in order, from 0")
    from ..data.scenes import SCENE_CLASSES

    return [BACKGROUND, *SCENE_CLASSES]
