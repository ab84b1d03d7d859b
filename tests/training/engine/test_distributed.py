"""Two processes train as one does at the same global batch: DDP and FSDP2, every loss that spans processes active."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.training.arguments import GramArguments, ObjectiveArguments, OptimizationArguments, RunArguments
from dinov3_hf.training.engine.loop import train
from dinov3_hf.training.engine.sharding import blocks
from dinov3_hf.training.param_groups import parameter_groups
from dinov3_hf.training.schedules import Schedules
from dinov3_hf.training.self_distillation import SelfDistillation

from ...processes import run_processes


STEPS, GLOBAL_BATCH, PATCHES = 10, 8, 9


class Batches:
    """The same global batches for everyone; each process takes its rows."""

    def __init__(self, rank, world, accumulation, first_step):
        self.rank, self.parts, self.accumulation = rank, world * accumulation, accumulation
        self.readers, self.position = [world, 0, GLOBAL_BATCH // self.parts], first_step * accumulation

    def __iter__(self):
        while True:
            step, part = divmod(self.position, self.accumulation)
            generator = torch.Generator().manual_seed(step)
            batch = {
                "global_crops": torch.randn(2, GLOBAL_BATCH, 3, 12, 12, generator=generator),
                "local_crops": torch.randn(3, GLOBAL_BATCH, 3, 8, 8, generator=generator),
                "gram_crops": torch.randn(2, GLOBAL_BATCH, 3, 20, 20, generator=generator),
                # Ranks hold different numbers of masked patches; some crops have none.
                "masks": torch.rand(2, GLOBAL_BATCH, PATCHES, generator=generator)
                < torch.rand(2, GLOBAL_BATCH, 1, generator=generator) - 0.3,
            }
            rows = GLOBAL_BATCH // self.parts
            start = (part * self.parts // self.accumulation + self.rank) * rows
            self.position += 1
            counts = {"images_read": rows, "bad_images": 0, "bad_examples": [], "epoch": 0, "num_images": 4}
            yield {name: tensor[:, start : start + rows] for name, tensor in batch.items()} | counts

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def run(folder, name, accelerator, accumulation=1, steps=STEPS, on_batches=Batches, **fields):
    """Train the tiny network for a few steps through the package's own loop; returns losses, weights, and counts."""
    torch.manual_seed(0)
    config = Dinov3Config(
        patch_size=4,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_register_tokens=2,
        layerscale_value=0.5,
        image_size=12,
        **{f"{head}_head_{part}": 16 for head in ("dino", "ibot") for part in ("num_prototypes", "hidden_size")},
        **{f"{head}_head_bottleneck_size": 8 for head in ("dino", "ibot")},
        head_initializer_range=0.3,
    )
    gram = GramArguments(
        gram_teacher="ema_copy", gram_start_step=2, gram_crop_size=20, gram_update_every=3, gram_first_update=3
    )
    student = Dinov3ForPreTraining(config)
    objective = SelfDistillation(student, ObjectiveArguments(koleo_distributed=True), Dinov3Model(config), gram)
    optimization = OptimizationArguments(
        steps=STEPS,
        lr=5e-3,
        lr_scaling="none",
        lr_warmup_steps=2,
        momentum=0.9,
        freeze_last_layer_steps=2,
        teacher_temperature_warmup_steps=4,
        clip_grad_norm=1.0,
        gradient_accumulation_steps=accumulation,
    )
    arguments = RunArguments(
        output_dir=str(folder / name),
        log_every=1,
        probe_every=1,
        **{"save_every": 100, "keep_checkpoints": 1, **fields},
    )
    Path(arguments.output_dir).mkdir(exist_ok=True)
    accelerator.wait_for_everyone()
    rank, world = accelerator.process_index, accelerator.num_processes
    export = lambda directory, state, metrics: objective.export(directory)  # noqa: E731
    train(
        objective,
        lambda: parameter_groups(student, 0.9, 0.2),
        lambda step, epoch: on_batches(rank, world, accumulation, step),
        Schedules(optimization, GLOBAL_BATCH, gram),
        accelerator,
        optimization,
        arguments,
        {},
        export,
    )
    is_sharded = [isinstance(block, FSDPModule) for block in blocks(objective)]
    weights = {}
    for key, tensor in objective.state_dict().items():
        weights[key] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
    return {"weights": weights, "blocks": len(is_sharded), "sharded": sum(is_sharded)}


def losses(folder, name):
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines], dtype=torch.float64), lines


