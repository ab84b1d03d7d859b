"""Classes of whole images: the label column's vocabulary, labelled features, accuracy by class."""

from dataclasses import dataclass

import torch

from .bench import Bench


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
            shares = {encoder: found[rows].double().mean().item() for encoder, found in hits.items()}
            lines.append({"class": name, "images": int(rows.sum()), **shares})
    return lines
