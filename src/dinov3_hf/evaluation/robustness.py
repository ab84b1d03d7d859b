"""Image classifiers measured on a main test set and on out-of-distribution test sets (DINOv3, section 6.2.1)."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from ..data.columns import check_column, named_values, read_vocabulary
from ..data.views import check_image_size
from ..errors import Refused
from ..visualization.confusion import confusion_picture
from .bench import Bench
from .features import RAW_PIXELS_SIDE
from .iou import confusion_matrix
from .labels import LabelledFeatures, accuracy_by_class, check_two_classes, hits_interval, most_frequent_hits
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

# One of every ten train images is held out to choose hyperparameters.
VALIDATION_STRIDE = 10
CORRUPTION_COLUMN = "corruption"
# AlexNet's top-1 errors on ImageNet-C, each over its five severities (Hendrycks and Dietterich, 2019, table 1).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886,
    "shot_noise": 0.894,
    "impulse_noise": 0.923,
    "defocus_blur": 0.820,
    "glass_blur": 0.826,
    "motion_blur": 0.786,
    "zoom_blur": 0.798,
    "snow": 0.867,
    "frost": 0.827,
    "fog": 0.819,
    "brightness": 0.565,
    "contrast": 0.853,
    "elastic_transform": 0.646,
    "pixelate": 0.718,
    "jpeg_compression": 0.607,
}

# From an encoder's name and its features [N,D] to the predicted classes [N].
Predict = Callable[[str, torch.Tensor], torch.Tensor]
# For every encoder, and for "chance", which images of a set were classified correctly: bool [N].
Hits = dict[str, torch.Tensor]


def validation_split(labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split rows of classes [N] by seed into a part to fit on and a held-out tenth of every class; both are sorted.

    For classes of fewer than ten images, a tenth of these classes together is held out; no class loses its only image.
    Raises `Refused` if there are fewer than two classes or nothing can be held out.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    classes = labels[order]
    is_first = torch.cat([torch.ones(min(1, len(order)), dtype=torch.bool), classes[1:] != classes[:-1]])
    is_held = torch.zeros_like(is_first)
    is_held[VALIDATION_STRIDE // 2 :: VALIDATION_STRIDE] = True
    is_held &= ~is_first
    if is_first.sum() < 2 or not is_held.any():
        raise Refused(
            f"train: got {len(labels)} images of {int(is_first.sum())} classes, accepted: two classes or more, and "
            "enough images that a tenth can be held out"
        )
    return order[~is_held].sort().values, order[is_held].sort().values


def read_corruptions(rows: "Dataset", title: str) -> list[str] | None:
    """Return the corruption of every row in ImageNet-C's spelling, or None for data without such a column."""
    if CORRUPTION_COLUMN not in rows.column_names:
        return None
    values = named_values(rows, CORRUPTION_COLUMN, f"{title}: {CORRUPTION_COLUMN}", "a name in every row")
    names = [value for value in values if isinstance(value, str)]
    if len(names) < len(values):
        wrong = next(value for value in values if not isinstance(value, str))
        raise Refused(f"{title}: {CORRUPTION_COLUMN}: got {wrong!r}, accepted: a name in every row")
    return [re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name in names]


@dataclass
class OtherSet:
    """An out-of-distribution test set: its rows, the class index of each label, and the rows' corruptions if known."""

    rows: "Dataset"
    index_of: dict[str | int, int]
    corruptions: list[str] | None


