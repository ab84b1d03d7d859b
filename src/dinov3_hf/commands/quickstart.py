"""`dinov3 quickstart`: pretrain a tiny ViT on rendered scenes, align a text tower, evaluate both, write a report."""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..recipe import Recipe, add_recipe_flags, described, recipe_from_flags, require
from ..terminal import print_next, typed


if TYPE_CHECKING:
    import numpy as np

    from dinov3_hf.data.views import Preprocessing
    from dinov3_hf.evaluation.result import Result
    from dinov3_hf.models.modeling_dinov3 import Dinov3Model
    from dinov3_hf.training.arguments import PretrainRecipe
    from dinov3_hf.visualization.report import Pictures


RECIPE = "tiny_cpu"


@dataclass
class QuickstartArguments:
    """What is trained, for how long, and on how many scenes it is evaluated."""

    recipe: str = described("pretraining recipe: a name from the package or a YAML file", RECIPE, common=True)
    output_dir: str = described("folder for the run and report.html", "outputs/quickstart", common=True)
    steps: int | None = described(
        "optimizer steps; null: the recipe's number, about five minutes on two cores", None, at_least=1, common=True
    )
    text_steps: int = described(
        "optimizer steps of the text tower, 0 to train none; the default takes three minutes on two cores",
        400,
        at_least=0,
        common=True,
    )
    seed: int = described(
        "seed of weights, data order, crops and masks", 0, at_least=0, at_most=2**32 - 1, common=True
    )
    resume: bool = described("continue from the newest checkpoint in output_dir", False, common=True)
    overwrite: bool = described("delete the run in output_dir and start again", False, common=True)
    num_train: int = described("labelled scenes that the k-NN classifier searches", 2000, at_least=10, common=True)
    num_test: int = described("scenes used for testing", 500, at_least=1, common=True)

    def validate(self) -> None:
        require(not (self.resume and self.overwrite), "resume", self.resume, "resume or overwrite, not both")


