"""The model card of a run: what the weights are, how to load them, how they were trained, and their limits."""

import json
import math
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from dinov3_hf.errors import Refused
from dinov3_hf.evaluation.results import markdown
from dinov3_hf.provenance import is_hub_id, public


TAGS = ["dinov3", "self-supervised", "dinov3-hf"]
# Fields that are of no use to a reader, or paths of one machine.
PRIVATE_FIELDS = ("output_dir", "resume", "overwrite", "report_to")
PRIVATE_VERSIONS = ("command",)
METRICS = {
    "loss": "weighted sum of the losses",
    "dino_global": "image loss of global crops",
    "dino_local": "image loss of local crops",
    "ibot": "patch loss",
    "koleo": "KoLeo: minus the mean log distance to the nearest neighbour in the batch",
    "gram": "Gram loss",
    "cls": "distance of the class token to the teacher's",
    "patch": "distance of the patch tokens to the teacher's",
    "prototype_usage": "share of prototypes in use",
    "assignment_entropy": "entropy of an image's assignment / ln K",
    "knn": "k-NN top-1 on the held-out probe (k = 10, cosine)",
    "rankme": "RankMe of the probe's class tokens",
    "cls_patch_cosine": "mean cosine of class and patch tokens; rises as dense features degrade",
}

LOADING = """```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

name = "path/to/this/folder"  # or this repository's id
processor, model = AutoImageProcessor.from_pretrained(name), AutoModel.from_pretrained(name)
with torch.inference_mode():
    output = model(**processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt"))
image_feature = output.pooler_output  # [1, {width}]
patch_features = output.last_hidden_state[:, {prefix}:]  # [1, patches, {width}], row by row
```

`dinov3_hf.{name}.from_pretrained(name)` (package `dinov3-hf`) loads it too; its output has `patch_tokens`."""

HEADS_SECTION = """`heads.safetensors` contains weights that are not part of a transformers model: {parts}. To load the
whole pretraining network (from a local folder):

```python
from dinov3_hf.checkpoints import load_pretraining

network = load_pretraining("path/to/this/folder")  # network.dinov3, network.dino_head, network.ibot_head
```"""


def write_model_card(
    directory: str | Path,
    recipe: dict,
    state: dict,
    metrics: dict | None,
    versions: dict[str, str],
    teacher: str | None = None,
) -> Path:
    """Write the model card README.md into the folder of an exported model and return its path.

    `recipe` is the flat recipe; `state` has step, images_read, bad_images and, if there were any, alarms (sentences);
    `metrics` is the last line of metrics, or None; `versions` are those of the libraries; `teacher` names the
    weights of the teacher of a distilled model. The same arguments give the same text. Absolute paths are shortened to
    their last part. Raises `Refused` if the directory contains no exported model.
    """
    directory = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise Refused(f"directory: {directory} has no {name}, accepted: the folder of an exported model")
    config = json.loads((directory / "config.json").read_text())
    start = recipe.get("init_from")
    sources = [recipe["data"]] if isinstance(recipe["data"], str) else list(recipe["data"])
    base_models = list(dict.fromkeys(name for weights in (start, teacher) for name in _base_models(weights)))
    data = ModelCardData(
        # No licence: it has to be chosen by whoever publishes the weights.
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=TAGS,
        base_model=base_models[0] if len(base_models) == 1 else base_models or None,
        base_model_relation="finetune" if base_models else None,
        datasets=[source.partition(":")[0] for source in sources if is_hub_id(source)] or None,
    )
    parameters = sum(map(math.prod, _shapes(directory / "model.safetensors").values()))
    heads_file = directory / "heads.safetensors"
    heads = _shapes(heads_file) if heads_file.is_file() else {}
    origin = f"starting from `{public(start)}`" if start else "from random weights"
    paper = "[DINOv3](https://arxiv.org/abs/2508.10104)'s"
    how = f"Pretrained {origin}, without labels, on {_sources(sources, recipe)}, with {paper} self-distillation"
    average = "EMA teacher's"
    if teacher:
        how = f"Distilled from `{public(teacher)}`, {origin}, without labels, on {_sources(sources, recipe)}"
        how, average = (
            f"{how}, with {paper} distillation of one teacher into several students",
            "student's moving average's",
        )
    convnext = "depths" in config
    width, prefix = (
        (config["hidden_sizes"][-1], 1) if convnext else (config["hidden_size"], 1 + config["num_register_tokens"])
    )
    kind, name = ("ConvNeXt", "Dinov3ConvNextModel") if convnext else ("vision transformer", "Dinov3Model")
    sections = [
        f"# DINOv3 {kind}, {parameters / 1e6:.2f}M parameters",
        f"{how}, by `dinov3-hf`. The weights are those of the {average} backbone.",
        "## Load it",
        LOADING.format(width=width, prefix=prefix, name=name),
        *_heads(heads),
        "## Architecture",
        markdown([("", ""), *_architecture(config, parameters)]),
        "## Training",
        _training(recipe, state),
        f"<details><summary>Recipe</summary>\n\n```yaml\n{_recipe(recipe)}```\n\n</details>",
        f"<details><summary>Versions</summary>\n\n{markdown([('', ''), *_versions(versions)])}\n\n</details>",
        "## Last metrics",
        _metrics(metrics, heads),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(recipe, state, metrics)),
        "## Licence",
        _licence(start, base_models, recipe, teacher),
    ]
    path = directory / "README.md"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n").save(path)
    return path


