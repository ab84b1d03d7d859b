"""Image-to-text and text-to-image retrieval with captions (CLIP, section 3.1; DINOv3, section 5.3): recall@k."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import normalize

from ..data.captions import find_caption_columns, read_captions
from ..data.pixels import BadImage
from ..errors import Refused
from ..pipelines.class_embeddings import text_features
from .labels import hits_interval
from .result import Result
from .zero_shot import read_image_features


if TYPE_CHECKING:
    from datasets import Dataset

    from ..models.processing_dinotxt import DinoTxtProcessor

QUERIES_AT_ONCE = 1024


def best_ranks(similarities: torch.Tensor, relevant: torch.Tensor) -> torch.Tensor:
    """Return each query's rank [Q] of the best relevant item, from 0; similarities and relevant (bool) are [Q,N].

    Ties count against the relevant item: irrelevant items of equal similarity come first. If its similarity is NaN,
    all irrelevant items come first. Raises `Refused` for a query without a relevant item.
    """
    if similarities.shape != relevant.shape or similarities.dim() != 2:
        raise Refused(
            f"relevant: got shape {tuple(relevant.shape)}, accepted: that of similarities {tuple(similarities.shape)}"
        )
    without = int((~relevant.any(dim=1)).sum())
    if without:
        raise Refused(f"relevant: got {without} queries without a relevant item, accepted: at least one for each")
    best = similarities.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    return (~relevant & ~(similarities < best)).sum(dim=1)


def recall_at_k(
    similarities: torch.Tensor, relevant: torch.Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """Return the share of queries with a relevant item among their k most similar items, for each k.

    Similarities and relevant (bool) are [Q,N]; ties count against the relevant item. Raises `Refused` for a
    query without a relevant item, and for k below 1.
    """
    return _recall(best_ranks(similarities, relevant), ks)


def _recall(ranks: torch.Tensor, ks: Sequence[int]) -> dict[int, float]:
    if min(ks, default=0) < 1:
        raise Refused(f"ks: got {list(ks)}, accepted: whole numbers of at least 1")
    return {k: (ranks < k).double().mean().item() for k in ks}


def chance_recall(num_relevant: torch.Tensor, num_items: int, k: int) -> float:
    """Expected recall@k of a random order, for queries with `num_relevant` [Q] relevant items of `num_items`."""
    missed = torch.ones(len(num_relevant), dtype=torch.float64)
    for place in range(min(k, num_items)):
        missed *= (num_items - num_relevant - place).clamp(min=0) / (num_items - place)
    return 1 - missed.mean().item()


def evaluate_retrieval(
    model: nn.Module,
    processor: "DinoTxtProcessor",
    rows: "Dataset",
    image_column: str = "image",
    caption_columns: Sequence[str] = (),
    ks: Sequence[int] = (1, 5, 10),
    batch_size: int = 64,
    progress: bool = True,
) -> Result:
    """Measure recall@k of a `DinoTxtModel` from images to captions and from captions to images, and that of chance.

    A column holds a caption or a list of captions; all of them are queries and candidates. Captions of equal text are
    interchangeable: every image with that caption is relevant for it. Rows without a caption, or with one that is not
    a text, are skipped and counted.
    """
    _recall(torch.zeros(1), ks)
    columns = find_caption_columns(rows, caption_columns)
    captions, keep = [], []
    for row in rows.select_columns(columns):
        try:
            captions.append(read_captions(row, columns))
            keep.append(len(captions) - 1)
        except BadImage:
            captions.append([])
    if not keep:
        raise Refused(f"caption_columns: no row has a caption in {', '.join(columns)}, accepted: columns of texts")
    numbers, image_features = read_image_features(
        model,
        rows.select(keep),
        image_column,
        processor.image_processor,
        batch_size,
        progress,
        "image-text-retrieval: images",
    )
    captions = [captions[keep[number]] for number in numbers.tolist()]
    texts = list(dict.fromkeys(text for some in captions for text in some))
    place = {text: index for index, text in enumerate(texts)}
    has = torch.zeros(len(captions), len(texts), dtype=torch.bool)
    for index, some in enumerate(captions):
        has[index, [place[text] for text in some]] = True
    # Every caption of every image is an item of its own, encoded once.
    items = torch.tensor([place[text] for some in captions for text in some])
    images = normalize(image_features, dim=-1)
    embeddings = normalize(text_features(model, processor.tokenizer, texts), dim=-1).cpu()[items]
    ranks = {
        "image to text": torch.cat(
            [best_ranks(images[part] @ embeddings.T, has[part][:, items]) for part in _parts(images)]
        ),
        "text to image": torch.cat(
            [best_ranks(embeddings[part] @ images.T, has.T[items[part]]) for part in _parts(items)]
        ),
    }
    copies = items.bincount(minlength=len(texts))
    relevant = {
        "image to text": (torch.stack([copies[mine].sum() for mine in has]), len(items)),
        "text to image": (has.sum(dim=0)[items], len(images)),
    }
    metrics = [
        {"metric": f"{way} recall@{k}", "model": recall, "chance": chance_recall(*relevant[way], k)}
        | {"interval": hits_interval(of_queries < k)}
        for way, of_queries in ranks.items()
        for k, recall in _recall(of_queries, ks).items()
    ]
    return Result(
        task="image-text-retrieval",
        protocol={
            "features": "image and text features, L2-normalised, cosine; ties count against the relevant item",
            "caption_columns": columns,
            "num_images": len(images),
            "num_captions": len(items),
            "num_different_captions": len(texts),
            "relevant": "captions of an image and all of the same text",
            "chance": "a random order, in expectation",
        },
        skipped_images={"test": len(keep) - len(images)},
        skipped_rows={"no caption, or one that is no text": len(rows) - len(keep)},
        metrics=metrics,
    )


def _parts(queries: torch.Tensor) -> list[slice]:
    return [slice(start, start + QUERIES_AT_ONCE) for start in range(0, len(queries), QUERIES_AT_ONCE)]
