"""The loop aligns on two processes as on one, under DDP and FSDP2; with detached gathers it does not."""

import json
import os

import pytest
import torch
from accelerate import Accelerator

from dinov3_hf import DinoTxtModel, Dinov3Config, Dinov3Model
from dinov3_hf.text_alignment.alignment import TextAlignment
from dinov3_hf.text_alignment.arguments import AlignmentArguments
from dinov3_hf.training.arguments import RunArguments
from dinov3_hf.training.engine.loop import train
from dinov3_hf.training.schedules import StepValues, warmup_cosine

from ..processes import run_processes


STEPS, GLOBAL_BATCH = 6, 8
TEXT = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 8, "eos_token_id": 2,
}  # fmt: skip


class Pairs:
    """Global batches as a function of the step, of which each rank takes its rows."""

    def __init__(self, rank, world):
        self.rank, self.rows, self.position = rank, GLOBAL_BATCH // world, 0
        self.readers = [world, 0, self.rows]

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.position)
            ids = torch.randint(3, 40, (GLOBAL_BATCH, 8), generator=generator)
            ids[:, 5] = 2
            pixels = torch.randn(GLOBAL_BATCH, 3, 16, 16, generator=generator)
            mine = slice(self.rank * self.rows, (self.rank + 1) * self.rows)
            self.position += 1
            counts = {
                "images_read": self.rows,
                "bad_images": 0,
                "bad_examples": [],
                "epoch": 0,
                "num_images": self.rows,
            }
            yield {"input_ids": ids[mine], "pixel_values": pixels[mine]} | counts

    def state_dict(self):
        return {"position": self.position}


def run(folder, name, accelerator):
    (folder / name).mkdir(exist_ok=True)
    torch.manual_seed(0)
    config = Dinov3Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, patch_size=8, image_size=16
    )
    # Drop path draws by process: off, where processes are compared.
    head = {"drop_path_rate": 0.0, "layerscale_value": 0.5}
    model = DinoTxtModel.from_backbone(Dinov3Model(config), TEXT, vision_head_config=head)
    objective = TextAlignment(model, gram_weight=0.5)
    arguments = AlignmentArguments(steps=STEPS, batch_size=4, lr=1e-3, lr_warmup_steps=0)
    rates = warmup_cosine(0.0, 1e-3, 0.0, 0, STEPS, STEPS)

    def build_groups():
        trained = [(key, tensor) for key, tensor in objective.named_parameters() if tensor.requires_grad]
        kinds = {"lr_multiplier": 1.0, "wd_multiplier": 0.0, "is_last_layer": False, "is_backbone": False}
        return [{"names": [key for key, _ in trained], "params": [tensor for _, tensor in trained], **kinds}]

    def export(directory, state, metrics):
        objective.export(directory)

    train(
        objective,
        build_groups,
        lambda step, epoch: Pairs(accelerator.process_index, accelerator.num_processes),
        StepValues({"lr": rates, "weight_decay": 0 * rates}),
        accelerator,
        arguments,
        RunArguments(output_dir=str(folder / name), log_every=1, save_every=STEPS, probe_every=STEPS),
        {},
        export,
    )


def work(rank, folder):
    accelerator = Accelerator()
    run(folder, "ddp", accelerator)
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_RESHARD_AFTER_FORWARD="true")
    run(folder, "fsdp2", accelerator)
    del os.environ["ACCELERATE_USE_FSDP"]
    from dinov3_hf.text_alignment import contrastive

    gather = contrastive.gather_rows
    contrastive.gather_rows = lambda tensor, group: gather(tensor, group).detach()
    run(folder, "detached", accelerator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alignment")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(folder, "single", Accelerator())
    torch.set_num_threads(threads)
    run_processes(work, folder)
    return folder


def distance(folder, name):
    """Largest relative difference of a loss, and of the exported weights by norm, from those of one process."""
    losses = [
        [json.loads(line)["loss"] for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in (name, "single")
    ]
    assert len(losses[0]) == len(losses[1]) == STEPS
    first, second = (DinoTxtModel.from_pretrained(folder / run / "model").state_dict() for run in (name, "single"))
    weights = max(((first[key] - second[key]).norm() / second[key].norm().clamp(min=1e-9)).item() for key in second)
    return max(abs(a / b - 1) for a, b in zip(*losses, strict=True)), weights


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_equal_one(folder, name):
    loss, weights = distance(folder, name)
    print(f"{name}: losses within {loss:.1e} relative, weights within {weights:.1e}")
    assert loss < 1e-5 and weights < 1e-4


def test_detached_gathers_are_caught(folder):
    loss, weights = distance(folder, "detached")
    assert loss > 1e-4 or weights > 1e-2
