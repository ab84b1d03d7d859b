"""The flags of `dinov3 evaluate`, which are also the keys of its `--config`."""

import difflib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from .text_tasks import TEXT_TASKS, check_settings


# What each task measures, for the help.
TASKS = {
    "knn": "k-NN classification on class tokens",
    "patch-knn": "k-NN segmentation on patch tokens",
    "linear": "logistic regression, its strength of regularisation chosen on a part of train",
    "linear-sgd": "linear probe trained by SGD at many learning rates at once",
    "segmentation": "linear segmentation, mIoU",
    "depth": "linear depth in 256 bins, RMSE, ARel, delta1",
    "correspondence": "keypoints found again in another image, PCK",
    "tracking": "masks propagated through a video, J&F",
    "discovery": "the main object found without labels (TokenCut), CorLoc",
    "retrieval": "images of the same instance, mAP, GAP, recall@k",
    "video": "classes of clips by an attentive probe",
    "outliers": "patches of high norm and dimensions of extreme magnitude, layer by layer",
    "layers": "the tasks of --of, layer by layer",
    "resolution": "the tasks of --of from --sizes small to large",
    "fairness": "the accuracy of the tasks of --of, split by --group-column",
    "zero-shot": "classification by the classes' names",
    "image-text-retrieval": "images by captions and captions by images, recall@k",
    "zero-shot-segmentation": "segmentation by the classes' names, mIoU",
}
# Tasks that repeat others, and those that each of them can repeat.
GLOBAL_TASKS = ("knn", "linear", "linear-sgd")
DENSE_TASKS = ("patch-knn", "segmentation", "depth")
REPEATED = {
    "layers": (*GLOBAL_TASKS, *DENSE_TASKS, "correspondence", "tracking", "discovery", "retrieval"),
    "resolution": (*GLOBAL_TASKS, *DENSE_TASKS, "correspondence", "tracking", "discovery", "retrieval"),
    "fairness": GLOBAL_TASKS,
}
DTYPES = ("float32", "bfloat16", "float16")


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
    task: list[str] = _option("what to measure, one or more (listed below)", ["knn"], many=True)
    of: list[str] = _option(
        "tasks that layers, resolution and fairness repeat [default: knn and patch-knn; fairness: knn]", [], many=True
    )

    data: str = _option("scenes, an image folder, Parquet files, WebDataset tars, or a hub data set id", "scenes")
    train_split: str = _option("split that is learnt from: neighbours, heads, the gallery of retrieval", "train")
    test_split: str = _option(
        "split that is measured; of data without splits a fifth is held out, for tasks with text all", "test"
    )
    num_train: int = _option("train images used, drawn by seed", 2000, int)
    num_test: int = _option("test images used, drawn by seed; of videos whole ones", 500, int)
    ood_data: list[str] = _option(
        "out-of-distribution test sets, sources as of --data, measured beside the main one by linear and linear-sgd",
        [],
        many=True,
    )

    image_column: str | None = _option("column of the images [default: the only image column]")
    label_column: str = _option("column of the classes", "label")
    mask_column: str | None = _option(
        "column of the masks, images of class indices [default: mask; of scenes, instances for discovery and tracking]"
    )
    ignore_index: int | None = _option(
        "mask value that does not count [default: 255; for discovery and tracking none]", None, int
    )
    depth_column: str = _option("column of the depth maps, images where 0 is unknown", "depth")
    depth_unit: float = _option("metres of a stored unit of depth", 0.001, float)
    max_depth: float = _option("metres beyond which depth does not count (KITTI: 80)", 10.0, float)
    keypoints_column: str = _option(
        "column of the keypoints: a list of [x, y] or [x, y, visible] in pixels", "keypoints"
    )
    pairs_split: str | None = _option(
        "split of the pairs of rows to match, columns src, trg and optionally bbox_trg [default: every two rows]"
    )
    box_column: str | None = _option("column of true boxes [x0, y0, x1, y1] for discovery [default: from the masks]")
    positives_column: str | None = _option(
        "column of the gallery rows that are right for a query [default: rows of the same instance-column]"
    )
    instance_column: str = _option("column that says which images show the same, for retrieval", "instance_id")
    sequence_column: str = _option("column of the video that a frame belongs to [scenes: scene]", "sequence")
    frame_column: str = _option("column of a frame's number", "frame")
    group_column: str | None = _option("column of the groups whose accuracies fairness compares")
    caption_columns: list[str] = _option(
        "columns of captions, for image-text-retrieval [default: caption, captions]", [], many=True
    )
    class_names: list[str] = _option(
        "names of the classes, in order, or imagenet, for zero-shot; of the mask's values, in order, where background is "
        "the background, for zero-shot-segmentation and segmentation [default: the label column's; the scenes']",
        [],
        many=True,
    )

    image_size: int | None = _option("side in pixels the network sees [default: the checkpoint's own]", None, int)
    resize_size: int | None = _option(
        "shorter side in pixels before the centre crop [default: 256/224 of image-size; scenes: image-size]", None, int
    )
    whole_images: bool = _option("retrieval on whole images instead of centre crops (Met)", False, bool)
    window: int | None = _option(
        "largest side in pixels that the network sees at once; larger images in windows [default: no limit]", None, int
    )
    dtype: str = _option(f"type the network computes in, one of {', '.join(DTYPES)}", "float32")
    batch_size: int = _option("images per forward pass", 64, int)

    k: list[int] = _option("neighbours that vote, one or more", [10, 20], int, many=True)
    recall_at: list[int] = _option("first answers that count in retrieval", [1, 5, 10], int, many=True)
    max_bank_patches: int = _option("patches kept as neighbours, for patch-knn", 50_000, int)
    steps: int | None = _option(
        "steps of a trained head [default: 2000, of video 300; with --augment the paper's 12500 (linear-sgd), 40000 (segmentation), "
        "38400 (depth)]",
        None,
        int,
    )
    lr: float | None = _option(
        "learning rate of the heads of segmentation and depth [default: the paper's 1e-3 and 3e-4; ten times that for "
        "less than a quarter of its steps]",
        None,
        float,
    )
    augment: bool = _option(
        "train heads on random crops, scales and flips as the paper does, the network run at every step, not on "
        "features computed once",
        False,
        bool,
    )
    batch_norm: bool = _option("batch norm before the linear layer of segmentation and depth", True, bool)
    thresholds: list[float] = _option(
        "distances that count as found, in sides of the target's box or image, for correspondence",
        [0.05, 0.1, 0.15],
        float,
        many=True,
    )
    sizes: list[int] = _option("image sizes of resolution, in pixels", [224, 448, 896], int, many=True)
    layers: list[int] = _option("layers that layers measures, from 1 [default: at most twelve]", [], int, many=True)

    templates: list[str] = _option(
        "prompts with {} for the name, or openai [default: some whose words the text tower knows]", [], many=True
    )
    background_threshold: float | None = _option(
        "how far the best cosine must stand above the mean, else background [default: a name as others]", None, float
    )
    scales: list[float] = _option(
        "sizes of the images over which zero-shot-segmentation averages", [1.0], float, many=True
    )
    whole_windows: bool = _option("zero-shot-segmentation: count what a window shows as a whole too", False, bool)

    seed: int = _option("seed of the untrained weights and of every draw", 0, int)
    controls: bool = _option("also measure the untrained network and raw pixels", True, bool)
    output_dir: str = _option("folder for results.json, results.md and the pictures", "outputs/evaluate")
    overwrite: bool = _option("replace the results.json that output-dir holds", False, bool)
    cache_dir: str | None = _option(
        "folder of the features, from which a stopped or repeated run goes on [default: features in output-dir]"
    )
    update_card: bool = _option("add the figures to the model card of a local model directory", True, bool)

    def __post_init__(self):
        check_names("task", self.task, tuple(TASKS))
        if not self.task:
            raise ValueError(f"task: got none, accepted: {', '.join(TASKS)}")
        if not self.model:
            raise ValueError("model: missing, accepted: a model directory, a hub id or a .pth or .safetensors file")
        for name in ("num_train", "num_test", "batch_size", "max_bank_patches"):
            self._check_positive(name, [getattr(self, name)])
        for name in ("image_size", "resize_size", "window", "steps"):
            if getattr(self, name) is not None:
                self._check_positive(name, [getattr(self, name)])
        for name in ("k", "recall_at", "sizes"):
            self._check_positive(name, getattr(self, name) or [0])
        if self.layers:
            self._check_positive("layers", self.layers)
        for name in ("depth_unit", "max_depth", "lr"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, accepted: a number above 0")
        if not self.thresholds or not all(0 < value <= 1 for value in self.thresholds):
            raise ValueError(f"thresholds: got {self.thresholds}, accepted: shares above 0, up to 1")
        check_names("dtype", [self.dtype], DTYPES)
        for task in self.task:
            check_names("of", self.of, REPEATED.get(task, tuple(TASKS)))
        if "fairness" in self.task and self.group_column is None:
            raise ValueError("group_column: missing, accepted for fairness: a column of groups")
        if self.has_text:
            check_settings(self)
        elif self.train_split == self.test_split and self.task != ["retrieval"]:
            raise ValueError(
                f"test_split: got {self.test_split!r} as for train_split, where every image finds itself; accepted: another split"
            )

    def _check_positive(self, name: str, values: list[int]) -> None:
        if min(values) < 1:
            got = getattr(self, name)
            raise ValueError(f"{name}: got {got}, accepted: {'' if isinstance(got, list) else 'a '}whole number"
                             f"{'s' if isinstance(got, list) else ''} of at least 1")  # fmt: skip

    @property
    def has_text(self) -> bool:
        return any(task in TEXT_TASKS for task in self.task)

    def repeated(self, task: str) -> tuple[str, ...]:
        """Return the tasks that `layers`, `resolution` or `fairness` repeat."""
        return tuple(self.of) or (("knn",) if task == "fairness" else ("knn", "patch-knn"))


OPTIONS = {item.name: item for item in fields(EvaluateArguments)}


def check_names(name: str, values: list[str], accepted: tuple[str, ...]) -> None:
    """Raise ValueError, with the nearest name, for the first value that is none of those accepted."""
    for value in values:
        if value not in accepted:
            close = difflib.get_close_matches(value, accepted, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name}: got {value!r}, accepted: {', '.join(accepted)}{hint}")


def option_help(name: str) -> str:
    """Return the help of a flag, with its default unless the text names it."""
    item = OPTIONS[name]
    default = item.default if item.default is not MISSING else " ".join(map(str, item.default_factory()))
    shows = default not in (None, "") and item.metadata["type"] is not bool
    return item.metadata["help"] + (f" [default {default}]" if shows else "")


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