@dataclass
class ClassificationData:
    """Labelled features of the train images and the main test set, and the out-of-distribution sets by title.

    `fit` and `held` are indices of train images: those to fit on and those held out to choose hyperparameters. The
    first `num_classes` names are the classes of train and the main test set. `read` extracts the features of a set.
    """

    task: str
    names: list[str]
    num_classes: int
    train: LabelledFeatures
    fit: torch.Tensor
    held: torch.Tensor
    test: LabelledFeatures
    others: dict[str, OtherSet]
    read: Callable[["Dataset", dict[str | int, int], str], LabelledFeatures]
    skipped_images: dict[str, int]

    @classmethod
    def open(
        cls,
        bench: Bench,
        task: str,
        train: "Dataset",
        test: "Dataset",
        others: dict[str, "Dataset"],
        kind: str,
        image_column: str,
        label_column: str,
    ) -> "ClassificationData":
        """Check every data set, then extract the features of train and test; classes are matched by name.

        Raises `Refused` in the cases of `read_vocabulary`, `validation_split` and `read_corruptions`, and for a set
        that shares no class with train.
        """
        check_image_size(bench.preprocessing.image_size, bench.patch_size)
        for title in ("train", "test"):
            if title in others:
                raise Refused(f"out_of_distribution: got a set named {title!r}, accepted: other names")
        for where, rows in [("", train), ("", test), *((f"{title}: ", rows) for title, rows in others.items())]:
            check_column(rows, image_column, f"{where}image_column")
            check_column(rows, label_column, f"{where}label_column")
        names, *index_of = read_vocabulary(train, test, label_column)
        check_two_classes(test, label_column)
        num_classes = len(names)
        names, index_of_others = join_vocabularies(names, train, others, label_column)
        train_labels = torch.tensor([index_of[0][value] for value in train[label_column]])
        validation_split(train_labels, bench.seed)
        known = set(train_labels.tolist())
        for title, rows in others.items():
            present = {index_of_others[title][value] for value in rows.unique(label_column)}
            if not present & known:
                some = ", ".join(names[index] for index in sorted(present)[:3])
                raise Refused(f"{title}: label_column: got classes {some}, ..., accepted: some that train has")
        sets = {t: OtherSet(rows, index_of_others[t], read_corruptions(rows, t)) for t, rows in others.items()}

        def read(rows: "Dataset", index_of: dict[str | int, int], title: str) -> LabelledFeatures:
            description = f"{task}: {title} images"
            return LabelledFeatures.read(bench, rows, kind, image_column, label_column, index_of, description)

        learnt, tested = read(train, index_of[0], "train"), read(test, index_of[1], "test")
        fit, held = validation_split(learnt.labels, bench.seed)
        skipped = {"train": len(train) - len(learnt.labels), "test": len(test) - len(tested.labels)}
        return cls(task, names, num_classes, learnt, fit, held, tested, sets, read, skipped)

    def result(self, bench: Bench, predict: Predict, protocol: dict, pictures: dict) -> Result:
        """Measure `predict` on all test sets and return the result.

        `protocol` describes how the classifiers were trained; `pictures` are added to the confusion matrix.
        """
        encoders, names = list(self.train.features), self.names[: self.num_classes]
        truth = self.test.labels
        predictions = {name: predict(name, self.test.features[name]) for name in encoders}
        hits = {name: predicted == truth for name, predicted in predictions.items()}
        all_hits = {**hits, "chance": most_frequent_hits(truth)}
        metrics, about, skipped = (
            [{"metric": "top-1", **accuracies(all_hits), **interval(all_hits)}],
            {},
            dict(self.skipped_images),
        )
        for title, other in self.others.items():
            # One set at a time, because all versions of ImageNet-C together would exceed the memory.
            read = self.read(other.rows, other.index_of, title)
            other_hits = {name: predict(name, read.features[name]) == read.labels for name in encoders}
            other_hits["chance"] = most_frequent_hits(read.labels)
            metrics += robustness_metrics(title, read.labels, other_hits, truth, all_hits)
            skipped[f"{title} (out of distribution)"] = len(other.rows) - len(read.labels)
            about[title] = {
                "num_test": len(read.labels),
                "classes_shared_with_test": len(set(read.labels.tolist()) & set(truth.tolist())),
                "classes_not_in_train": read.classes_beyond(self.train.labels, self.names),
                "images_of_classes_not_in_train": int((~torch.isin(read.labels, self.train.labels)).sum()),
            }
            if other.corruptions:
                of_row = [other.corruptions[row] for row in read.rows]
                lines, about[title]["mean_corruption_error"] = corruption_metrics(title, of_row, other_hits)
                metrics += lines
        protocol = protocol | {
            "num_train": len(self.train.labels),
            "num_held_out": len(self.held),
            "num_test": len(truth),
            "num_classes": self.num_classes,
            "classes_not_in_train": self.test.classes_beyond(self.train.labels, self.names),
            "preprocessing": asdict(bench.preprocessing),
            "seed": bench.seed,
            "raw_pixels": f"the network's input averaged down to at most {RAW_PIXELS_SIDE} pixels a side, flattened",
            "chance": "always the class most frequent in the test set: the best constant answer",
        }
        if about:
            protocol["difference"] = "top-1 out of distribution minus top-1 on test, on the classes of both"
            protocol["out_of_distribution"] = about
        return Result(
            task=self.task,
            protocol=protocol,
            skipped_images=skipped,
            metrics=metrics,
            hits={"rows": self.test.rows, **hits},
            pictures={
                "confusion": confusion_picture(confusion_matrix(predictions["model"], truth, len(names)), names),
                **pictures,
            },
            details={
                "per_class": accuracy_by_class(hits, truth, names),
            },
        )