def work(rank, folder):
    os.environ["FSDP_VERSION"] = "2"
    accelerator, results = Accelerator(), {}
    results["ddp"] = run(folder, "ddp", accelerator)
    results["ddp_accumulated"] = run(folder, "ddp_accumulated", accelerator, accumulation=2)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    results["fsdp2"] = run(folder, "fsdp2", accelerator, save_every=6, keep_checkpoints=9)
    os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = "true"
    results["fsdp2_checkpointing"] = run(folder, "fsdp2_checkpointing", accelerator)
    os.environ.pop("FSDP_ACTIVATION_CHECKPOINTING")
    results["fsdp2_resumed"] = run(folder, "fsdp2_resumed", accelerator, resume=True)
    from dinov3_hf.training.losses import koleo

    gather = koleo.gather_rows
    koleo.gather_rows = lambda tensor, group: gather(tensor, group).detach()
    results["detached"] = run(folder, "detached", accelerator)
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    # As many threads as the ranks have: another order of summing is a difference that ten steps enlarge.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reference = run(folder, "single", Accelerator(), save_every=6, keep_checkpoints=9)
    reference["accumulated"] = run(folder, "single_accumulated", Accelerator(), accumulation=2)
    torch.set_num_threads(threads)
    # The run to resume: one process's checkpoint of step 6, read by two.
    source = folder / "single" / "checkpoints" / "step_00000006"
    shutil.copytree(source, folder / "fsdp2_resumed" / "checkpoints" / source.name)
    run_processes(work, folder)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return folder, reference, ranks


def distance(folder, reference, found, name, other="single"):
    """Return the largest relative difference of the losses and the largest absolute one of the weights."""
    expected, loss = losses(folder, other)[0], losses(folder, name)[0]
    apart = max((reference["weights"][key] - value).abs().max().item() for key, value in found["weights"].items())
    return ((loss - expected[-len(loss) :]) / expected[-len(loss) :]).abs().max().item(), apart


@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "fsdp2_checkpointing"])
def test_two_processes_equal_one(results, mode):
    folder, reference, ranks = results
    loss, weights = distance(folder, reference, ranks[0][mode], mode)
    print(f"{mode}: losses within {loss:.1e} relative, weights within {weights:.1e}")
    assert loss < 1e-5 and weights < 1e-5
    assert all(torch.equal(ranks[0][mode]["weights"][key], value) for key, value in ranks[1][mode]["weights"].items())
    lines = losses(folder, mode)[1]
    # Everything that spans processes or begins later took part.
    assert len(lines) == STEPS and all(line["koleo"] != 0 for line in lines)
    assert all("gram" in line and line["gram"] > 0 for line in lines[2:]) and "gram" not in lines[1]
    assert [line["images_read"] for line in lines] == [GLOBAL_BATCH * (step + 1) for step in range(STEPS)]


def test_weights_move(results):
    """The comparison means nothing if nothing is learnt."""
    _, reference, _ = results
    assert reference["weights"]["gram_updates"] == 3
    moved = reference["weights"]["student.dinov3.norm.weight"] - 1
    assert moved.abs().max() > 1e-3


def test_every_block_is_sharded(results):
    _, _, ranks = results
    assert all(rank["fsdp2"]["sharded"] == rank["fsdp2"]["blocks"] == 6 for rank in ranks)
    assert ranks[0]["ddp"]["sharded"] == 0


def test_negative_control_a_detached_gather_is_caught(results):
    folder, reference, ranks = results
    loss, weights = distance(folder, reference, ranks[0]["detached"], "detached")
    assert loss > 1e-4 or weights > 1e-4


def test_accumulation_sums_gradients_once(results):
    """Two processes equal one; neither equals the undivided batch, whose Sinkhorn-Knopp and KoLeo see all of it."""
    folder, reference, ranks = results
    found, name = ranks[0]["ddp_accumulated"], "ddp_accumulated"
    loss, weights = distance(folder, reference["accumulated"], found, name, "single_accumulated")
    # Passes of two rows go through other matrix kernels than those of four: up to 2e-5 after ten steps.
    assert loss < 5e-5 and weights < 5e-5
    assert distance(folder, reference, found, name)[0] > 1e-4


def test_checkpoint_of_one_process_resumes_on_two(results):
    """Tensors are the same whoever reads them: with the same batches the run goes on as the other did."""
    folder, reference, ranks = results
    loss, weights = distance(folder, reference, ranks[0]["fsdp2_resumed"], "fsdp2_resumed")
    assert len(losses(folder, "fsdp2_resumed")[0]) == STEPS - 6 and loss < 1e-5 and weights < 1e-5


def test_checkpoint_of_two_processes_resumes_on_one(results):
    folder, reference, _ = results
    source = folder / "fsdp2" / "checkpoints" / "step_00000006"
    shutil.copytree(source, folder / "one" / "checkpoints" / source.name)
    found = run(folder, "one", Accelerator(), resume=True)
    loss, weights = distance(folder, reference, found, "one")
    assert loss < 1e-5 and weights < 1e-5


def test_the_export_of_shards_is_whole(results):
    from safetensors.torch import load_file

    folder, reference, _ = results
    exported = load_file(folder / "fsdp2" / "model" / "model.safetensors")
    for name, tensor in exported.items():
        assert (tensor - reference["weights"][f"teacher.dinov3.{name}"]).abs().max() < 1e-5
