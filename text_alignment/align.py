"""Align a text tower to a frozen backbone: the main function of `dinov3 align`.

Images pass through the frozen backbone and a few trainable blocks, captions through a text tower trained from scratch.
The contrastive loss brings the features of a pair together and pushes apart those of different pairs in the global
batch (dino.txt; DINOv3, section 5.3).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov3_hf.errors import Refused

from .arguments import AlignRecipe, CaptionArguments


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator
    from torchdata.stateful_dataloader import StatefulDataLoader

    from dinov3_hf.models.modeling_dinov3 import Dinov3Model
    from dinov3_hf.models.tokenization_dinotxt import DinoTxtTokenizer
    from dinov3_hf.training.engine.loop import RunResult

    from .alignment import TextAlignment
    from .health import RetrievalProbe
    from .pairs import ImageTransform


def open_sources(data: CaptionArguments) -> list["datasets.Dataset | datasets.IterableDataset"]:
    """Open every source of pairs with its images and captions only, undecoded; print what each was taken for."""
    from dinov3_hf.data.captions import find_caption_columns
    from dinov3_hf.data.sources.account import print_account
    from dinov3_hf.data.streams import load_source

    sources = []
    for source in data.data:
        options: dict[str, Any] = {
            "streaming": data.streaming,
            "image_column": data.image_column,
            "num_images": data.num_images,
        }
        columns = find_caption_columns(load_source(source, data.split, **options), data.caption_columns)
        sources.append(load_source(source, data.split, columns=columns, **options))
        print_account(source, data.split, sources[-1], data.image_column)
    return sources


def build_probe(
    data: CaptionArguments, transform: "ImageTransform", tokenizer: "DinoTxtTokenizer"
) -> "RetrievalProbe | None":
    """Build the probe that evaluates retrieval on held-out pairs; None if the recipe has no held-out pairs."""
    from dinov3_hf.data.streams import load_source
    from dinov3_hf.training.run import probe_source

    from .health import RetrievalProbe

    source = probe_source(data)
    if source is None:
        return None
    rows = load_source(source, data.probe_split, image_column=data.image_column, num_images=data.probe_images)
    return RetrievalProbe(rows, data, transform, tokenizer)


def cache_features(
    data: CaptionArguments,
    sources: list["datasets.Dataset | datasets.IterableDataset"],
    transform: "ImageTransform",
    backbone: "Dinov3Model",
    accelerator: "Accelerator",
) -> list["datasets.Dataset | datasets.IterableDataset"]:
    """Compute the backbone's tokens of every image once, on the first process; returns the cache as the new source."""
    from dinov3_hf.data.streams import load_source
    from dinov3_hf.provenance import weights_digest

    from .feature_cache import CAPTIONS, write_feature_cache
    from .pairs import TOKENS

    assert data.cache_features is not None  # the recipe asks for a cache
    if accelerator.is_main_process:
        size, digest = backbone.config.image_size, weights_digest(backbone)
        about = {"backbone": digest, "image_size": size, "data": data.data, "num_images": data.num_images}
        columns = (data.image_column, data.caption_columns)
        write_feature_cache(data.cache_features, sources, *columns, transform, backbone.to(accelerator.device), about)
    accelerator.wait_for_everyone()
    folder, streaming = data.cache_features, data.streaming
    return [load_source(folder, "train", image_column=TOKENS, columns=[CAPTIONS], streaming=streaming)]


def parameter_groups(objective: "TextAlignment") -> list[dict]:
    """Return AdamW's groups: weight decay for matrices, none for biases, norms, layer scales and the logit scale."""
    trained = [(name, tensor) for name, tensor in objective.named_parameters() if tensor.requires_grad]
    groups = []
    for decayed in (True, False):
        members = [(name, tensor) for name, tensor in trained if (tensor.ndim >= 2) == decayed]
        names, params = zip(*members, strict=True)
        kinds = {"lr_multiplier": 1.0, "wd_multiplier": float(decayed), "is_last_layer": False, "is_backbone": False}
        groups.append({"names": list(names), "params": list(params), **kinds})
    return groups


