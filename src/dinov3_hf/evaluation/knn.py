"""k-nearest-neighbour classification on class tokens (DINOv3, section 6.1; the protocol of DINO, section 4)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from ..data.columns import check_column, read_vocabulary
from ..data.views import check_image_size
from ..errors import Refused
from ..pipelines.neighbours import TEMPERATURE, NeighbourBank
from ..visualization.confusion import confusion_picture
from .bench import Bench
from .features import RAW_PIXELS_SIDE
from .iou import confusion_matrix
from .labels import LabelledFeatures, accuracy_by_class, check_two_classes, hits_interval, most_frequent_hits
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset


def evaluate_knn(
    bench: Bench,
    train: "Dataset",
    test: "Dataset",
    image_column: str = "image",
    label_column: str = "label",
    ks: Sequence[int] = (10, 20),
) -> Result:
    """Measure k-NN top-1 accuracy; baselines are the randomly initialised network and raw pixels.

    The metrics of the returned result hold the accuracies (0..1) for each k; "chance" always answers the most frequent
    class of `test`, the best constant answer. "per_class" holds the accuracies of the smallest k; "hits" says for
    every measured test row whether its class was predicted.
    """
    check_image_size(bench.preprocessing.image_size, bench.patch_size)
    check_column(train, image_column, "image_column")
    check_column(test, image_column, "image_column")
    names, *index_of = read_vocabulary(train, test, label_column)
    check_two_classes(test, label_column)
    ks = sorted(set(ks))
    if not 1 <= ks[0] <= ks[-1] <= len(train):
        raise Refused(f"k: got {ks}, accepted: 1 to the number of train images ({len(train)})")
    bank = LabelledFeatures.read(bench, train, "cls", image_column, label_column, index_of[0], "knn: train images")
    queries = LabelledFeatures.read(bench, test, "cls", image_column, label_column, index_of[1], "knn: test images")
    labels, predictions = queries.labels, {}
    for name, features in bank.features.items():
        neighbours = NeighbourBank(features.to(bench.device), bank.labels, len(names))
        by_k = neighbours.classify(queries.features[name].to(bench.device), ks)
        predictions[name] = {k: predicted.cpu() for k, predicted in by_k.items()}
    accuracy = {name: {k: _share(p == labels) for k, p in by_k.items()} for name, by_k in predictions.items()}
    chance = _share(most_frequent_hits(labels))
    intervals = {k: hits_interval(predicted == labels) for k, predicted in predictions["model"].items()}
    hits = {name: by_k[ks[0]] == labels for name, by_k in predictions.items()}
    return Result(
        task="knn",
        protocol={
            "features": "final-normed class token, L2-normalised, cosine",
            "weights": f"exp(similarity / {TEMPERATURE})",
            "ks": ks,
            "num_train": len(bank.labels),
            "num_test": len(labels),
            "num_classes": len(names),
            "classes_not_in_train": queries.classes_beyond(bank.labels, names),
            "preprocessing": asdict(bench.preprocessing),
            "baseline_seed": bench.seed,
            "raw_pixels": f"the network's input averaged down to at most {RAW_PIXELS_SIDE} pixels a side, flattened",
            "chance": "always the class most frequent in test: the best constant answer, never below a random one",
        },
        skipped_images={"train": len(train) - len(bank.labels), "test": len(test) - len(labels)},
        metrics=[
            {"metric": "top-1", "k": k, **{name: accuracy[name][k] for name in predictions}}
            | {"chance": chance, "interval": intervals[k]}
            for k in ks
        ],
        hits={"rows": queries.rows, **hits},
        pictures={
            "confusion": confusion_picture(confusion_matrix(predictions["model"][ks[0]], labels, len(names)), names)
        },
        details={
            "per_class": accuracy_by_class(hits, labels, names),
        },
    )


def _share(hits: torch.Tensor) -> float:
    return hits.double().mean().item()
