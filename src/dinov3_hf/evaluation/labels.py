"""Class labels of images: features with labels, and accuracy by class."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import Refused
from .bench import Bench
from .intervals import wilson_interval


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class LabelledFeatures:
    """Features [N,D] of every encoder, the class indices [N] of the images and their row numbers in the data set."""

    features: dict[str, torch.Tensor]
    labels: torch.Tensor
    rows: list[int]

    @classmethod
    def read(
        cls,
        bench: Bench,
        rows: "Dataset",
        kind: str,
        image_column: str,
        label_column: str,
        index_of: dict[str | int, int],
        description: str,
    ) -> "LabelledFeatures":
        """Extract features of `kind` (see `Bench.extractors`); rows whose image cannot be decoded are skipped."""
        extracted = bench.extract(rows, image_column, kind, description)
        kept = extracted["model"].kept
        labels = torch.tensor([index_of[value] for value in rows[label_column]])[kept]
        return cls({name: features.stack() for name, features in extracted.items()}, labels, kept)

    def classes_beyond(self, train_labels: torch.Tensor, names: list[str]) -> list[str]:
        """Return the names of classes that occur here but not in `train_labels`: their images count as errors."""
        return [names[index] for index in sorted(set(self.labels.tolist()) - set(train_labels.tolist()))]


def accuracy_by_class(hits: dict[str, torch.Tensor], labels: torch.Tensor, names: list[str]) -> list[dict]:
    """Return for every class in `labels` [N] its number of images and each encoder's share of `hits` [N]."""
    lines = []
    for index, name in enumerate(names):
        rows = labels == index
        if rows.any():
            shares = {encoder: of_encoder[rows].double().mean().item() for encoder, of_encoder in hits.items()}
            lines.append({"class": name, "images": int(rows.sum()), **shares})
    return lines


def most_frequent_hits(labels: torch.Tensor) -> torch.Tensor:
    """Return which of the labels [N] are the most frequent one: the hits (bool [N]) of the best constant answer.

    Never fewer than a class drawn at random hits, in expectation.
    """
    return labels == labels.bincount().argmax()


def hits_interval(hits: torch.Tensor) -> list[float]:
    """Return the 95 % interval (Wilson, 1927) of the share of `hits` [N] (bool)."""
    return list(wilson_interval(int(hits.sum()), len(hits)))


def check_two_classes(rows: "Dataset", label_column: str, split: str = "test") -> None:
    """Raise `Refused` if all rows have one label: a constant answer would be right on all of them."""
    present = rows.unique(label_column)
    if len(present) < 2:
        feature = rows.features[label_column]
        names = [
            feature.int2str(value) if hasattr(feature, "int2str") and value is not None else value for value in present
        ]
        raise Refused(
            f"label_column: all {len(rows)} rows of {split} have {label_column!r} {', '.join(map(str, names))}, and a "
            "constant answer scores 1, accepted: at least two classes"
        )
