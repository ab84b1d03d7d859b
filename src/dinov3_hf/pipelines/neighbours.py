"""Nearest neighbours by cosine similarity, and k-NN classification."""

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import Refused


TEMPERATURE = 0.07
QUERY_CHUNK, BANK_CHUNK = 1024, 16384


class CosineBank:
    """Features [N,D] to compare others with, precisely even if all cosine similarities are close to one.

    (The features of a randomly initialised network with small layer scale are like that.) Both sides are normalised
    and shifted by the mean of the bank. This does not change distances, and |a-b|^2 = 2 - 2 cos(a,b) for normalised a
    and b.
    """

    def __init__(self, features: torch.Tensor):
        features = nn.functional.normalize(features.float(), dim=1)
        self.centre = features.mean(0, dtype=torch.float64).float()
        self.features = features.sub_(self.centre)
        self.half_norms = self.features.square().sum(1) / 2

    def shift(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise features [N,D] and subtract the mean of the bank."""
        return nn.functional.normalize(features.float(), dim=1) - self.centre

    def scores(self, queries: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
        """Compare shifted queries [Q,D] with a part of the bank; returns cosines [Q,N] plus a constant per query."""
        return torch.addmm(-self.half_norms[part], queries, self.features[part].T)

    def similarities(self, queries: torch.Tensor) -> torch.Tensor:
        """Compare queries [Q,D] with the whole bank; returns cosine - 1 [Q,N], which keeps the precision."""
        queries = self.shift(queries)
        return self.scores(queries) - queries.square().sum(1, keepdim=True) / 2


class NeighbourBank(CosineBank):
    """Features [N,D] with labels [N], for k-NN classification by cosine similarity.

    Needs memory for a copy of the features and one chunk of similarities; the chunk sizes do not change the result.
    """

    def __init__(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int,
        query_chunk: int = QUERY_CHUNK,
        bank_chunk: int = BANK_CHUNK,
    ):
        super().__init__(features)
        self.labels = labels.to(features.device)
        self.num_classes, self.query_chunk, self.bank_chunk = num_classes, query_chunk, bank_chunk

    def search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return similarities and labels [Q,k] of the `k` nearest neighbours of each query [Q,D], nearest first.

        Raises `Refused` if the bank has fewer than `k` rows.
        """
        if not 1 <= k <= len(self.features):
            raise Refused(f"k: got {k}, accepted: 1 to the size of the bank ({len(self.features)})")
        chunks = [self._search_chunk(rows, k) for rows in queries.split(self.query_chunk)]
        similarities, indices = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return similarities, self.labels[indices]

    def _search_chunk(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        queries = self.shift(queries)
        scores = queries.new_empty(len(queries), 0)
        indices = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
        for start in range(0, len(self.features), self.bank_chunk):
            new = self.scores(queries, slice(start, start + self.bank_chunk))
            new, places = new.topk(min(k, new.shape[1]), dim=1)
            scores, indices = torch.cat([scores, new], dim=1), torch.cat([indices, places + start], dim=1)
            scores, order = scores.topk(min(k, scores.shape[1]), dim=1)
            indices = indices.gather(1, order)
        return 1 + scores - queries.square().sum(1, keepdim=True) / 2, indices

    def classify(
        self, queries: torch.Tensor, ks: Sequence[int], temperature: float = TEMPERATURE
    ) -> dict[int, torch.Tensor]:
        """Classify queries [Q,D] with several values of k in one search; returns the predictions [Q] for each k."""
        similarities, labels = self.search(queries, max(ks))
        return {k: vote(similarities[:, :k], labels[:, :k], self.num_classes, temperature) for k in ks}


def vote(
    similarities: torch.Tensor, labels: torch.Tensor, num_classes: int, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Return for neighbours [Q,k] the class with the largest sum of exp(similarity / temperature): [Q]."""
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

    Raises `Refused` if the bank has fewer than `k` rows.
    """
    return NeighbourBank(bank, bank_labels, num_classes).classify(queries, [k], temperature)[k]
