"""Zero-shot classification by class names (CLIP, section 3.1.4; DINOv3, section 5.3): the nearest prompts win."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..data.ahead import read_ahead
from ..data.columns import check_column, undecoded
from ..data.pixels import decode_image
from ..errors import Refused
from ..pipelines.class_embeddings import (
    check_class_names,
    check_templates,
    class_embeddings,
    cosines,
    default_templates,
    unknown_words,
)
from ..terminal import progress_bar
from .labels import hits_interval
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

    from ..models.image_processing_dinov3 import Dinov3ImageProcessor
    from ..models.processing_dinotxt import DinoTxtProcessor


def read_images(
    rows: "Dataset",
    image_column: str,
    image_processor: "Dinov3ImageProcessor",
    batch_size: int,
    progress: bool = True,
    description: str = "images",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode and preprocess the images of `rows` in order, in batches of at most `batch_size` images.

    Yields the row numbers [B] of the images that could be decoded, and these images [B,3,H,W].
    """
    rows = undecoded(rows.select_columns([image_column]))

    def read(value: dict | None) -> torch.Tensor | None:
        try:
            image = decode_image(value)
        except (OSError, ValueError):
            return None
        return image_processor(image, return_tensors="pt", input_data_format="channels_first")["pixel_values"]

    batches = ([(value,) for value in batch[image_column]] for batch in rows.iter(batch_size))
    start = 0
    with progress_bar(total=len(rows), desc=description, unit="image", disable=not progress) as bar:
        for images in read_ahead(read, batches):
            bar.update(len(images))
            good = [index for index, image in enumerate(images) if image is not None]
            if good:
                yield torch.tensor(good) + start, torch.cat([images[index] for index in good])
            start += len(images)


@torch.inference_mode()
def read_image_features(
    model: nn.Module,
    rows: "Dataset",
    image_column: str,
    image_processor: "Dinov3ImageProcessor",
    batch_size: int,
    progress: bool = True,
    description: str = "images",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the row numbers [N] and image features [N,E] (fp32, on the CPU) of the images that could be decoded."""
    check_column(rows, image_column, "image_column")
    model.eval()
    numbers, features = [], []
    for some, pixel_values in read_images(rows, image_column, image_processor, batch_size, progress, description):
        numbers.append(some)
        features.append(model.get_image_features(pixel_values.to(model.device, model.dtype)).float().cpu())
    if not numbers:
        raise Refused(f"image_column: none of the {len(rows)} images in {image_column!r} could be decoded")
    return torch.cat(numbers), torch.cat(features)


def read_labels(
    rows: "Dataset", label_column: str, class_names: Sequence[str] | None = None
) -> tuple[list[str], torch.Tensor]:
    """Return the class names, and the class index of every row [N].

    The default of `class_names` are the names of a ClassLabel column, or the sorted values of a text column. Given
    names replace those of a ClassLabel in order, or are matched by name if both sets are equal; integers are indices
    of names. Raises `Refused` for a label without a name.
    """
    from datasets import ClassLabel, Value

    check_column(rows, label_column, "label_column")
    feature = rows.features[label_column]
    values = list(rows[label_column]) if isinstance(feature, ClassLabel | Value) else []
    if {type(value) for value in values} not in ({int}, {str}):
        raise Refused(f"label_column: got {label_column!r}, accepted: a column with one class a row")
    declared = feature.names if isinstance(feature, ClassLabel) else None
    present = sorted(set(values))
    texts = isinstance(present[0], str)
    if class_names is None:
        class_names = declared or (present if texts else None)
    if class_names is None:
        raise Refused(f"class_names: missing, accepted: one name a class, as {label_column!r} holds numbers")
    names = check_class_names(class_names)
    if declared and set(declared) != set(names) and len(declared) != len(names):
        raise Refused(
            f"class_names: got {len(names)}, accepted: {len(declared)}, one a class of label_column {label_column!r}"
        )
    by_name = {name: index for index, name in enumerate(names)}
    index_of = by_name if texts else dict(enumerate(range(len(names))))
    if declared and set(declared) == set(names):
        index_of = {value: by_name[name] for value, name in enumerate(declared)}
    strange = [value for value in present if value not in index_of]
    if strange:
        accepted = "one of class_names" if texts else f"0 to {len(names) - 1}, an index of class_names"
        raise Refused(f"label_column: {label_column!r} holds {strange[0]!r}, accepted: {accepted}")
    return names, torch.tensor([index_of[value] for value in values])


def evaluate_zero_shot(
    model: nn.Module,
    processor: "DinoTxtProcessor",
    rows: "Dataset",
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    batch_size: int = 64,
    progress: bool = True,
) -> Result:
    """Measure zero-shot top-1 and top-5 accuracy of a `DinoTxtModel`, and those of the most frequent classes.

    Images are preprocessed by `processor`. The metrics of the returned result are accuracies (0..1), with top-5 if
    there are more than five classes; "per_class" holds the accuracy of each class that has images.
    """
    names, labels = read_labels(rows, label_column, class_names)
    tokenizer = processor.tokenizer
    templates = default_templates(tokenizer) if templates is None else check_templates(templates)
    embeddings = class_embeddings(model, tokenizer, names, templates).cpu()
    numbers, features = read_image_features(
        model, rows, image_column, processor.image_processor, batch_size, progress, "zero-shot: images"
    )
    labels = labels[numbers]
    ks = [1, 5] if len(names) > 5 else [1]
    best = cosines(features, embeddings).topk(ks[-1], dim=1).indices == labels[:, None]
    hits, frequent = best[:, 0], labels.bincount().sort(descending=True).values
    per_class = []
    for index, name in enumerate(names):
        mine = hits[labels == index]
        if len(mine):
            per_class.append({"class": name, "images": len(mine), "model": mine.double().mean().item()})
    return Result(
        task="zero-shot",
        protocol={
            "features": "image features against class embeddings, cosine",
            "class_names": names,
            "templates": templates,
            "unknown_words": unknown_words(tokenizer, [*names, *(x.replace("{}", "") for x in templates)]),
            "num_test": len(labels),
            "num_classes": len(names),
            "chance": "always the k classes most frequent in test: the best constant answer, never below a random one",
        },
        skipped_images={"test": len(rows) - len(labels)},
        metrics=[
            {
                "metric": f"top-{k}",
                "model": best[:, :k].any(1).double().mean().item(),
                "chance": int(frequent[:k].sum()) / len(labels),
                "interval": hits_interval(best[:, :k].any(1)),
            }
            for k in ks
        ],
        details={
            "per_class": per_class,
        },
    )
