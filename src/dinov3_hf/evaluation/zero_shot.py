"""Zero-shot classification by names (CLIP, section 3.1.4; DINOv3, section 5.3): the class whose prompts are nearest."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from ..data.decoding import decode_image
from .features import check_column, undecoded


# Without a full stop, which captions of one's own often lack.
TEMPLATES = ("a photo of a {}", "a picture of a {}", "a {}", "{}")
PARTS = ("image", "patch")
TEXTS_AT_ONCE = 256
# The two names that open_clip gives to two classes each, replaced by WordNet's.
_IMAGENET_RENAMED = {744: "projectile", 836: "sunglass"}


def openai_templates() -> list[str]:
    """Return OpenAI's 80 ImageNet templates, "{}" in place of the name; ImportError without open_clip."""
    return [template("{}") for template in _open_clip("OPENAI_IMAGENET_TEMPLATES")]


def imagenet_class_names() -> list[str]:
    """Return names of ImageNet's 1000 classes by index, all different; ImportError without open_clip.

    They are open_clip's, but for "projectile" (744) and "sunglass" (836), which there are named as 657 and 837 are.
    """
    return [_IMAGENET_RENAMED.get(index, name) for index, name in enumerate(_open_clip("IMAGENET_CLASSNAMES"))]


def _open_clip(name: str):
    try:
        from open_clip import zero_shot_metadata
    except ImportError as error:
        raise ImportError(
            f"ImageNet's names and templates come with open_clip_torch ({error}): pip install 'dinov3-hf[text]'"
        ) from None
    return getattr(zero_shot_metadata, name)


def default_templates(tokenizer) -> list[str]:
    """Return those of `TEMPLATES` whose every word the text tower was taught; "{}" is always among them."""
    return [template for template in TEMPLATES if not unknown_words(tokenizer, [template.replace("{}", "")])]


def unknown_words(tokenizer, texts: Sequence[str]) -> list[str]:
    """Return the words of texts that the text tower was never taught, as far as its tokenizer knows."""
    return tokenizer.unknown_words(list(texts)) if hasattr(tokenizer, "unknown_words") else []


def check_class_names(class_names: Sequence[str], field: str = "class_names") -> list[str]:
    """Return class names as a list; ValueError for none, for one that is no text, and for two the same to a model."""
    if isinstance(class_names, str) or not isinstance(class_names, Sequence) or not class_names:
        raise ValueError(f"{field}: got {class_names!r:.80}, accepted: a list of at least one name")
    for name in class_names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{field}: got {name!r:.80} among the names, accepted: text")
    # As tokenizers see them.
    seen = Counter(" ".join(name.lower().split()) for name in class_names)
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        raise ValueError(f"{field}: got {', '.join(map(repr, twice))} more than once, accepted: names that differ")
    return list(class_names)


def check_templates(templates: Sequence[str]) -> list[str]:
    """Return templates as a list; ValueError for none, and for one without a place for the name."""
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise ValueError(f"templates: got {templates!r:.80}, accepted: a list of texts with {{}} for the name")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(f"templates: got {template!r:.80}, accepted: a text with {{}} for the name")
    return list(templates)


