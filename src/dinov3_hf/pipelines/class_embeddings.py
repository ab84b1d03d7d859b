"""Text embeddings of class names, for zero-shot classification (CLIP, section 3.1.4; DINOv3, section 5.3)."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import normalize

from ..errors import Refused


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Without a full stop, because the captions that people train on often have none.
TEMPLATES = ("a photo of a {}", "a picture of a {}", "a {}", "{}")


PARTS = ("image", "patch")


TEXTS_AT_ONCE = 256


# The two names that open_clip gives to two classes each, replaced by WordNet's.
_IMAGENET_RENAMED = {744: "projectile", 836: "sunglass"}


def openai_templates() -> list[str]:
    """Return OpenAI's 80 ImageNet templates with "{}" for the class name; `Refused` if open_clip is not installed."""
    return [template("{}") for template in _open_clip("OPENAI_IMAGENET_TEMPLATES")]


def imagenet_class_names() -> list[str]:
    """Return the names of ImageNet's 1000 classes by index, all different; `Refused` if open_clip is not installed.

    They are those of open_clip, except for classes 744 ("projectile") and 836 ("sunglass"): open_clip gives them the
    same names as classes 657 and 837.
    """
    return [_IMAGENET_RENAMED.get(index, name) for index, name in enumerate(_open_clip("IMAGENET_CLASSNAMES"))]


def _open_clip(name: str) -> Sequence[Any]:
    try:
        from open_clip import zero_shot_metadata
    except ImportError as error:
        raise Refused(
            f"ImageNet's names and templates come with open_clip_torch ({error}): pip install 'dinov3-hf[text]'"
        ) from None
    return getattr(zero_shot_metadata, name)


def default_templates(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the `TEMPLATES` of which the text tower knows every word; "{}" is always one of them."""
    return [template for template in TEMPLATES if not unknown_words(tokenizer, [template.replace("{}", "")])]


def unknown_words(tokenizer: "PreTrainedTokenizerBase | None", texts: Sequence[str]) -> list[str]:
    """Return the words of the texts that did not occur in the text tower's training captions.

    Empty for a tokenizer that does not keep a list of them, or `None`.
    """
    find = getattr(tokenizer, "unknown_words", None)
    return find(list(texts)) if find is not None else []


def check_class_names(class_names: Sequence[str], field: str = "class_names") -> list[str]:
    """Return class names as a list; raises `Refused` if there are none, or one is empty, no string, or a duplicate.

    Names that differ only in case or spaces are duplicates.
    """
    if isinstance(class_names, str) or not isinstance(class_names, Sequence) or not class_names:
        raise Refused(f"{field}: got {class_names!r:.80}, accepted: a list of at least one name")
    for name in class_names:
        if not isinstance(name, str) or not name.strip():
            raise Refused(f"{field}: got {name!r:.80} among the names, accepted: text")
    # Tokenizers ignore case and repeated spaces.
    seen = Counter(" ".join(name.lower().split()) for name in class_names)
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        raise Refused(f"{field}: got {', '.join(map(repr, twice))} more than once, accepted: names that differ")
    return list(class_names)


def check_templates(templates: Sequence[str]) -> list[str]:
    """Return templates as a list; raises `Refused` if there are none, or if one does not contain "{}"."""
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise Refused(f"templates: got {templates!r:.80}, accepted: a list of texts with {{}} for the name")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise Refused(f"templates: got {template!r:.80}, accepted: a text with {{}} for the name")
    return list(templates)


@torch.inference_mode()
def text_features(model: nn.Module, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> torch.Tensor:
    """Encode T texts with a `DinoTxtModel`; returns [T,E] in fp32, not normalised."""
    model.eval()
    features = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = list(texts[start : start + TEXTS_AT_ONCE])
        ids = tokenizer(part, padding=True, truncation=True, return_tensors="pt")["input_ids"]
        features.append(model.get_text_features(ids.to(model.device)).float())
    return torch.cat(features)


def class_embeddings(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    class_names: Sequence[str],
    templates: Sequence[str] | None = None,
    part: str = "image",
) -> torch.Tensor:
    """Return one embedding per class: the text features of its prompts, normalised, averaged and normalised again.

    Returns [C,E] to compare with image features, or with `part="patch"` the second half of them, [C,E/2], to compare
    with patch features. Without `templates`, `default_templates` are used. Raises `Refused` for invalid names or
    templates.
    """
    names = check_class_names(class_names)
    templates = default_templates(tokenizer) if templates is None else check_templates(templates)
    if part not in PARTS:
        raise Refused(f"part: got {part!r}, accepted: {', '.join(PARTS)}")
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
    """Return the cosine similarities [B,C] of image features [B,E] and class embeddings [C,E]."""
    return normalize(image_features.float(), dim=-1) @ normalize(class_embeddings.float(), dim=-1).T


def classify(image_features: torch.Tensor, class_embeddings: torch.Tensor) -> torch.Tensor:
    """Return the index [B] of the class embedding [C,E] that is most similar to each of the image features [B,E]."""
    return cosines(image_features, class_embeddings).argmax(dim=1)
