"""The table of tasks of `dinov3 evaluate`: each task is one file in this folder and one line in this file."""

from ..task import make_recipe, make_table
from . import (
    correspondence,
    depth,
    discovery,
    fairness,
    image_text_retrieval,
    knn,
    layers,
    linear,
    linear_sgd,
    outliers,
    patch_knn,
    resolution,
    retrieval,
    segmentation,
    tracking,
    video,
    zero_shot,
    zero_shot_segmentation,
)


# In the order of --help.
TASKS = make_table(
    [
        knn.TASK,
        patch_knn.TASK,
        linear.TASK,
        linear_sgd.TASK,
        segmentation.TASK,
        depth.TASK,
        correspondence.TASK,
        tracking.TASK,
        discovery.TASK,
        retrieval.TASK,
        video.TASK,
        outliers.TASK,
        layers.TASK,
        resolution.TASK,
        fairness.TASK,
        zero_shot.TASK,
        image_text_retrieval.TASK,
        zero_shot_segmentation.TASK,
    ]
)
EvaluateRecipe = make_recipe(TASKS)
