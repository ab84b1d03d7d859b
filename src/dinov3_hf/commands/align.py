"""`dinov3 align`: train a text tower on top of a frozen backbone."""

import argparse
from pathlib import Path

from ..terminal import evaluation_of, print_next, resumed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dinov3_hf.recipe import add_recipe_flags
    from dinov3_hf.text_alignment.arguments import AlignRecipe

    add_recipe_flags(parser, AlignRecipe)


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.recipe import recipe_from_flags
    from dinov3_hf.text_alignment.align import align
    from dinov3_hf.text_alignment.arguments import AlignRecipe

    recipe = recipe_from_flags(arguments, AlignRecipe)
    result, output = align(recipe), Path(recipe.run.output_dir)
    if result.finished:
        model = output / "model"
        print_next(
            [*evaluation_of(model, output), "--task", "zero-shot"],
            ["demo", "open_vocabulary_segmentation", "--model", str(model)],
        )
    else:
        print_next(resumed("align", arguments.given))
    return result.exit_code