def join_vocabularies(
    names: list[str], train: "Dataset", others: dict[str, "Dataset"], column: str
) -> tuple[list[str], dict[str, dict[str | int, int]]]:
    """Return `names` followed by classes that occur only in `others`, and for each set its values' class indices."""
    names, index_of = list(names), {}
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    for title, rows in others.items():
        classes, _, values = read_vocabulary(train, rows, column)
        for index in values.values():
            if classes[index] not in places:
                places[classes[index]] = len(names)
                names.append(classes[index])
        index_of[title] = {value: places[classes[index]] for value, index in values.items()}
    return names, index_of


def accuracies(hits: Hits, rows: torch.Tensor | None = None) -> dict[str, float]:
    """Return each encoder's accuracy, over the rows of a mask [N] if given."""
    return {name: (hit if rows is None else hit[rows]).double().mean().item() for name, hit in hits.items()}


def interval(hits: Hits, rows: torch.Tensor | None = None) -> dict[str, list[float]]:
    """Return the entry of the model's 95 % interval, over the rows of a mask [N] if given; none without a model."""
    if "model" not in hits:
        return {}
    return {"interval": hits_interval(hits["model"] if rows is None else hits["model"][rows])}


def robustness_metrics(
    title: str, labels: torch.Tensor, hits: Hits, test_labels: torch.Tensor, test_hits: Hits
) -> list[dict]:
    """Return the accuracies on an out-of-distribution set, and their difference to test on the classes of both."""
    here, there = torch.isin(labels, test_labels), torch.isin(test_labels, labels)
    metrics = [{"metric": f"top-1 ({title})", **accuracies(hits), **interval(hits)}]
    if not here.any():
        return metrics
    shared, main = accuracies(hits, here), accuracies(test_hits, there)
    if not here.all():
        metrics.append({"metric": f"top-1 ({title}, classes of test)", **shared, **interval(hits, here)})
    if not there.all():
        metrics.append({"metric": f"top-1 (test, classes of {title})", **main, **interval(test_hits, there)})
    difference = {name: shared[name] - main[name] for name in shared}
    return [*metrics, {"metric": f"top-1 difference ({title} - test)", **difference}]


def corruption_metrics(title: str, corruptions: list[str], hits: Hits) -> tuple[list[dict], str]:
    """Return the error under each corruption and the mean error, and a description of that mean.

    The mean is the mCE of Hendrycks and Dietterich (2019) if they published AlexNet's error for every corruption.
    """
    order = list(ALEXNET_ERRORS)
    present = sorted(set(corruptions), key=lambda name: (order.index(name) if name in order else len(order), name))
    errors = {}
    for corruption in present:
        rows = torch.tensor([name == corruption for name in corruptions])
        errors[corruption] = {name: 1 - share for name, share in accuracies(hits, rows).items()}
    is_normalised = set(present) <= set(order)
    divisors = ALEXNET_ERRORS if is_normalised else dict.fromkeys(present, 1.0)
    mean = {
        name: sum(errors[corruption][name] / divisors[corruption] for corruption in present) / len(present)
        for name in hits
    }
    name = f"mCE ({title})" if is_normalised else f"mean corruption error, unnormalised ({title})"
    metrics = [
        {"metric": f"error ({title})", "corruption": corruption, "lower_is_better": True, **errors[corruption]}
        for corruption in present
    ]
    kind = (
        "errors divided by AlexNet's published ones" if is_normalised else "plain errors, as AlexNet's are not known"
    )
    meaning = f"{kind}, averaged over {len(present)} corruptions; severities weigh by their images"
    return [*metrics, {"metric": name, "lower_is_better": True, **mean}], meaning
