"""`dinov3 align`: train a text tower on top of a frozen backbone."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dinov3_hf.recipe import add_recipe_flags
    from dinov3_hf.text_alignment.arguments import AlignRecipe

    add_recipe_flags(parser, AlignRecipe)


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.recipe import recipe_from_flags
    from dinov3_hf.text_alignment.align import align
    from dinov3_hf.text_alignment.arguments import AlignRecipe

    return align(recipe_from_flags(arguments, AlignRecipe)).exit_code
