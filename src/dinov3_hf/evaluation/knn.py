"""k-nearest-neighbour classification on class tokens (DINOv3, section 6.1; the protocol of DINO, section 4)."""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import nn

from .features import (
    RAW_PIXELS_SIDE,
    Preprocessing,
    check_column,
    check_image_size,
    cls_features,
    raw_image_features,
    read_batches,
    untrained_twin,
)


TEMPERATURE = 0.07
QUERY_CHUNK, BANK_CHUNK = 1024, 16384


class NeighbourBank:
    """Labelled features to look neighbours up in by cosine similarity: features [N,D], labels [N].

    Memory beyond one copy of the features is one chunk of similarities; the chunks do not change the result.
    """

    def __init__(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int,
        query_chunk: int = QUERY_CHUNK,
        bank_chunk: int = BANK_CHUNK,
    ):
        # Shifting both sides by the bank's mean leaves every distance as it is, |a-b|^2 = 2 - 2 cos(a,b), and keeps
        # the digits where all similarities are close to one, as with an untrained network of small layer scale.
        features = nn.functional.normalize(features.float(), dim=1)
        self.centre = features.mean(0, dtype=torch.float64).float()
        self.features = features.sub_(self.centre)
        self.half_norms = self.features.square().sum(1) / 2
        self.labels = labels.to(features.device)
        self.num_classes, self.query_chunk, self.bank_chunk = num_classes, query_chunk, bank_chunk

    def search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return similarities and labels [Q,k] of the `k` nearest of each query [Q,D], nearest first.

        Raises ValueError if the bank has fewer than `k` rows.
        """
        if not 1 <= k <= len(self.features):
            raise ValueError(f"k: got {k}, accepted: 1 to the size of the bank ({len(self.features)})")
        found = [self._search_chunk(rows, k) for rows in queries.split(self.query_chunk)]
        similarities, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
        return similarities, self.labels[indices]

    def _search_chunk(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        queries = nn.functional.normalize(queries.float(), dim=1) - self.centre
        scores = queries.new_empty(len(queries), 0)
        indices = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
        for start in range(0, len(self.features), self.bank_chunk):
            part = slice(start, start + self.bank_chunk)
            found = torch.addmm(-self.half_norms[part], queries, self.features[part].T)
            found, places = found.topk(min(k, found.shape[1]), dim=1)
            scores, indices = torch.cat([scores, found], dim=1), torch.cat([indices, places + start], dim=1)
            scores, order = scores.topk(min(k, scores.shape[1]), dim=1)
            indices = indices.gather(1, order)
        return 1 + scores - queries.square().sum(1, keepdim=True) / 2, indices

    def classify(
        self, queries: torch.Tensor, ks: Sequence[int], temperature: float = TEMPERATURE
    ) -> dict[int, torch.Tensor]:
        """Predict the class of queries [Q,D] for several k in one search; returns the predictions [Q] of each k."""
        similarities, labels = self.search(queries, max(ks))
        return {k: vote(similarities[:, :k], labels[:, :k], self.num_classes, temperature) for k in ks}


def vote(
    similarities: torch.Tensor, labels: torch.Tensor, num_classes: int, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Predict the class with the largest sum of exp(similarity / temperature) among neighbours [Q,k]; returns [Q]."""
    weights = ((similarities - similarities.amax(1, keepdim=True)) / temperature).exp()
    return weights.new_zeros(len(labels), num_classes).scatter_add_(1, labels, weights).argmax(1)


def knn_classify(
    bank: torch.Tensor,
    bank_labels: torch.Tensor,
    queries: torch.Tensor,
    k: int,
    num_classes: int,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Classify `queries` [Q,D] by their `k` nearest neighbours in `bank` [N,D] with labels [N]; returns [Q].

    Raises ValueError if the bank has fewer than `k` rows.
    """
    return NeighbourBank(bank, bank_labels, num_classes).classify(queries, [k], temperature)[k]


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


def evaluate_knn(
    model: nn.Module,
    train,
    test,
    preprocessing: Preprocessing,
    image_column: str = "image",
    label_column: str = "label",
    ks: Sequence[int] = (10, 20),
    batch_size: int = 64,
    seed: int = 0,
    controls: bool = True,
    progress: bool = True,
) -> dict:
    """Measure k-NN top-1 of `model` on two `datasets.Dataset`s, beside its untrained twin and raw pixels.

    Returns a JSON-ready dictionary: "measures" holds one entry a k with the accuracy (0..1) of each, where chance is
    the class most frequent in `train`; "per_class" holds the accuracies of the smallest k. `seed` gives the untrained
    weights.
    """
    check_image_size(preprocessing.image_size, model.config.patch_size)
    check_column(train, image_column, "image_column")
    check_column(test, image_column, "image_column")
    names, *index_of = read_vocabulary(train, test, label_column)
    ks = sorted(set(ks))
    if not 1 <= ks[0] <= ks[-1] <= len(train):
        raise ValueError(f"k: got {ks}, accepted: 1 to the number of train images ({len(train)})")
    extractors = {"model": cls_features(model)}
    if controls:
        extractors |= {"untrained": cls_features(untrained_twin(model, seed)), "raw_pixels": raw_image_features}

    def read(rows, index_of, description):
        features, labels = {name: [] for name in extractors}, []
        for pixel_values, targets in read_batches(
            rows,
            image_column,
            label_column,
            lambda value: torch.tensor(index_of[value]),
            preprocessing,
            batch_size,
            progress,
            description,
        ):
            for name, extract in extractors.items():
                features[name].append(extract(pixel_values.to(model.device)))
            labels.append(targets)
        if not labels:
            raise ValueError(f"image_column: none of the {len(rows)} images in {image_column!r} could be decoded")
        return {name: torch.cat(parts) for name, parts in features.items()}, torch.cat(labels)

    bank, bank_labels = read(train, index_of[0], "knn: train images")
    queries, labels = read(test, index_of[1], "knn: test images")
    predictions = {}
    for name in extractors:
        by_k = NeighbourBank(bank[name], bank_labels, len(names)).classify(queries[name], ks)
        predictions[name] = {k: predicted.cpu() for k, predicted in by_k.items()}
    accuracy = {name: {k: _share(p == labels) for k, p in by_k.items()} for name, by_k in predictions.items()}
    chance = _share(labels == bank_labels.bincount(minlength=len(names)).argmax())
    per_class = []
    for index, class_name in enumerate(names):
        rows = labels == index
        if rows.any():
            shares = {name: _share(by_k[ks[0]][rows] == index) for name, by_k in predictions.items()}
            per_class.append({"class": class_name, "images": int(rows.sum()), **shares})
    return {
        "task": "knn",
        "protocol": {
            "features": "final-normed class token, L2-normalised, cosine",
            "weights": f"exp(similarity / {TEMPERATURE})",
            "ks": ks,
            "num_train": len(bank_labels),
            "num_test": len(labels),
            "num_classes": len(names),
            "preprocessing": asdict(preprocessing),
            "untrained_seed": seed,
            "raw_pixels": f"the network's input averaged down to at most {RAW_PIXELS_SIDE} pixels a side, flattened",
            "chance": "always the class most frequent in train",
        },
        "skipped_images": {"train": len(train) - len(bank_labels), "test": len(test) - len(labels)},
        "measures": [
            {"measure": "top-1", "k": k, **{name: accuracy[name][k] for name in extractors}, "chance": chance}
            for k in ks
        ],
        "per_class": per_class,
    }


def _share(hits: torch.Tensor) -> float:
    return hits.double().mean().item()
