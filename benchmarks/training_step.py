"""How fast is a training step, compared with its bare matrix products? Prints images per second and peak memory.

Both run in one process in interleaved rounds. The products are those of the student's forward and backward pass, of
the teacher's forward pass and of all heads, on random numbers of the same shapes and data type.

    python benchmarks/training_step.py --dtypes float32 bfloat16
    python benchmarks/training_step.py --device cuda --compile --sizes vits16 vitb16 vitl16 --batch 64 \\
        --prototypes 65536
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining
from dinov3_hf.training.arguments import ObjectiveArguments, OptimizationArguments
from dinov3_hf.training.engine.freed_memory import keep_freed_memory
from dinov3_hf.training.engine.loop import build_optimizer, clip_gradients, set_rates
from dinov3_hf.training.engine.sharding import blocks
from dinov3_hf.training.masking import draw_masks
from dinov3_hf.training.param_groups import parameter_groups
from dinov3_hf.training.schedules import Schedules
from dinov3_hf.training.self_distillation import SelfDistillation


GLOBAL_SIZE, LOCAL_SIZE, LOCAL_CROPS = 224, 96, 8
# Dense bf16 peak of one H100 or H200 SXM, in FLOP/s.
GPU_PEAK = 989e12


def training_step(
    config: Dinov3Config, batch: int, dtype: torch.dtype, device: str, compiled: bool
) -> tuple[Callable[[], None], int]:
    """Return one whole training step (schedules, forward, backward, clipping, AdamW, EMA) and its masked patches."""
    torch.manual_seed(0)
    objective = SelfDistillation(Dinov3ForPreTraining(config), ObjectiveArguments()).to(device).train()
    if compiled:
        for block in blocks(objective):
            block.compile()
    optimization = OptimizationArguments(clip_grad_norm=3.0)
    schedules = Schedules(optimization, batch)
    optimizer = build_optimizer(parameter_groups(objective.student, 0.9, 0.2), optimization.adam_betas)
    grid = (GLOBAL_SIZE // config.patch_size,) * 2
    masks = draw_masks(grid, 2, batch, 0, 0, 0.5, (0.1, 0.5), 0, batch)
    tensors = {
        "global_crops": torch.randn(2, batch, 3, GLOBAL_SIZE, GLOBAL_SIZE, device=device),
        "local_crops": torch.randn(LOCAL_CROPS, batch, 3, LOCAL_SIZE, LOCAL_SIZE, device=device),
        "masks": torch.from_numpy(masks).to(device),
    }
    half = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)

    def step() -> None:
        values = schedules.values_at(20000)
        set_rates(optimizer, values)
        optimizer.zero_grad(set_to_none=True)
        with half:
            output = objective(tensors, values)
        output.loss.item()
        output.loss.backward()
        clip_gradients(objective.networks(), optimization.clip_grad_norm)
        optimizer.step()
        objective.after_step(20000, values)

    return step, int(masks.sum())


def linear_products(rows: int, inputs: int, outputs: int, backward: str, options: dict) -> tuple[list, float]:
    """Return the products of a linear layer on `rows`; "both" adds weight and input gradients, "weight" the first."""
    x, weight, gradient = (
        torch.randn(*shape, **options) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
    )
    runs = [lambda: linear(x, weight)]
    if backward:
        runs.append(lambda: gradient.T @ x)
    if backward == "both":
        runs.append(lambda: gradient @ weight)
    return runs, 2.0 * rows * inputs * outputs * len(runs)


def attention_products(
    batch: int, tokens: int, heads: int, width: int, backward: bool, options: dict
) -> tuple[list, float]:
    """Return the products of attention over [batch, tokens]: scores and values, and the four of the backward pass."""
    q = torch.randn(batch * heads, tokens, width // heads, **options)
    scores = torch.randn(batch * heads, tokens, tokens, **options)
    runs = [lambda: torch.bmm(q, q.transpose(1, 2)), lambda: torch.bmm(scores, q)]
    if backward:
        runs += [runs[0], runs[1], runs[1], lambda: torch.bmm(scores.transpose(1, 2), q)]
    return runs, 2.0 * batch * tokens * tokens * width * len(runs)


def products(config: Dinov3Config, batch: int, masked: int, dtype: torch.dtype, device: str) -> tuple[Callable, float]:
    """Return all matrix products of a training step, and their FLOPs."""
    options = {"dtype": dtype, "device": device}
    width, depth, hidden, patch = (
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        config.patch_size,
    )
    groups = [(2 * batch, (GLOBAL_SIZE // patch) ** 2), (LOCAL_CROPS * batch, (LOCAL_SIZE // patch) ** 2)]
    layers = 3 if config.use_gated_mlp else 2
    runs, flops = [], 0.0

    def add(part: tuple[list, float], times: int = 1) -> None:
        nonlocal flops
        runs.extend(part[0] * times)
        flops += part[1] * times

    for crops, backward in ((groups, "both"), (groups[:1], "")):
        rows = sum(count * (patches + 1 + config.num_register_tokens) for count, patches in crops)
        embed = "weight" if backward else ""
        for count, patches in crops:
            add(linear_products(count * patches, 3 * patch**2, width, embed, options))
            tokens = patches + 1 + config.num_register_tokens
            add(attention_products(count, tokens, config.num_attention_heads, width, bool(backward), options), depth)
        add(linear_products(rows, width, width, backward, options), 4 * depth)
        add(linear_products(rows, width, hidden, backward, options), (layers - 1) * depth)
        add(linear_products(rows, hidden, width, backward, options), depth)
        for head, count in (("dino", sum(count for count, _ in crops)), ("ibot", masked)):
            inner, neck = getattr(config, f"{head}_head_hidden_size"), getattr(config, f"{head}_head_bottleneck_size")
            add(linear_products(count, width, inner, backward, options))
            add(linear_products(count, inner, inner, backward, options))
            add(linear_products(count, inner, neck, backward, options))
            add(linear_products(count, neck, getattr(config, f"{head}_head_num_prototypes"), backward, options))

    def run() -> None:
        for product in runs:
            product()

    return run, flops


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_memory(device: str) -> float:
    """Return the peak memory so far, in GB."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["vits16"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile every block")
    parser.add_argument("--return-freed-memory", action="store_true", help="let glibc give freed memory back")
    arguments = parser.parse_args()
    batch, device = arguments.batch, arguments.device
    if device == "cpu" and not arguments.return_freed_memory:
        keep_freed_memory()
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, batch {batch}, drop path 0")
    for size in arguments.sizes:
        for name in arguments.dtypes:
            dtype = getattr(torch, name)
            heads = {f"{head}_head_num_prototypes": arguments.prototypes for head in ("dino", "ibot")}
            config = Dinov3Config.from_size(size, image_size=GLOBAL_SIZE, **heads)
            if device != "cpu":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            step, masked = training_step(config, batch, dtype, device, arguments.compile)
            for _ in range(2):
                step()
            memory = peak_memory(device)  # before the products take theirs
            bare, flops = products(config, batch, masked, dtype, device)
            seconds: dict[Callable[[], None], list[float]] = {step: [], bare: []}
            for _ in range(arguments.rounds):
                for run in (step, bare):
                    synchronize(device)
                    start = time.perf_counter()
                    run()
                    synchronize(device)
                    seconds[run].append(time.perf_counter() - start)
            ours, ceiling = (statistics.median(values) for values in seconds.values())
            line = f"{size} {name:9} {batch / ours:8.2f} images/s, ceiling {batch / ceiling:8.2f}"
            line += f", ratio {ceiling / ours:.2f}, peak {memory:.2f} GB, {flops / 1e9:.0f} GFLOPs a step"
            print(line + (f", MFU {flops / ours / GPU_PEAK:.2f}" if device != "cpu" else ""), flush=True)
            del step, bare, seconds


if __name__ == "__main__":
    main()
