"""The second half of the quickstart: align a text tower to the model just trained, and evaluate it zero-shot."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import numpy as np

    from dinov3_hf.evaluation.result import Result
    from dinov3_hf.text_alignment.arguments import AlignRecipe
    from dinov3_hf.training.arguments import RunArguments
    from dinov3_hf.training.engine.loop import RunResult


NUM_SCENES = 6000
NUM_PICTURES = 6
PALETTE_SEED = 3


def recipe_on_scenes(folder: Path, model: Path, steps: int, run: "RunArguments") -> "AlignRecipe":
    """Return the recipe that aligns a tiny text tower to `model` on captions of rendered scenes, written to `folder`.

    Seed, resume and overwrite are those of `run`, the run that pretrained the model.
    """
    from dinov3_hf.recipe import build_recipe
    from dinov3_hf.text_alignment.arguments import AlignRecipe

    given = {
        "backbone": str(model),
        "output_dir": str(folder),
        "cache_features": str(folder / "features"),
        "steps": steps,
        "lr_warmup_steps": min(50, steps),
        "num_images": min(NUM_SCENES, 64 * steps),
        "seed": run.seed,
        "resume": run.resume,
        "overwrite": run.overwrite,
    }
    return build_recipe(AlignRecipe, "tiny_cpu", **given)


def align_on_scenes(recipe: "AlignRecipe") -> "RunResult":
    """Align a text tower with a recipe from `recipe_on_scenes`; returns the result of the run."""
    from dinov3_hf.text_alignment.align import align

    if recipe.run.overwrite:
        # Features cached by the earlier run come from another model.
        assert recipe.data.cache_features is not None
        shutil.rmtree(recipe.data.cache_features, ignore_errors=True)
    return align(recipe)


def measure_words(folder: Path, num_test: int) -> tuple[list["Result"], list[tuple["np.ndarray", ...]]]:
    """Evaluate zero-shot classification and segmentation on test scenes.

    The background threshold is chosen on scenes of the train split. Returns the results, and rows of pictures: image,
    true classes, predicted classes.
    """
    import numpy as np
    import torch

    from dinov3_hf import DinoTxtModel, DinoTxtProcessor
    from dinov3_hf.data.masks import read_mask
    from dinov3_hf.data.pixels import decode_image
    from dinov3_hf.data.scene_rendering import SCENE_CLASSES
    from dinov3_hf.data.scenes import load_scenes
    from dinov3_hf.evaluation.zero_shot import evaluate_zero_shot
    from dinov3_hf.evaluation.zero_shot_segmentation import (
        choose_background_threshold,
        evaluate_zero_shot_segmentation,
    )
    from dinov3_hf.pipelines.class_embeddings import class_embeddings
    from dinov3_hf.pipelines.class_maps import fit_image, segment, segment_logits
    from dinov3_hf.visualization.features import upscale

    model, processor = DinoTxtModel.from_pretrained(folder).eval(), DinoTxtProcessor.from_pretrained(folder)
    templates = ["{}", "a {}"]
    names = ["background", *SCENE_CLASSES]
    # Windows that cover the whole image, a quarter and a ninth; the score of each whole window counts too.
    scales = (1.0, 2.0, 3.0)
    settings: dict[str, Any] = {"scales": scales, "whole_windows": True}
    known = load_scenes("train", 60, subset="crowded")
    threshold = choose_background_threshold(model, processor, known, names, templates, **settings)
    held_out = load_scenes("test", num_test, subset="crowded")
    results = [
        evaluate_zero_shot(
            model, processor, load_scenes("test", num_test), list(SCENE_CLASSES), templates, label_column="label"
        ),
        evaluate_zero_shot_segmentation(
            model, processor, held_out, names, templates, background=0, background_threshold=threshold, **settings
        ),
    ]
    embeddings, image_embeddings = (
        class_embeddings(model, processor.tokenizer, list(SCENE_CLASSES), templates, part)
        for part in ("patch", "image")
    )
    patch, window = model.config.vision_config.patch_size, model.config.vision_config.image_size
    colours = np.random.default_rng(PALETTE_SEED).integers(40, 256, (len(names), 3), dtype=np.uint8)
    colours[0] = 0
    rows = []
    from datasets import Image

    undecoded = held_out.cast_column("image", Image(decode=False)).cast_column("mask", Image(decode=False))
    for row in undecoded.select(range(min(NUM_PICTURES, len(held_out)))):
        image, mask = decode_image(row["image"]), read_mask(row["mask"])
        pixels = fit_image(image, processor.image_processor, window, patch)
        with torch.inference_mode():
            logits = segment_logits(model, pixels, embeddings, None, None, scales, tuple(mask.shape), image_embeddings)
        predicted = segment(logits, threshold) + 1
        pictures = (image.permute(1, 2, 0).numpy(), colours[mask.numpy()], colours[predicted.numpy()])
        rows.append(tuple(upscale(picture, 2) for picture in pictures))
    return results, rows
