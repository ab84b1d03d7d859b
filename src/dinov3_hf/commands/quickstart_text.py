"""The quickstart's second half: a text tower for the model just trained, and what can be found by words."""

import shutil
from pathlib import Path


NUM_SCENES = 6000
NUM_PICTURES = 6
PALETTE_SEED = 3


def recipe_on_scenes(folder: Path, model: Path, steps: int, run):
    """Return the recipe that aligns a tiny text tower to `model` on captions of scenes, in `folder`; `run` is that of the model."""
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


def align_on_scenes(recipe):
    """Align a text tower by a recipe of `recipe_on_scenes`; returns the run's result."""
    from dinov3_hf.text_alignment.align import align

    if recipe.run.overwrite:
        # They are another model's.
        shutil.rmtree(recipe.data.cache_features, ignore_errors=True)
    return align(recipe)


def measure_words(folder: Path, num_test: int) -> tuple[list, list]:
    """Measure zero-shot classification and segmentation on held-out scenes; returns results and picture rows.

    The threshold of the background is chosen on scenes of the train split.
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
    # Windows of the whole image, a quarter and a ninth, each judged as a whole too.
    settings = {"scales": (1.0, 2.0, 3.0), "whole_windows": True}
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
            logits = segment_logits(
                model, pixels, embeddings, None, None, settings["scales"], tuple(mask.shape), image_embeddings
            )
        found = segment(logits, threshold) + 1
        pictures = (image.permute(1, 2, 0).numpy(), colours[mask.numpy()], colours[found.numpy()])
        rows.append(tuple(upscale(picture, 2) for picture in pictures))
    return results, rows
