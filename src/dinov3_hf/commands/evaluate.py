"""`dinov3 evaluate`: measure a checkpoint's frozen features beside its untrained twin and raw pixels.

Tasks with text are in `evaluate_text.py`.
"""

import argparse
import datetime
import difflib
import hashlib
import json
import platform
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from dinov3_hf.commands.evaluate_text import TEXT_TASKS, check_settings, evaluate_text


TASKS = ("knn", "patch-knn", *TEXT_TASKS)
COLUMNS = ("model", "untrained", "raw_pixels", "chance")


def _option(text: str, default=None, type=str, many: bool = False):
    metadata = {"help": text, "type": type, "many": many}
    return (
        field(default_factory=lambda: list(default), metadata=metadata)
        if many
        else field(default=default, metadata=metadata)
    )


@dataclass
class EvaluateArguments:
    """One evaluation; the fields are the flags and the keys of `--config`."""

    model: str | None = _option(
        "model directory or hub id (ours or dinov3_vit), or a file in Meta's layout (.pth, .safetensors); for tasks with "
        "text a directory that dinov3 align wrote"
    )
    task: list[str] = _option(f"what to measure, one or more of {', '.join(TASKS)}", ["knn"], many=True)
    data: str = _option("scenes, an image folder, Parquet files, WebDataset tars, or a hub data set id", "scenes")
    train_split: str = _option("split that the neighbours come from", "train")
    test_split: str = _option(
        "split that is measured; of data without splits a fifth is held out, for tasks with text all", "test"
    )
    image_column: str | None = _option("column of the images [default: the only image column]")
    label_column: str = _option("column of the classes, for knn and zero-shot", "label")
    mask_column: str = _option("column of the semantic masks (images of class indices)", "mask")
    ignore_index: int = _option("mask value that does not count", 255, int)
    caption_columns: list[str] = _option(
        "columns of captions, for retrieval [default: caption, captions]", [], many=True
    )
    class_names: list[str] = _option(
        "names of the classes, in order, or imagenet, for zero-shot; of the mask's values, in order, where background is "
        "the background, for zero-shot-segmentation [default: the label column's; the scenes']",
        [],
        many=True,
    )
    templates: list[str] = _option(
        "prompts with {} for the name, or openai [default: some whose words the text tower knows]", [], many=True
    )
    background_threshold: float | None = _option(
        "how far the best cosine must stand above the mean, else background [default: a name as others]", None, float
    )
    scales: list[float] = _option(
        "sizes of the images over which zero-shot-segmentation averages", [1.0], float, many=True
    )
    num_train: int = _option("train images used, drawn by seed", 2000, int)
    num_test: int = _option("test images used, drawn by seed", 500, int)
    image_size: int | None = _option("side in pixels the network sees [default: the checkpoint's own]", None, int)
    resize_size: int | None = _option(
        "shorter side in pixels before the centre crop [default: 256/224 of image-size; scenes: image-size]", None, int
    )
    k: list[int] = _option("neighbours that vote, one or more", [10, 20], int, many=True)
    max_bank_patches: int = _option("patches kept as neighbours, for patch-knn", 50_000, int)
    whole_windows: bool = _option("zero-shot-segmentation: count what a window shows as a whole too", False, bool)
    batch_size: int = _option("images per forward pass", 64, int)
    seed: int = _option("seed of the untrained weights and of every draw", 0, int)
    controls: bool = _option("also measure the untrained network and raw pixels", True, bool)
    output_dir: str = _option("folder for results.json", "outputs/evaluate")
    overwrite: bool = _option("replace the results.json that output-dir holds", False, bool)

    def __post_init__(self):
        for task in self.task:
            if task not in TASKS:
                close = difflib.get_close_matches(task, TASKS, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"task: got {task!r}, accepted: {', '.join(TASKS)}{hint}")
        if not self.model:
            raise ValueError("model: missing, accepted: a model directory, a hub id or a .pth or .safetensors file")
        for name in ("num_train", "num_test", "batch_size", "max_bank_patches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, accepted: a whole number of at least 1")
        if min(self.k, default=0) < 1:
            raise ValueError(f"k: got {self.k}, accepted: whole numbers of at least 1")
        if self.has_text:
            check_settings(self)
        elif self.train_split == self.test_split:
            raise ValueError(
                f"test_split: got {self.test_split!r} as for train_split, where every image finds itself; accepted: another split"
            )

    @property
    def has_text(self) -> bool:
        return any(task in TEXT_TASKS for task in self.task)


