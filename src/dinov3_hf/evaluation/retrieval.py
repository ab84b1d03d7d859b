"""Instance retrieval by class tokens: mAP, GAP and recall@k (DINOv3, section 6.2.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..data.columns import check_column, named_values, undecoded
from ..data.pixels import decode_image
from ..data.views import check_image_size
from ..errors import Refused
from ..pipelines.neighbours import CosineBank
from ..terminal import progress_bar
from ..visualization.answers import answers_picture
from .bench import Bench
from .feature_store import Features
from .features import RAW_PIXELS_SIDE
from .image_text_retrieval import best_ranks, chance_recall
from .intervals import mean_interval, with_interval
from .labels import hits_interval
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

# Number of similarities in memory at once: half a gigabyte with their ranking.
MAX_SIMILARITIES = 2**23
NUM_DRAWN, NUM_ANSWERS = 6, 5


def precision_sums(scores: torch.Tensor, relevant: torch.Tensor) -> torch.Tensor:
    """Sum, over the relevant items of each row, the precision among all items of at least equal score; fp64 [Q].

    Scores and relevant (bool) are [Q,N]. Divided by the number of relevant items this is the average precision as
    scikit-learn defines it: items of equal score share one rank, so that a constant score is no better than chance.
    """
    scores, order = scores.sort(dim=1, descending=True)
    relevant = relevant.gather(1, order)
    num_items = scores.shape[1]
    places = torch.arange(num_items, device=scores.device)
    ends = torch.full_like(order, num_items - 1)
    ends[:, :-1] = torch.where(scores[:, 1:] != scores[:, :-1], places[:-1], num_items - 1)
    # Each position takes the end of its group of equal scores: the nearest end at or after it.
    ends = ends.flip(1).cummin(1).values.flip(1)
    precisions = relevant.cumsum(1).gather(1, ends).double() / (ends + 1)
    return (precisions * relevant).sum(1)


def expected_average_precision(num_relevant: torch.Tensor, num_items: int) -> torch.Tensor:
    """Expected average precision [Q] of a random order of `num_items`, of which `num_relevant` [Q] are relevant."""
    harmonic = (1 / torch.arange(1, num_items + 1, dtype=torch.float64)).sum()
    # An item ranked before a relevant one is relevant with the same probability as any other item.
    others = (num_relevant - 1).double() / max(num_items - 1, 1)
    return (harmonic + others * (num_items - harmonic)) / num_items


def expected_gap(chances: torch.Tensor, num_answerable: int) -> float:
    """Expected GAP of first answers in random order that are correct with probabilities `chances` [Q]."""
    chances, count = chances.double(), len(chances)
    harmonic = (1 / torch.arange(1, count + 1, dtype=torch.float64)).sum().item()
    both = ((chances.sum() ** 2 - chances.square().sum()) / max(count * (count - 1), 1)).item()
    return (harmonic * chances.mean().item() + (count - harmonic) * both) / num_answerable


class Relevance:
    """The gallery rows that are relevant for each query: those it lists, or those of the same instance."""

    def __init__(self, gallery: "Dataset", query: "Dataset", positives_column: str | None, instance_column: str):
        self.num_gallery = len(gallery)
        if positives_column is not None:
            check_column(query, positives_column, "positives_column")
            self.rows = [_gallery_rows(value, row, len(gallery)) for row, value in enumerate(query[positives_column])]
            return
        accepted = "a column with one number or text a row"
        items, values = (named_values(rows, instance_column, "instance_column", accepted) for rows in (gallery, query))
        rows_of: dict[str | int | None, list[int]] = {}
        for row, value in enumerate(items):
            rows_of.setdefault(value, []).append(row)
        rows_of.pop(None, None)
        self.rows = [rows_of.get(value, []) for value in values]

    def matrix(self, queries: Sequence[int], kept: torch.Tensor) -> torch.Tensor:
        """Return the relevance (bool) [Q,N] of the gallery rows `kept` [N] for the query rows `queries` [Q]."""
        relevant = torch.zeros(len(queries), self.num_gallery, dtype=torch.bool)
        for place, row in enumerate(queries):
            relevant[place, self.rows[row]] = True
        return relevant[:, kept]


def _gallery_rows(value: list[int] | None, row: int, num_gallery: int) -> list[int]:
    named = value if value is not None else []
    if not isinstance(named, list) or not all(type(item) is int and 0 <= item < num_gallery for item in named):
        accepted = f"a list of rows of the gallery, 0 to {num_gallery - 1}"
        raise Refused(f"positives_column: row {row} has {str(value)[:60]}, accepted: {accepted}")
    return named


def evaluate_instance_retrieval(
    bench: Bench,
    gallery: "Dataset",
    query: "Dataset",
    image_column: str = "image",
    positives_column: str | None = None,
    instance_column: str = "label",
    ks: Sequence[int] = (1, 5, 10),
    exclude_same: bool = False,
    whole: bool = False,
) -> Result:
    """Measure how high the images of a query's instance rank when the gallery is sorted by cosine similarity.

    Relevant are the gallery rows that the query's `positives_column` lists, else those of equal `instance_column` (a
    missing value, or -1 of a declared class, equals none). Queries without a relevant image are distractors, which
    count only in GAP. `exclude_same` removes a query's own row from the ranking, for a gallery that is its own query
    set. `whole` uses uncropped images, shorter side resized to `image_size`, instead of square crops. "hits" says for
    every query with a relevant image whether its first answer is relevant; "pictures" shows answers.
    """
    check_image_size(bench.preprocessing.image_size, bench.patch_size)
    for rows in (gallery, query):
        check_column(rows, image_column, "image_column")
    ks = sorted(set(ks))
    if min(ks, default=0) < 1:
        raise Refused(f"ks: got {ks}, accepted: whole numbers of at least 1")
    if not exclude_same and gallery._fingerprint == query._fingerprint:
        raise Refused("query: got the gallery's own rows, accepted: others, or exclude_same")
    if exclude_same and len(gallery) != len(query):
        raise Refused(f"exclude_same: got {len(query)} queries, accepted: as many as the gallery ({len(gallery)})")
    relevance = Relevance(gallery, query, positives_column, instance_column)
    items = bench.extract(gallery, image_column, "cls", "retrieval: gallery images", whole=whole)
    queries = bench.extract(query, image_column, "cls", "retrieval: query images", whole=whole)
    search = _Search(relevance, items["model"].kept, queries["model"].kept, exclude_same)
    if not search.num_relevant.any():
        column = (
            f"positives_column: {positives_column!r}" if positives_column else f"instance_column: {instance_column!r}"
        )
        raise Refused(f"{column} gives none of the {len(query)} queries a relevant image in the gallery")
    rankings = {}
    for name in items:
        bank = CosineBank(items[name].stack().to(bench.device))
        rankings[name] = search.run(bank, queries[name], bench, f"retrieval: {name.replace('_', ' ')}")
    answerable = search.num_relevant > 0
    num_relevant, num_items = search.num_relevant[answerable], search.num_items
    constant = search.constant_order()
    expected = expected_average_precision(num_relevant, num_items).mean().item()
    chances = {
        "mAP": max(expected, constant["average_precision"].mean().item()),
        "GAP": max(expected_gap(search.num_relevant / num_items, len(num_relevant)), constant["gap"]),
    }
    values = {name: {"mAP": of["average_precision"].mean().item(), "GAP": of["gap"]} for name, of in rankings.items()}
    metrics = [
        {"metric": title, **{name: of[title] for name, of in values.items()}, "chance": chances[title]}
        for title in ("mAP", "GAP")
    ]
    precisions = rankings["model"]["average_precision"].double().numpy()
    metrics[0] |= with_interval(mean_interval(precisions, bench.seed))
    for k in ks:
        shares = {name: _share(of["rank"] < k) for name, of in rankings.items()}
        chance = max(chance_recall(num_relevant, num_items, k), _share(constant["rank"] < k))
        interval = hits_interval(rankings["model"]["rank"] < k)
        metrics.append({"metric": "recall", "k": k, **shares, "chance": chance, "interval": interval})
    rows = torch.tensor(search.queries)[answerable].tolist()
    return Result(
        task="retrieval",
        protocol={
            "features": "final-normed class token, L2-normalised, cosine, exact search of the whole gallery",
            "relevant": f"the gallery's rows in column {positives_column}"
            if positives_column
            else f"equal values of column {instance_column}",
            "mAP": "mean over queries of the precision at each relevant image, over the whole ranking",
            "GAP": "first answers of all queries by cosine: precision at each right one, summed, over the queries "
            "that have a relevant image",
            "recall": "share of queries with a relevant image among the first k",
            "ties": "count against the relevant image",
            "ks": ks,
            "num_train": len(items["model"]),
            "num_test": len(rows),
            "queries_without_relevant_image": len(search.queries) - len(rows),
            "relevant_images_per_query": num_relevant.double().mean().item(),
            "own_row_left_out": exclude_same,
            "preprocessing": asdict(bench.whole if whole else bench.preprocessing),
            "baseline_seed": bench.seed,
            "raw_pixels": f"the network's input averaged down to at most {RAW_PIXELS_SIDE} pixels a side, flattened",
            "chance": "the better of a random order, in expectation, and of one order for all queries: by the number "
            "of queries for which an image is relevant",
        },
        skipped_images={"train": len(gallery) - len(items["model"]), "test": len(query) - len(search.queries)},
        metrics=metrics,
        hits={"rows": rows, **{name: of["rank"] < 1 for name, of in rankings.items()}},
        pictures={"retrieved": _picture(gallery, query, image_column, rankings["model"]["answers"])},
    )


class _Search:
    """The comparison of queries with a gallery, the same for every encoder."""

    def __init__(self, relevance: Relevance, items: list[int], queries: list[int], exclude_same: bool):
        self.relevance, self.items, self.queries = relevance, torch.tensor(items), queries
        self.exclude_same = exclude_same
        self.at_once = max(1, MAX_SIMILARITIES // len(items))
        self.num_relevant = torch.cat([relevant.sum(1) for _, relevant, _ in self.parts()])
        self.num_items = len(items) - exclude_same
        with_answers = self.num_relevant.nonzero()[:, 0].tolist()
        self.drawn = {
            with_answers[index * len(with_answers) // NUM_DRAWN] for index in range(NUM_DRAWN) if with_answers
        }

    def parts(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Yield slices of the queries, the relevance [q,N] of the items, and which item is a query's own row [q,N]."""
        for start in range(0, len(self.queries), self.at_once):
            rows = self.queries[start : start + self.at_once]
            own = (torch.tensor(rows)[:, None] == self.items) & self.exclude_same
            yield slice(start, start + len(rows)), self.relevance.matrix(rows, self.items) & ~own, own

    def constant_order(self) -> dict:
        """Return "average_precision", "rank" and "gap", as `run` does, of one order of the items for all queries.

        Items come in the order of the number of queries that they are relevant for, of equal ones the first.
        """
        answers = sum(relevant.sum(0) for _, relevant, _ in self.parts())
        scores = (answers * len(self.items) - torch.arange(len(self.items))).double()
        average_precision, ranks, right = [], [], []
        for _, relevant, own in self.parts():
            similarities, has = scores.expand(len(relevant), -1).masked_fill(own, -torch.inf), relevant.any(1)
            rank, first = best_ranks(similarities[has], relevant[has]), torch.zeros_like(has)
            first[has] = rank < 1
            average_precision.append(precision_sums(similarities[has], relevant[has]) / relevant[has].sum(1))
            ranks.append(rank)
            right.append(first)
        # All queries are answered with the same confidence.
        hits = torch.cat(right)
        total = precision_sums(torch.zeros(1, len(hits), dtype=torch.float64), hits[None]).item()
        gap = total / int((self.num_relevant > 0).sum())
        return {"average_precision": torch.cat(average_precision), "rank": torch.cat(ranks), "gap": gap}

    def run(self, bank: CosineBank, queries: Features, bench: Bench, description: str) -> dict:
        """Return "average_precision", "rank" (of the first relevant item) by answerable query, "gap" and "answers"."""
        average_precision, ranks, confidence, right, answers = [], [], [], [], []
        bar = progress_bar(total=len(self.queries), desc=description, unit="query", disable=not bench.progress)
        with bar:
            for part, relevant, own in self.parts():
                tokens = torch.cat([queries[index] for index in range(part.start, part.stop)])
                similarities = bank.similarities(tokens.to(bench.device)).masked_fill_(
                    own.to(bench.device), -torch.inf
                )
                relevant = relevant.to(bench.device)
                has = relevant.any(1)
                best, first = similarities.max(1).values, torch.zeros_like(has)
                rank = best_ranks(similarities[has], relevant[has])
                first[has] = rank < 1
                average_precision.append(precision_sums(similarities[has], relevant[has]) / relevant[has].sum(1))
                ranks.append(rank)
                confidence.append(best)
                right.append(first)
                for index in sorted(self.drawn & set(range(part.start, part.stop))):
                    place = index - part.start
                    nearest = similarities[place].topk(min(NUM_ANSWERS, self.num_items)).indices
                    flags = relevant[place, nearest].tolist()
                    answers.append((self.queries[index], self.items[nearest.cpu()].tolist(), flags))
                bar.update(part.stop - part.start)
        total = precision_sums(torch.cat(confidence)[None], torch.cat(right)[None]).item()
        return {
            "average_precision": torch.cat(average_precision).cpu(),
            "rank": torch.cat(ranks).cpu(),
            "gap": total / int((self.num_relevant > 0).sum()),
            "answers": answers,
        }


def _share(hits: torch.Tensor) -> float:
    return hits.double().mean().item()


def _picture(
    gallery: "Dataset", query: "Dataset", image_column: str, answers: list[tuple[int, list[int], list[bool]]]
) -> Image.Image:
    """Draw queries with their first answers; `answers` are query row, gallery rows, and whether each is relevant."""
    gallery, query = undecoded(gallery), undecoded(query)
    return answers_picture(
        [
            (
                decode_image(query[row][image_column]),
                [
                    (decode_image(gallery[item][image_column]), right)
                    for item, right in zip(items, rights, strict=True)
                ],
            )
            for row, items, rights in answers
        ]
    )
