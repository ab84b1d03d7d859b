"""Zero-shot classification by names (CLIP, section 3.1.4; DINOv3, section 5.3): the class whose prompts are nearest."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from tqdm.auto import tqdm

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
from .result import Result


def read_images(
    rows, image_column: str, image_processor, batch_size: int, progress: bool = True, description: str = "images"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode a `datasets.Dataset` in its order, `batch_size` rows at a time, each image as `image_processor` says.

    Yields the row numbers [B] of images that could be decoded, and these images [B,3,H,W].
    """
    rows = undecoded(rows.select_columns([image_column]))

    def read(value):
        try:
            image = decode_image(value)
        except (OSError, ValueError):
            return None
        return image_processor(image, return_tensors="pt", input_data_format="channels_first")["pixel_values"]

    batches = ([(value,) for value in batch[image_column]] for batch in rows.iter(batch_size))
    start = 0
    with tqdm(total=len(rows), desc=description, unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for images in read_ahead(read, batches):
            bar.update(len(images))
            good = [index for index, image in enumerate(images) if image is not None]
            if good:
                yield torch.tensor(good) + start, torch.cat([images[index] for index in good])
            start += len(images)


@torch.inference_mode()
def read_image_features(model: nn.Module, rows, image_column: str, *args) -> tuple[torch.Tensor, torch.Tensor]:
    """Read images as `read_images` does; returns row numbers [N] and image features [N,E], fp32, on the CPU."""
    check_column(rows, image_column, "image_column")
    model.eval()
    numbers, features = [], []
    for some, pixel_values in read_images(rows, image_column, *args):
        numbers.append(some)
        features.append(model.get_image_features(pixel_values.to(model.device, model.dtype)).float().cpu())
    if not numbers:
        raise Refused(f"image_column: none of the {len(rows)} images in {image_column!r} could be decoded")
    return torch.cat(numbers), torch.cat(features)


def read_labels(rows, label_column: str, class_names: Sequence[str] | None = None) -> tuple[list[str], torch.Tensor]:
    """Return the class names, and for every row the index of its class [N].

    Without `class_names`: those of a ClassLabel column, or the sorted values of a column of texts. Given names replace
    a ClassLabel's in their order, or are found by name where they are the same names; numbers are indices.
    Raises `Refused` for a label that has no name.
    """
    from datasets import ClassLabel, Value

    check_column(rows, label_column, "label_column")
    feature = rows.features[label_column]
    values = list(rows[label_column]) if isinstance(feature, ClassLabel | Value) else []
    if {type(value) for value in values} not in ({int}, {str}):
        raise Refused(f"label_column: got {label_column!r}, accepted: a column with one class a row")
    declared = feature.names if isinstance(feature, ClassLabel) else None
    found = sorted(set(values))
    texts = isinstance(found[0], str)
    if class_names is None:
        class_names = declared or (found if texts else None)
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
    strange = [value for value in found if value not in index_of]
    if strange:
        accepted = "one of class_names" if texts else f"0 to {len(names) - 1}, an index of class_names"
        raise Refused(f"label_column: {label_column!r} holds {strange[0]!r}, accepted: {accepted}")
    return names, torch.tensor([index_of[value] for value in values])


def evaluate_zero_shot(
    model: nn.Module,
    processor,
    rows,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    batch_size: int = 64,
    progress: bool = True,
) -> Result:
    """Measure zero-shot top-1 and top-5 of a `DinoTxtModel` on a `datasets.Dataset`, beside guessing.

    Images are prepared as `processor`'s image processor says. "measures" of what it returns holds the
    accuracies (0..1), top-5 where there are more than five classes; "per_class" those of each class that has images.
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
    hits = best[:, 0]
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
            "chance": "a class drawn at random",
        },
        skipped_images={"test": len(rows) - len(labels)},
        metrics=[
            {"metric": f"top-{k}", "model": best[:, :k].any(1).double().mean().item(), "chance": k / len(names)}
            for k in ks
        ],
        details={
            "per_class": per_class,
        },
    )