OPTIONS = {item.name: item for item in fields(EvaluateArguments)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="YAML file of the same names; flags override it")
    for name, item in OPTIONS.items():
        text, kind = item.metadata["help"], item.metadata["type"]
        default = item.default if item.default is not MISSING else " ".join(map(str, item.default_factory()))
        if default not in (None, "") and kind is not bool:
            text += f" [default {default}]"
        flag = "--" + name.replace("_", "-")
        if name == "model":
            parser.add_argument("model", nargs="?", help=text)
        elif kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(
                flag, type=kind, nargs="+" if item.metadata["many"] else None, default=None, metavar="X", help=text
            )


def run(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name, None) is not None}
    settings = EvaluateArguments(**(read_config(arguments.config) | given))
    output = Path(settings.output_dir) / "results.json"
    if output.exists() and not settings.overwrite:
        raise FileExistsError(f"output_dir: {output} exists, accepted: another folder, or --overwrite")
    record = evaluate(settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(format_table(record["results"]))
    for result in record["results"]:
        if result["task"] == "zero-shot-segmentation":
            print(format_classes(result))
        if result["protocol"].get("unknown_words"):
            print(
                f"{result['task']}: the text tower was never taught {', '.join(result['protocol']['unknown_words'])}"
            )
        skipped = sum(result["skipped_images"].values())
        if skipped:
            print(f"{result['task']}: {skipped} images could not be decoded and were left out")
        for reason, count in result.get("skipped_rows", {}).items():
            if count:
                print(f"{result['task']}: {count} rows were left out: {reason}")
    print(f"results: {output}")
    return 0


def read_config(path: str | None) -> dict:
    """Read a YAML file of settings; raises FileNotFoundError without it, ValueError for unknown keys and wrong types."""
    if path is None:
        return {}
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"config: no file {path!r}, accepted: a YAML file of the flags' names")
    values = yaml.safe_load(Path(path).read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a {type(values).__name__}, accepted: one `field: value` a line")
    settings = {}
    for key, value in values.items():
        if key not in OPTIONS:
            close = difflib.get_close_matches(str(key), OPTIONS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"config: unknown field {key!r} in {path}{hint}")
        kind, many = OPTIONS[key].metadata["type"], OPTIONS[key].metadata["many"]
        items = value if many and isinstance(value, list) else [value]
        optional = OPTIONS[key].default is None
        kinds = (int, float) if kind is float else (kind,)
        if not all(type(item) in kinds or (item is None and optional) for item in items):
            raise ValueError(f"{key}: got {value!r}, accepted: {'a list of ' if many else ''}{kind.__name__}")
        settings[key] = items if many else value
    return settings


def evaluate(settings: EvaluateArguments) -> dict:
    """Run the tasks and return the record that results.json holds."""
    from dinov3_hf.evaluation.features import check_image_size

    if settings.has_text:
        results, provenance = evaluate_text(settings)
    else:
        splits = {task: load_splits(task, settings) for task in dict.fromkeys(settings.task)}
        model, provenance, preprocessing = load_model(settings)
        check_image_size(preprocessing.image_size, model.config.patch_size)
        results = [measure(task, model, *rows, preprocessing, settings) for task, rows in splits.items()]
    return {
        "results": results,
        "model": provenance,
        "settings": vars(settings),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def load_splits(task: str, settings: EvaluateArguments) -> tuple:
    """Return a task's train and test rows, with columns checked; ValueError for one that is missing.

    A source without splits (a plain folder of images) is read the same for both: a fifth of it becomes the test rows.
    """
    from dinov3_hf.data.streams import load_source
    from dinov3_hf.evaluation.features import check_column

    field = "label_column" if task == "knn" else "mask_column"
    counts = {settings.train_split: settings.num_train, settings.test_split: settings.num_test}
    splits = []
    for split, count in counts.items():
        request = {"streaming": False, "image_column": settings.image_column, "num_images": count}
        splits.append(load_source(source_of(task, settings.data), split, **request))
        check_column(splits[-1], getattr(settings, field), field)
    if splits[0]._fingerprint == splits[1]._fingerprint:
        splits = list(splits[0].train_test_split(test_size=0.2, seed=settings.seed).values())
        print(f"{task}: {settings.data} has no splits: a fifth of it is held out as {settings.test_split}")
    return tuple(draw(rows, count, settings.seed) for rows, count in zip(splits, counts.values(), strict=True))


def draw(rows, count: int, seed: int):
    """Return at most `count` rows, drawn because folders and many data sets are sorted by class."""
    return rows.shuffle(seed=seed).select(range(count)) if len(rows) > count else rows


def source_of(task: str, data: str) -> str:
    """Return the source a task reads: of the scenes, one object for whole images, crowds for patches."""
    return {"knn": "scenes:single", "patch-knn": "scenes:crowded"}[task] if data == "scenes" else data


def load_model(settings: EvaluateArguments):
    """Return the model in fp32, where it came from, and the preprocessing its processor asks for."""
    import torch
    from transformers import AutoImageProcessor

    from dinov3_hf import Dinov3ForPreTraining
    from dinov3_hf.checkpoints import load_model as load_any
    from dinov3_hf.evaluation.features import Preprocessing

    name, path = settings.model, Path(settings.model)
    model, processor = load_any(name), None
    model = model.dinov3 if isinstance(model, Dinov3ForPreTraining) else model
    provenance = provenance_of(name, model)
    if not path.is_file():
        try:
            processor = AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError):
            pass
    statistics, size = {}, model.config.image_size
    if processor is not None:
        statistics = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
        asked = dict(processor.crop_size if processor.do_center_crop else processor.size)
        size = asked.get("height") or asked.get("shortest_edge") or size
    size = size if isinstance(size, int) else size[0]
    image_size = settings.image_size or size
    is_rendered = settings.data.split(":")[0] == "scenes"
    resize_size = settings.resize_size or (image_size if is_rendered else round(image_size * 256 / 224))
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return model, provenance, Preprocessing(image_size, resize_size, **statistics)


def provenance_of(name: str, model) -> dict:
    """Return where a model came from: digests of its files, or its revision on the hub."""
    path = Path(name)
    if path.is_file():
        return {"path": name, "sha256": file_digest(path)}
    provenance = {"path": name, "revision": getattr(model.config, "_commit_hash", None)}
    if path.is_dir():
        provenance["sha256"] = {file.name: file_digest(file) for file in sorted(path.glob("model*.safetensors"))}
    return provenance


def measure(task: str, model, train, test, preprocessing, settings: EvaluateArguments) -> dict:
    """Run one task and add to its result what data it was measured on."""
    from dinov3_hf.data.streams import find_image_column
    from dinov3_hf.evaluation.knn import evaluate_knn
    from dinov3_hf.evaluation.patch_knn import evaluate_patch_knn

    target = settings.label_column if task == "knn" else settings.mask_column
    shared = {
        "image_column": find_image_column(train, settings.image_column),
        "ks": settings.k,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "controls": settings.controls,
    }
    if task == "knn":
        result = evaluate_knn(model, train, test, preprocessing, label_column=target, **shared)
    else:
        dense = {"max_bank_patches": settings.max_bank_patches, "ignore_index": settings.ignore_index}
        result = evaluate_patch_knn(model, train, test, preprocessing, mask_column=target, **dense, **shared)
    result["data"] = {"source": source_of(task, settings.data)}
    for name, split, rows in (("train", settings.train_split, train), ("test", settings.test_split, test)):
        result["data"][name] = describe_rows(split, rows)
    return result


def describe_rows(split: str, rows) -> dict:
    """Return what says which rows were measured."""
    version = str(rows.version) if rows.version else None
    return {"split": split, "images": len(rows), "fingerprint": rows._fingerprint, "version": version}


def versions() -> dict[str, str]:
    """Return the versions that decide the numbers."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("torch", "torchvision", "transformers", "datasets")}
    return {"python": platform.python_version(), "dinov3_hf": version("dinov3-hf"), **found}


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def format_table(results: list[dict]) -> str:
    """Lay out the measures of several tasks as aligned lines, one a measure."""
    columns = [
        name for name in COLUMNS if any(name in measure for result in results for measure in result["measures"])
    ]
    lines = [["", *(name.replace("_", " ") for name in columns)]]
    for result in results:
        for measure in result["measures"]:
            title = f"{result['task']} {measure['measure']}" + (f", k={measure['k']}" if "k" in measure else "")
            lines.append([title, *(f"{measure[name]:.4f}" if name in measure else "" for name in columns)])
    return align(lines)


def format_classes(result: dict) -> str:
    """Lay out the IoU of each class as aligned lines."""
    lines = [["IoU", "pixels", "model", "chance"]]
    for row in result["per_class"]:
        lines.append([row["class"], str(row["pixels"]), f"{row['model']:.4f}", f"{row['chance']:.4f}"])
    return align(lines)


def align(lines: list[list[str]]) -> str:
    """Pad cells to columns, the first to the left and others to the right."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    aligned = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(aligned)
