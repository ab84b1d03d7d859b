"""The model card of a text alignment: what the model is, how to use it, and which words it was trained on."""

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from dinov3_hf.provenance import public
from dinov3_hf.training.model_card import PRIVATE_FIELDS, PRIVATE_VERSIONS


SHOWN_WORDS = 200
TEXT = """{header}

# dino.txt: images and texts in one space

A text tower trained from random weights on a frozen DINOv3 backbone{backbone} with the locked-image alignment of
[dino.txt](https://arxiv.org/abs/2412.16334), by `dinov3-hf`. {seen}

## Use it

```python
import dinov3_hf  # registers the model with transformers
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="path/to/this/folder")
classify("image.jpg", candidate_labels=["{first}", "{second}"], hypothesis_template="a {{}}")
segment = pipeline("zero-shot-image-segmentation", model="path/to/this/folder")
segment("image.jpg", candidate_labels=["{first}", "{second}"])
```

## Words

{words}

## Training

```json
{recipe}
```

{versions}

## Last metrics

```json
{metrics}
```

## Limits

- The model knows only the words of its training captions, in the sense in which they describe the training images.
- Recall is measured on few held-out pairs: it shows the course of training and is not a benchmark.
- Not examined for bias, fairness or safety: biases of the images and captions carry over to the model.
"""


def write_model_card(
    directory: Path, recipe: dict, state: dict, metrics: dict | None, versions: dict, known_words: list[str] | None
) -> Path:
    """Write the model card README.md into the folder of an exported `DinoTxtModel` and return its path."""
    shown = {name: public(value) for name, value in recipe.items() if name not in PRIVATE_FIELDS}
    words = "The words of the training captions are not recorded."
    if known_words is not None:
        more = f" and {len(known_words) - SHOWN_WORDS:,} more" if len(known_words) > SHOWN_WORDS else ""
        words = f"Its training captions have {len(known_words):,} words: {', '.join(known_words[:SHOWN_WORDS])}{more}."
    # Long words are more often names of objects, which make good examples.
    names = sorted(known_words or [], key=len)[-2:] or ["cat", "dog"]
    text = TEXT.format(
        header="---\n"
        + ModelCardData(library_name="transformers", tags=["dinov3", "dino.txt", "dinov3-hf"]).to_yaml()
        + "\n---",
        backbone=f" (`{shown['backbone']}`)" if shown["backbone"] else " (the one bundled with the package)",
        seen=f"{state['step']:,} steps of {recipe['steps']:,}, {state['images_read']:,} pairs read, repeats counted.",
        first=names[0],
        second=names[-1],
        words=words,
        recipe=json.dumps(shown, indent=2),
        versions="Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items() if v and k not in PRIVATE_VERSIONS),
        metrics=json.dumps(metrics or {}, indent=2),
    )
    path = Path(directory) / "README.md"
    ModelCard(text).save(path)
    return path
