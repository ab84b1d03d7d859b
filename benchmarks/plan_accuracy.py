"""How close is the memory estimated by `dinov3 pretrain --plan` to that of real training?

A fresh process builds the recipe's networks and takes a few training steps in fp32 on the CPU, as the training loop
does. "measured" is its peak resident memory minus the resident memory just before the networks are built; "planned" is
the plan's total. Only the measured value includes kernels' scratch space and heap fragmentation by freed tensors. The
second line avoids fragmentation by allocating every large tensor with its own mmap (glibc's MALLOC_MMAP_THRESHOLD_).

    python benchmarks/plan_accuracy.py --size vits16 --batch-size 4
"""

import argparse
import os
import resource
import subprocess
import sys

import torch

from dinov3_hf.recipe import build_recipe
from dinov3_hf.training.arguments import PretrainRecipe
from dinov3_hf.training.engine.loop import build_optimizer, clip_gradients, set_rates
from dinov3_hf.training.initialization import build_student
from dinov3_hf.training.masking import draw_masks
from dinov3_hf.training.param_groups import parameter_groups
from dinov3_hf.training.planning.plan import GIB, make_plan
from dinov3_hf.training.schedules import Schedules
from dinov3_hf.training.self_distillation import SelfDistillation


TOLERANCE = 0.25


def train_steps(recipe: PretrainRecipe, steps: int) -> None:
    """Take training steps of the recipe on random pixels."""
    optimization, crops = recipe.optimization, recipe.crops
    student, _ = build_student(recipe.model, recipe.crops)
    objective = SelfDistillation(student, recipe.objective).train()
    optimizer = build_optimizer(parameter_groups(student, 0.9, 0.2), optimization.adam_betas)
    schedules, size = Schedules(optimization, optimization.batch_size), optimization.batch_size
    for step in range(steps):
        grid = (crops.global_crop_size // student.config.patch_size,) * 2
        masks = draw_masks(grid, 2, size, step, 0, crops.mask_probability, crops.mask_ratio, 0, size)
        batch = {
            "global_crops": torch.randn(2, size, 3, crops.global_crop_size, crops.global_crop_size),
            "local_crops": torch.randn(crops.local_crops, size, 3, crops.local_crop_size, crops.local_crop_size),
            "masks": torch.from_numpy(masks),
        }
        values = schedules.values_at(step)
        set_rates(optimizer, values)
        objective.before_step(step)
        optimizer.zero_grad(set_to_none=True)
        objective(batch, values).loss.backward()
        clip_gradients(objective.networks(), optimization.clip_grad_norm)
        optimizer.step()
        objective.after_step(step, values)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="vits16")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--measure", action="store_true", help="take the steps and print the bytes (the fresh process)"
    )
    arguments = parser.parse_args()
    recipe = build_recipe(
        PretrainRecipe,
        size=arguments.size,
        batch_size=arguments.batch_size,
        dino_head_num_prototypes=arguments.prototypes,
        ibot_head_num_prototypes=arguments.prototypes,
    )
    if arguments.measure:
        before = resident()
        train_steps(recipe, arguments.steps)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
        return 0
    planned, far = sum(make_plan(recipe, 1).memory["one process"].values()), False
    print(f"{arguments.size}, batch {arguments.batch_size}, {arguments.prototypes} prototypes, fp32")
    for name, settings in (("heap as it is", {}), ("heap without holes", {"MALLOC_MMAP_THRESHOLD_": "65536"})):
        command = [sys.executable, __file__, "--measure", *sys.argv[1:]]
        shown = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | settings
        ).stdout
        measured = int(shown.split()[-1])
        ratio = planned / measured
        print(f"{name:20} measured {measured / GIB:.3f} GiB, planned {planned / GIB:.3f} GiB, ratio {ratio:.3f}")
        far |= abs(ratio - 1) > TOLERANCE
    return int(far)


if __name__ == "__main__":
    sys.exit(main())