def _shapes(file: Path) -> dict[str, list[int]]:
    with safe_open(file, "pt") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}


def _base_models(start: str | None) -> list[str]:
    """Return the hub ids of the weights that a run started from; those of a local model are read from its card."""
    if start is None or is_hub_id(start):
        return [start] if start else []
    card = Path(start).expanduser() / "README.md"
    try:
        base_model = ModelCard.load(card, ignore_metadata_errors=True).data.base_model if card.is_file() else None
    except (ValueError, yaml.YAMLError):
        # A card that cannot be read must not stop the export at the end of a run.
        base_model = None
    return [base_model] if isinstance(base_model, str) else list(base_model or [])


def _sources(sources: list[str], recipe: dict) -> str:
    named = []
    for source in sources:
        if source.split(":")[0] == "scenes":
            named.append(f"rendered scenes (`{source}`, {recipe['num_images']:,} images)")
        elif is_hub_id(source):
            repository = source.partition(":")[0]
            named.append(f"[{source}](https://huggingface.co/datasets/{repository})")
        else:
            named.append(f"the images of `{public(source)}`")
    return f"{', '.join(named)}, split `{recipe['split']}`"


def _heads(shapes: dict[str, list[int]]) -> list[str]:
    names = {"dino_head": "the image head", "ibot_head": "the patch head"}
    parts = [
        f"{name} ({shapes[f'{key}.last_layer.weight'][0]:,} prototypes)"
        for key, name in names.items()
        if f"{key}.last_layer.weight" in shapes
    ]
    if not parts:
        return []
    parts += ["the final norm of local crops"] if any("local_cls_norm" in name for name in shapes) else []
    return [HEADS_SECTION.format(parts=", ".join(parts))]


def _architecture(config: dict, parameters: int) -> list[tuple[str, str]]:
    if "depths" in config:
        return [
            ("parameters", f"{parameters:,}"),
            ("widths of the stages", ", ".join(map(str, config["hidden_sizes"]))),
            ("blocks of the stages", ", ".join(map(str, config["depths"]))),
            ("patch", f"{2 ** (len(config['depths']) + 1)} pixels a side, the stride of the last stage"),
            ("image size", f"{config['image_size']} pixels; any multiple of the patch works"),
        ]
    gated = "SwiGLU" if config["use_gated_mlp"] else config["hidden_act"].upper()
    return [
        ("parameters", f"{parameters:,}"),
        ("width", config["hidden_size"]),
        ("blocks", config["num_hidden_layers"]),
        ("attention heads", config["num_attention_heads"]),
        ("MLP", f"{config['intermediate_size']}, {gated}"),
        ("patch", f"{config['patch_size']} x {config['patch_size']} pixels"),
        ("register tokens", config["num_register_tokens"]),
        ("positions", f"axial RoPE, base {config['rope_theta']:g}"),
        ("image size", f"{config['image_size']} pixels; any multiple of the patch works"),
    ]