@dataclass
class QuickstartRecipe(Recipe):
    """All fields of a quickstart."""

    quickstart: QuickstartArguments = field(default_factory=QuickstartArguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_flags(parser, QuickstartRecipe)


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.recipe import build_recipe
    from dinov3_hf.training.arguments import PretrainRecipe
    from dinov3_hf.training.pretrain import pretrain

    from .quickstart_text import recipe_on_scenes

    settings = recipe_from_flags(arguments, QuickstartRecipe).quickstart
    names = ("output_dir", "steps", "seed", "resume", "overwrite")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    recipe = build_recipe(PretrainRecipe, settings.recipe, **given)
    folder = Path(recipe.run.output_dir)
    words, text_recipe = None, None
    if settings.text_steps:
        # Built now, so that an invalid recipe is refused before anything is trained.
        words = folder / "text"
        text_recipe = recipe_on_scenes(words, folder / "model", settings.text_steps, recipe.run)
    start = time.perf_counter()
    result = pretrain(recipe)
    if not result.finished:
        return result.exit_code
    seconds = time.perf_counter() - start
    print(f"trained in {seconds:.0f} s; training a text tower ...")
    if text_recipe is not None:
        from .quickstart_text import align_on_scenes

        result = align_on_scenes(text_recipe)
        if not result.finished:
            return result.exit_code
    print("evaluating frozen features ...")
    report = measure_and_report(recipe, seconds, settings.num_train, settings.num_test, words)
    print(f"report: {report}")
    print_next(*demo_commands(report.parent, words))
    return 0


def demo_commands(folder: Path, words: Path | None) -> list[list[str]]:
    """Return the commands, as arguments of `dinov3`, that open demos of the models just trained."""
    commands = [["demo", "dense_features", "--model", str(folder / "model")]]
    if words is not None:
        commands.append(["demo", "open_vocabulary_segmentation", "--model", str(words / "model")])
    return commands


def measure_and_report(
    recipe: "PretrainRecipe", seconds: float, num_train: int, num_test: int, words: Path | None
) -> Path:
    """Evaluate the run's model against its baselines, and the text tower in the folder `words` against chance.

    Writes results.json and report.html; returns the path of the report.
    """
    import tempfile

    from dinov3_hf.evaluation.features import randomly_initialised
    from dinov3_hf.evaluation.results import format_table, write_results
    from dinov3_hf.training.engine.monitor import read_metrics
    from dinov3_hf.visualization.report import Curve, Pictures, compare, verdict, write_report

    from ..evaluation.loading import load_evaluated_model
    from ..evaluation.run import evaluate
    from ..evaluation.tasks import EvaluateRecipe
    from ..recipe import build_recipe

    folder = Path(recipe.run.output_dir)
    with tempfile.TemporaryDirectory() as cache:
        settings = build_recipe(
            EvaluateRecipe,
            model=str(folder / "model"),
            task=["knn", "patch-knn"],
            num_train=num_train,
            num_test=num_test,
            k=[10],
            seed=recipe.run.seed,
            output_dir=str(folder),
            cache_dir=cache,
        )
        record = evaluate(settings)
    text_results: list[Result] = []
    segmented: list[tuple[np.ndarray, ...]] = []
    if words is not None:
        from .quickstart_text import measure_words

        text_results, segmented = measure_words(words / "model", num_test)
        record["results"] += text_results
    write_results(record, folder)
    print(format_table(record["results"]))

    model, _, preprocessing = load_evaluated_model(settings)
    pictures = [before_and_after(randomly_initialised(model, recipe.run.seed), model, preprocessing)]
    metrics = read_metrics(folder / "metrics.jsonl")
    parts = {"dino_global": "image, global crops", "dino_local": "image, local crops", "ibot": "masked patches"}
    losses = {name: [(line["step"], line[key]) for line in metrics] for key, name in parts.items()}
    total = {"weighted sum": [(line["step"], line["loss"]) for line in metrics]}
    tables = [comparison for result in record["results"] for comparison in compare(result)]
    if segmented:
        threshold = text_results[-1].protocol["background_threshold"]
        caption = f"Classes are found by their names alone; black is background: no class leads by {threshold}."
        columns = ("input", "true classes", "predicted from names")
        pictures.append(Pictures("Open-vocabulary segmentation", columns, segmented, caption))
    images = recipe.optimization.steps * recipe.optimization.batch_size
    opening = (
        f"A ViT of {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters saw {images:,} rendered scenes "
    )
    opening += f"without labels in {seconds / 60:.1f} minutes. "
    own_images = f"dinov3 pretrain --config {RECIPE} --data path/to/images --output-dir outputs/mine --resume"
    measure = f"dinov3 evaluate {folder / 'model'} --task knn --data path/to/labelled_images"
    return write_report(
        folder / "report.html",
        title="DINOv3 quickstart",
        summary=opening + " ".join(verdict(table) for table in tables if "accuracy" not in table.title),
        curves=[Curve("Losses, unweighted", losses), Curve("Loss", total)],
        tables=tables,
        pictures=pictures,
        notes={
            "Look at it in the browser": "\n".join(map(typed, demo_commands(folder, words))),
            "Go on with your own images": f"{own_images}\n{measure}",
            "Recipe": recipe.as_flat_dict(),
            "Versions": record["versions"],
        },
    )


def before_and_after(
    random_init: "Dinov3Model", trained: "Dinov3Model", preprocessing: "Preprocessing", num_images: int = 9
) -> "Pictures":
    """Show test images next to PCA maps of their patch tokens, from a randomly initialised and the trained network."""
    import torch

    from dinov3_hf.data.pixels import decode_image
    from dinov3_hf.data.scenes import load_scenes
    from dinov3_hf.visualization.features import pca_map, upscale
    from dinov3_hf.visualization.report import Pictures

    # Twice the training size, for a finer grid of patches; RoPE allows any size.
    side = 2 * preprocessing.image_size // trained.config.patch_size
    scenes = load_scenes("test", num_images, subset="crowded", image_size=side * trained.config.patch_size)
    inputs = torch.stack([decode_image(image) for image in scenes["image"]])
    pixels = preprocessing.normalize(inputs).to(trained.device)
    with torch.inference_mode():
        maps = [pca_map(model(pixels).patch_tokens, (side, side)) for model in (random_init, trained)]
    rows = [
        (image.permute(1, 2, 0).numpy(), *(upscale(one[index], 8) for one in maps))
        for index, image in enumerate(inputs)
    ]
    return Pictures(
        "Patch features, before and after",
        ("input", "random init", "trained"),
        rows,
        "The first three principal components of each patch token, shown as red, green and blue; one PCA per column. "
        "Patches with similar features have similar colours.",
    )
