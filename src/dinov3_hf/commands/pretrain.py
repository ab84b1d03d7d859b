"""`dinov3 pretrain`: train a DINOv3 on a stream of images."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dinov3_hf.training.recipe import add_recipe_flags

    add_recipe_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.training.pretrain import pretrain
    from dinov3_hf.training.recipe import recipe_from_flags

    return 0 if pretrain(recipe_from_flags(arguments)).finished else 130