def _training(recipe: dict, state: dict) -> str:
    seen, bad = state["images_read"] - state["bad_images"], state["bad_images"]
    lines = [f"{state['step']:,} of {recipe['steps']:,} steps; {seen:,} images seen, repeats counted."]
    if bad:
        lines.append(f"{bad:,} more could not be decoded and were skipped.")
    if recipe.get("gram_teacher", "none") != "none":
        lines.append(f"With Gram anchoring (`gram_teacher: {recipe['gram_teacher']}`).")
    return " ".join(lines)


def _recipe(recipe: dict) -> str:
    shown = {name: public(value) for name, value in recipe.items() if name not in PRIVATE_FIELDS}
    return yaml.safe_dump(shown, sort_keys=False, default_flow_style=None)


def _versions(versions: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in versions.items() if value and name not in PRIVATE_VERSIONS]


def _metrics(metrics: dict | None, heads: dict[str, list[int]]) -> str:
    # K is read from the heads, which may come from the weights that the run started from, not from the recipe.
    prototypes = heads.get("dino_head.last_layer.weight")
    plateau = f"; ln K = {math.log(prototypes[0]):.3f} is the uniform plateau" if prototypes else ""
    rows = [
        (
            f"`{name}`",
            "not finite" if metrics[name] is None else f"{metrics[name]:.4g}",
            text + (plateau if name == "dino_global" else ""),
        )
        for name, text in METRICS.items()
        if metrics and name in metrics
    ]
    return markdown([("metric", "value", ""), *rows]) if rows else "Nothing was measured."


def _limits(recipe: dict, state: dict, metrics: dict | None) -> list[str]:
    limits = [f"Alarm during training, {alarm}" for alarm in state.get("alarms", [])]
    if state["step"] < recipe["steps"]:
        limits.append("The run was not finished: this is an intermediate checkpoint; its schedules did not end.")
    if not recipe.get("init_from") and not recipe.get("teacher"):
        limits.append(
            f"These weights were trained on only {state['images_read'] - state['bad_images']:,} images (repeats "
            "counted); the published pretraining (7B) used a million steps of 4,096 images."
        )
    if metrics and "rankme" in metrics:
        limits.append(
            "The metrics of the online probe come from few images and one seed: they show the course of training and "
            "are not a benchmark."
        )
    return [
        *limits,
        "Not evaluated on downstream tasks. To evaluate it on your own images, use `dinov3 evaluate`.",
        f"Trained on crops of {_side(recipe)} pixels of the images named above; not tested on other kinds of images "
        "or much larger sizes.",
        "Not examined for bias, fairness or safety: biases of the training images carry over to the features.",
    ]


def _side(recipe: dict) -> str:
    sides = sorted({sizes[0] for sizes in recipe.get("crop_size_sets") or []} or {recipe["global_crop_size"]})
    return " or ".join(str(int(side)) for side in sides)


def _licence(start: str | None, base_models: list[str], recipe: dict, teacher: str | None = None) -> str:
    lines = [
        "This card sets no licence for the weights: whoever publishes them has to choose it, in keeping with the "
        "terms of the training images"
        + (" and of the weights they derive from" if start or teacher else "")
        + ". Add `license:` to the header. (The code of `dinov3-hf`, Apache-2.0, does not decide it.)"
    ]
    if start:
        behind = [name for name in base_models if name != start]
        through = f" (itself derived from {', '.join(f'`{name}`' for name in behind)})" if behind else ""
        lines.append(
            f"**These weights derive from `{public(start)}`{through}: its licence applies to them.** Checkpoints "
            "published by Meta are under the DINOv3 License: read its terms for derivatives."
        )
    if teacher:
        lines.append(
            f"Their teacher was `{public(teacher)}`: check whether its licence covers models distilled from it (the "
            "DINOv3 License of Meta's checkpoints has terms for derivatives)."
        )
    if recipe.get("gram_checkpoint"):
        lines.append(
            f"Their Gram teacher was `{public(recipe['gram_checkpoint'])}`: check whether its licence covers models "
            "trained with it."
        )
    return "\n\n".join(lines)
