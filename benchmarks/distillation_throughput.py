"""How much time does distilling three students together save over three separate runs?

Both take the same optimizer steps on the same batch: together, the teacher runs once; separately, once for each
student. Rounds are interleaved in changing order; medians are printed. Weights are random, because only times are
compared.

    python benchmarks/distillation_throughput.py --teacher vitl16 --students vits16 vits16plus convnext_tiny
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.training.arguments import CropArguments, ObjectiveArguments, OptimizationArguments
from dinov3_hf.training.batches.collate import MASKS
from dinov3_hf.training.distill_arguments import DistillArguments
from dinov3_hf.training.distillation import Distillation
from dinov3_hf.training.engine.freed_memory import keep_freed_memory
from dinov3_hf.training.engine.loop import build_optimizer, clip_gradients, set_rates
from dinov3_hf.training.param_groups import parameter_groups
from dinov3_hf.training.schedules import Schedules
from dinov3_hf.training.students import HeadedNetwork, new_student, student_config


def training_step(
    teacher: HeadedNetwork, names: list[str], batch: dict, device: str, half: torch.autocast
) -> Callable:
    """Return a function that takes one whole training step of these students, as the training loop does."""
    arguments = DistillArguments(students=names)
    crops = CropArguments(global_crop_size=batch["global_crops"].shape[-1], local_crops=0)
    students = {}
    for spec in arguments.specs():
        config = student_config(spec, arguments, crops, None)
        students[spec.name] = new_student(spec.name, config, arguments, teacher, None, seed=0)
    objective = Distillation(teacher, students, ObjectiveArguments(koleo_weight=0.0), "cosine").to(device).train()
    optimization = OptimizationArguments(clip_grad_norm=3.0)
    groups = [group for net in students.values() for group in parameter_groups(net, 0.9, 0.2)]
    optimizer, values = build_optimizer(groups, optimization.adam_betas), Schedules(optimization, 64).values_at(20000)

    def step() -> None:
        set_rates(optimizer, values)
        optimizer.zero_grad(set_to_none=True)
        with half:
            output = objective(batch, values)
        output.loss.item()
        output.loss.backward()
        clip_gradients(objective.networks(), optimization.clip_grad_norm)
        optimizer.step()
        objective.after_step(0, values)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="vitl16", help="named size")
    parser.add_argument("--students", nargs="+", default=["vits16", "vits16plus", "convnext_tiny"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    backbone = Dinov3Model(Dinov3Config.from_size(arguments.teacher))
    teacher = HeadedNetwork(backbone, nn.Identity(), nn.Identity()).to(arguments.device)
    side, images = arguments.image_size, arguments.batch
    batch = {"global_crops": torch.randn(2, images, 3, side, side)}
    for size in (16, 32):
        batch[MASKS + str(size)] = torch.ones(2, images, (side // size) ** 2, dtype=torch.bool)
    batch = {name: value.to(arguments.device) for name, value in batch.items()}
    half = torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bf16)
    together = training_step(teacher, arguments.students, batch, arguments.device, half)
    apart = [training_step(teacher, [name], batch, arguments.device, half) for name in arguments.students]
    runs = {"together": together, "apart": lambda: [step() for step in apart]}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    # On a CPU the time of this process alone: others that keep the machine busy do not count.
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    for index in range(arguments.rounds + 1):
        for name in sorted(runs, reverse=bool(index % 2)):
            start = clock()
            runs[name]()
            seconds[name].append(clock() - start)
    # The first round warms up.
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    precision = "bf16" if arguments.bf16 else "fp32"
    print(f"torch {torch.__version__}, {arguments.device}, {precision}, {torch.get_num_threads()} threads")
    print(f"teacher {arguments.teacher}, students {', '.join(arguments.students)}, {images} images of {side} pixels")
    for name, value in medians.items():
        print(f"{name:10} {value:8.3f} s for a step of each of {len(apart)}   {images / value:8.2f} images/s")
    print(f"apart / together {medians['apart'] / medians['together']:.2f}")


if __name__ == "__main__":
    main()