def align(recipe: AlignRecipe) -> "RunResult":
    """Train as the recipe says; raises `Refused` for a recipe that cannot be run, before the first step."""
    import numpy as np
    import torch

    from dinov3_hf.models.processing_dinotxt import DinoTxtProcessor
    from dinov3_hf.provenance import versions
    from dinov3_hf.recipe import check_output
    from dinov3_hf.training.batches.collate import make_loader
    from dinov3_hf.training.engine.loop import train
    from dinov3_hf.training.engine.sharding import build_accelerator
    from dinov3_hf.training.run import check_output_folder, finish, prepare_output
    from dinov3_hf.training.schedules import StepValues, warmup_cosine

    from .alignment import TextAlignment
    from .model_card import write_model_card
    from .pairs import CaptionBatches, ImageTransform
    from .towers import build_model, build_tokenizer, load_backbone

    towers, data, alignment, run = recipe.towers, recipe.data, recipe.alignment, recipe.run
    check_output_folder(recipe)
    if data.cache_features is not None:
        check_output(data.cache_features, "cache_features")
    sources = open_sources(data)
    backbone, image_processor = load_backbone(towers)
    size = data.image_size or image_processor.size["height"]
    patch = backbone.config.patch_size
    if size % patch:
        raise Refused(f"image_size: got {size}, accepted: a multiple of the backbone's patch size ({patch})")
    backbone.config.image_size = size
    image_processor.size = {"height": size, "width": size}
    tokenizer = build_tokenizer(towers, sources, data.caption_columns)
    accelerator = build_accelerator(run)
    torch.manual_seed(run.seed)
    objective = TextAlignment(
        build_model(towers, backbone, tokenizer),
        alignment.gram_weight,
        None if towers.save_backbone else towers.backbone,
    )
    processor = DinoTxtProcessor(image_processor, tokenizer)
    mean, std = image_processor.image_mean, image_processor.image_std
    transform = ImageTransform(size, mean, std, data.random_crop_scale)
    probe = build_probe(data, transform, tokenizer)
    if data.cache_features is not None:
        sources = cache_features(data, sources, transform, backbone, accelerator)
    output_dir = prepare_output(recipe, accelerator, objective)
    rank, processes = accelerator.process_index, accelerator.num_processes
    width = backbone.config.hidden_size

    def build_loader(step: int, epoch: int) -> "StatefulDataLoader":
        first = step * alignment.gradient_accumulation_steps
        place = (alignment.batch_size, run.seed, rank, processes, first, epoch)
        return make_loader(CaptionBatches(sources, data, transform, tokenizer, width, *place), data.num_workers)

    steps, warmup = alignment.steps, alignment.lr_warmup_steps
    rates = warmup_cosine(0.0, alignment.lr, 0.0, warmup, steps - warmup, steps)
    schedules = StepValues({"lr": rates, "weight_decay": np.full(steps, alignment.weight_decay)})
    accelerator.wait_for_everyone()
    trained = sum(tensor.numel() for tensor in objective.parameters() if tensor.requires_grad)
    accelerator.print(
        f"text tower and blocks: {trained:,} parameters on a frozen backbone of "
        f"{sum(tensor.numel() for tensor in backbone.parameters()):,}; {steps} steps of "
        f"{alignment.batch_size * alignment.gradient_accumulation_steps * processes} pairs; {len(tokenizer)} tokens"
    )

    def export(directory: Path, state: dict, metrics: dict) -> None:
        objective.export(directory)
        if accelerator.is_main_process:
            processor.save_pretrained(directory)
            write_model_card(directory, recipe.as_flat_dict(), state, metrics, versions(), tokenizer.known_words)

    result = train(
        objective,
        lambda: parameter_groups(objective),
        build_loader,
        schedules,
        accelerator,
        alignment,
        run,
        recipe.as_flat_dict(),
        export,
        None if probe is None else lambda: probe(objective.model),
    )
    return finish(accelerator, result, [output_dir / "model"], "pairs", "skipped")
