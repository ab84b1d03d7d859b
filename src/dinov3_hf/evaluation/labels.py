"""Classes of whole images: the label column's vocabulary, labelled features, accuracy by class."""

from dataclasses import dataclass

import torch

from .bench import Bench
from .features import check_column


def read_vocabulary(train, test, column: str) -> tuple[list[str], dict, dict]:
    """Return the class names of a label column and, for each data set, the mapping from its values to class indices.

    ClassLabel columns are matched by name (two folders may number their classes differently); of any other column the
    sorted values of both data sets are taken. Raises ValueError for a column that is missing, holds no single values,
    or marks rows as unlabelled.
    """
    from datasets import ClassLabel, Value

    names, readings = [], []
    for rows in (train, test):
        check_column(rows, column, "label_column")
        feature = rows.features[column]
        values = rows.unique(column) if isinstance(feature, ClassLabel | Value) else []
        if not values or not all(isinstance(value, int | str) for value in values):
            accepted = "a column with one class a row (ClassLabel, int or text)"
            raise ValueError(f"label_column: got {column!r}, accepted: {accepted}")
        if isinstance(feature, ClassLabel) and min(values) < 0:
            raise ValueError(f"label_column: {column!r} holds unlabelled rows (-1), accepted: splits that have labels")
        named = dict(enumerate(feature.names)) if isinstance(feature, ClassLabel) else {v: v for v in values}
        readings.append(named)
        names += named.values()
    declared = isinstance(train.features[column], ClassLabel)
    # Declared classes keep their order; others are sorted, numbers before texts.
    names = list(dict.fromkeys(names if declared else sorted(names, key=lambda name: (isinstance(name, str), name))))
    indices = {name: index for index, name in enumerate(names)}
    return [str(name) for name in names], *({v: indices[name] for v, name in reading.items()} for reading in readings)


@dataclass
class LabelledFeatures:
    """Features [N,D] of every contestant, their class indices [N] and their rows in the data set."""

    features: dict[str, torch.Tensor]
    labels: torch.Tensor
    rows: list[int]

    @classmethod
    def read(
        cls, bench: Bench, rows, kind: str, image_column: str, label_column: str, index_of: dict, description: str
    ) -> "LabelledFeatures":
        """Extract features of `kind` (see `Bench.extractors`); rows whose image cannot be decoded are left out."""
        found = bench.extract(rows, image_column, kind, description)
        kept = found["model"].kept
        labels = torch.tensor([index_of[value] for value in rows[label_column]])[kept]
        return cls({name: features.stack() for name, features in found.items()}, labels, kept)

    def classes_beyond(self, train_labels: torch.Tensor, names: list[str]) -> list[str]:
        """Return the names of classes that occur here and not in `train_labels`: their images count as missed."""
        return [names[index] for index in sorted(set(self.labels.tolist()) - set(train_labels.tolist()))]


def accuracy_by_class(hits: dict[str, torch.Tensor], labels: torch.Tensor, names: list[str]) -> list[dict]:
    """Return for every class that `labels` [N] has its images and each contestant's share of `hits` [N] (bool)."""
    lines = []
    for index, name in enumerate(names):
        rows = labels == index
        if rows.any():
            shares = {contestant: found[rows].double().mean().item() for contestant, found in hits.items()}
            lines.append({"class": name, "images": int(rows.sum()), **shares})
    return lines