@torch.inference_mode()
def text_features(model: nn.Module, tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Encode texts with a `DinoTxtModel`; returns [T,E] in fp32, before normalisation."""
    model.eval()
    features = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = list(texts[start : start + TEXTS_AT_ONCE])
        ids = tokenizer(part, padding=True, truncation=True, return_tensors="pt")["input_ids"]
        features.append(model.get_text_features(ids.to(model.device)).float())
    return torch.cat(features)


def class_embeddings(
    model: nn.Module,
    tokenizer,
    class_names: Sequence[str],
    templates: Sequence[str] | None = None,
    part: str = "image",
) -> torch.Tensor:
    """Average each class's prompts: text features normalised, averaged over templates, normalised again.

    Returns [C,E] to compare with image features, or [C,E/2] of their patch half (`part="patch"`) to compare with patch
    features. Without templates those of `TEMPLATES` are taken that the text tower knows the words of.
    Raises ValueError for names or templates that cannot be used.
    """
    names = check_class_names(class_names)
    templates = default_templates(tokenizer) if templates is None else check_templates(templates)
    if part not in PARTS:
        raise ValueError(f"part: got {part!r}, accepted: {', '.join(PARTS)}")
    classes_at_once = max(1, TEXTS_AT_ONCE // len(templates))
    embeddings = []
    for start in range(0, len(names), classes_at_once):
        some = names[start : start + classes_at_once]
        features = text_features(model, tokenizer, [x.replace("{}", name) for name in some for x in templates])
        if part == "patch":
            features = features[:, features.shape[1] // 2 :]
        prompts = normalize(features, dim=-1).unflatten(0, (len(some), len(templates)))
        embeddings.append(normalize(prompts.mean(dim=1), dim=-1))
    return torch.cat(embeddings)


def cosines(image_features: torch.Tensor, class_embeddings: torch.Tensor) -> torch.Tensor:
    """Compare image features [B,E] with class embeddings [C,E]; returns [B,C]."""
    return normalize(image_features.float(), dim=-1) @ normalize(class_embeddings.float(), dim=-1).T


def classify(image_features: torch.Tensor, class_embeddings: torch.Tensor) -> torch.Tensor:
    """Predict the nearest of class embeddings [C,E] for image features [B,E]; returns class indices [B]."""
    return cosines(image_features, class_embeddings).argmax(dim=1)


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

    bar = tqdm(total=len(rows), desc=description, unit="image", disable=not progress, dynamic_ncols=True)
    start = 0
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in rows.iter(batch_size):
            images = list(pool.map(read, batch[image_column]))
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
        raise ValueError(f"image_column: none of the {len(rows)} images in {image_column!r} could be decoded")
    return torch.cat(numbers), torch.cat(features)


def read_labels(rows, label_column: str, class_names: Sequence[str] | None = None) -> tuple[list[str], torch.Tensor]:
    """Return the class names, and for every row the index of its class [N].

    Without `class_names`: those of a ClassLabel column, or the sorted values of a column of texts. Given names replace
    a ClassLabel's in their order, or are found by name where they are the same names; numbers are indices.
    Raises ValueError for a label that has no name.
    """
    from datasets import ClassLabel, Value

    check_column(rows, label_column, "label_column")
    feature = rows.features[label_column]
    values = list(rows[label_column]) if isinstance(feature, ClassLabel | Value) else []
    if {type(value) for value in values} not in ({int}, {str}):
        raise ValueError(f"label_column: got {label_column!r}, accepted: a column with one class a row")
    declared = feature.names if isinstance(feature, ClassLabel) else None
    found = sorted(set(values))
    texts = isinstance(found[0], str)
    if class_names is None:
        class_names = declared or (found if texts else None)
    if class_names is None:
        raise ValueError(f"class_names: missing, accepted: one name a class, as {label_column!r} holds numbers")
    names = check_class_names(class_names)
    if declared and set(declared) != set(names) and len(declared) != len(names):
        raise ValueError(
            f"class_names: got {len(names)}, accepted: {len(declared)}, one a class of label_column {label_column!r}"
        )
    by_name = {name: index for index, name in enumerate(names)}
    index_of = by_name if texts else dict(enumerate(range(len(names))))
    if declared and set(declared) == set(names):
        index_of = {value: by_name[name] for value, name in enumerate(declared)}
    strange = [value for value in found if value not in index_of]
    if strange:
        accepted = "one of class_names" if texts else f"0 to {len(names) - 1}, an index of class_names"
        raise ValueError(f"label_column: {label_column!r} holds {strange[0]!r}, accepted: {accepted}")
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
) -> dict:
    """Measure zero-shot top-1 and top-5 of a `DinoTxtModel` on a `datasets.Dataset`, beside guessing.

    Images are prepared as `processor`'s image processor says. Returns a JSON-ready dictionary: "measures" holds the
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
    return {
        "task": "zero-shot",
        "protocol": {
            "features": "image features against class embeddings, cosine",
            "class_names": names,
            "templates": templates,
            "unknown_words": unknown_words(tokenizer, [*names, *(x.replace("{}", "") for x in templates)]),
            "num_test": len(labels),
            "num_classes": len(names),
            "chance": "a class drawn at random",
        },
        "skipped_images": {"test": len(rows) - len(labels)},
        "measures": [
            {"measure": f"top-{k}", "model": best[:, :k].any(1).double().mean().item(), "chance": k / len(names)}
            for k in ks
        ],
        "per_class": per_class,
    }
