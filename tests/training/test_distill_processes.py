"""Groups of processes, one a student, behind one teacher: each student learns as it does alone on one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining
from dinov3_hf.training.arguments import CropArguments, ObjectiveArguments, OptimizationArguments, RunArguments
from dinov3_hf.training.batches.row_exchange import RowExchange, ranks_of, slices_of
from dinov3_hf.training.distill_arguments import DistillArguments
from dinov3_hf.training.distillation import Distillation
from dinov3_hf.training.engine.checkpointing import Checkpoints, list_checkpoints
from dinov3_hf.training.engine.loop import LostProcess, name_lost_process, train
from dinov3_hf.training.objective import Objective
from dinov3_hf.training.param_groups import parameter_groups
from dinov3_hf.training.schedules import Schedules
from dinov3_hf.training.students import HeadedNetwork, new_student, student_config

from ..ports import free_port
from ..processes import run_processes


STEPS, GLOBAL_BATCH, SIDE = 6, 8, 16
VIT = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,layerscale_value=0.5"
STUDENTS = {
    "small": f"small=vits16:{VIT},patch_size=4",
    "conv": "conv=convnext_tiny:depths=[1,1],hidden_sizes=[8,12],layer_scale_init_value=0.5",
    "gated": f"gated=vits16plus:{VIT},patch_size=4",
}
GROUP_SIZES = [1, 1, 2]


class Batches:
    """The same global batches for everyone; each process reads its rows."""

    def __init__(self, rank, world, step):
        self.rank, self.rows, self.position = rank, GLOBAL_BATCH // world, step
        self.readers = [world, 0, self.rows]

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.position)
            batch = {
                "global_crops": torch.randn(2, GLOBAL_BATCH, 3, SIDE, SIDE, generator=generator),
                "local_crops": torch.randn(2, GLOBAL_BATCH, 3, 8, 8, generator=generator),
            }
            for size in (4, 8):
                # Processes hold different numbers of masked patches; some crops have none.
                shares = torch.rand(2, GLOBAL_BATCH, 1, generator=generator) - 0.2
                batch[f"masks_{size}"] = torch.rand(2, GLOBAL_BATCH, (SIDE // size) ** 2, generator=generator) < shares
            self.position += 1
            mine = slice(self.rank * self.rows, (self.rank + 1) * self.rows)
            counts = {"images_read": self.rows, "bad_images": 0, "bad_examples": [], "epoch": 0, "num_images": 1}
            yield {name: value[:, mine] for name, value in batch.items()} | counts

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def run(folder, name, accelerator, names, group_sizes=None, **fields):
    """Distil through the package's own loop; returns the weights of the students held here and counts of shards."""
    torch.manual_seed(7)
    heads = {f"{head}_head_{part}": 8 for head in ("dino", "ibot") for part in ("hidden_size", "bottleneck_size")}
    config = Dinov3Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=4,
        layerscale_value=0.5, dino_head_num_prototypes=12, ibot_head_num_prototypes=10, head_initializer_range=0.3,
        **heads,
    )  # fmt: skip
    net = Dinov3ForPreTraining(config)
    teacher = HeadedNetwork(net.dinov3, net.dino_head, net.ibot_head)
    arguments = DistillArguments(students=[STUDENTS[key] for key in names], head_initializer_range=0.2)
    crops, groups = CropArguments(global_crop_size=SIDE), ranks_of(group_sizes) if group_sizes else None
    rank, world = accelerator.process_index, accelerator.num_processes
    networks = {}
    for spec in arguments.specs():
        shape = student_config(spec, arguments, crops, config)
        networks[spec.name] = new_student(spec.name, shape, arguments, teacher, config, seed=3)
    held = {key: net for place, (key, net) in enumerate(networks.items()) if groups is None or rank in groups[place]}
    # KoLeo within the local batch would see other neighbours where a process has more of the global batch.
    weights = ObjectiveArguments(koleo_distributed=True)
    skeletons = {
        key: new_student(key, net.config, arguments, teacher, config, 3).to("meta") for key, net in networks.items()
    }
    objective = Distillation(teacher, held, weights, None, groups, skeletons)
    optimization = OptimizationArguments(
        steps=STEPS, lr=5e-3, lr_scaling="none", lr_warmup_steps=2, momentum=0.9, freeze_last_layer_steps=1,
        teacher_temperature_warmup_steps=2, clip_grad_norm=1.0,
    )  # fmt: skip
    settings = RunArguments(
        output_dir=str(folder / name),
        log_every=1,
        probe_every=1,
        **{"save_every": 100, "keep_checkpoints": 9, **fields},
    )
    Path(settings.output_dir).mkdir(exist_ok=True)
    accelerator.wait_for_everyone()
    train(
        objective,
        lambda: [group for net in held.values() for group in parameter_groups(net, 0.9, 0.2)],
        lambda step, epoch: Batches(rank, world, step),
        Schedules(optimization, GLOBAL_BATCH),
        accelerator,
        optimization,
        settings,
        {},
        lambda directory, state, metrics: objective.export(directory),
    )
    whole = {
        key: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
        for key, tensor in objective.state_dict().items()
    }
    return {"weights": whole, "sharded": sum(isinstance(module, FSDPModule) for module in objective.modules())}


def work(rank, folder):
    os.environ["FSDP_VERSION"] = "2"
    accelerator, names, results = Accelerator(), list(STUDENTS), {}
    results["ddp"] = run(folder, "ddp", accelerator, names, GROUP_SIZES, save_every=3)
    results["everywhere"] = run(folder, "everywhere", accelerator, names)
    results["exchanged"] = run(folder, "exchanged", accelerator, names[::-1], [1, 2, 1], resume=True)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    results["fsdp2"] = run(folder, "fsdp2", accelerator, names, GROUP_SIZES)
    del os.environ["ACCELERATE_USE_FSDP"]
    # The negative control: nothing is gathered, each process trains its student on what it read itself.
    RowExchange.images = lambda self, values: values
    RowExchange.patches = lambda self, rows, masks, moved: rows
    results["apart"] = run(folder, "apart", accelerator, names, GROUP_SIZES)
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    # As many threads as the processes have: another order of summing is a difference that steps enlarge.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = {name: run(folder, name, Accelerator(), [name], save_every=3) for name in STUDENTS}
    torch.set_num_threads(threads)
    # The run to resume in other groups: parts that one process wrote, each for its student alone.
    for name in STUDENTS:
        source = folder / name / "checkpoints" / "step_00000003"
        shutil.copytree(source, folder / "exchanged" / "checkpoints" / source.name, dirs_exist_ok=True)
    run_processes(work, folder, world=4)
    return folder, alone, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(4)]


def lines_of(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def distance(results, mode):
    """Return the largest relative difference of a student's losses, and absolute one of weights, from those alone."""
    folder, alone, ranks = results
    loss = weights = 0.0
    for name in STUDENTS:
        lines = lines_of(folder, mode)
        for mine, theirs in zip(lines, lines_of(folder, name)[-len(lines) :], strict=True):
            loss = max(loss, abs(mine[f"{name}/loss"] / theirs[f"{name}/loss"] - 1))
        holders = [
            rank[mode]["weights"] for rank in ranks if any(f"student_{name}." in key for key in rank[mode]["weights"])
        ]
        for key, value in alone[name]["weights"].items():
            weights = max(weights, *((held[key] - value).abs().max().item() for held in holders))
    return loss, weights


@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "everywhere", "exchanged"])
def test_four_processes_equal_one_process_and_each_student_alone(results, mode):
    loss, weights = distance(results, mode)
    print(f"{mode}: losses within {loss:.1e} relative, weights within {weights:.1e}")
    assert loss < 1e-5 and weights < 1e-5
    folder, _, ranks = results
    lines = lines_of(folder, mode)
    assert len(lines) == (3 if mode == "exchanged" else STEPS)
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line[f"{name}/loss"] for name in STUDENTS), rel=1e-6)
        assert all(f"grad_norm_{name}/backbone" in line for name in STUDENTS)
    held = [{key.split(".")[0] for key in rank[mode]["weights"] if key.startswith("student_")} for rank in ranks]
    groups = {"everywhere": [STUDENTS] * 4, "exchanged": [["gated"], ["conv"], ["conv"], ["small"]]}
    wanted = groups.get(mode, [["small"], ["conv"], ["gated"], ["gated"]])
    assert held == [{f"student_{name}" for name in names} for names in wanted]


def test_weights_move_and_shards_are_shards(results):
    _, alone, ranks = results
    assert alone["gated"]["weights"]["student_gated.backbone.norm.weight"].sub(1).abs().max() > 1e-3
    # The teacher, its two blocks; student and average, with two blocks each.
    assert ranks[0]["fsdp2"]["sharded"] == 3 + 2 * 3 and ranks[0]["ddp"]["sharded"] == 0


def test_negative_control_without_the_gather_the_trajectory_differs(results):
    loss, weights = distance(results, "apart")
    assert loss > 1e-3 or weights > 1e-3


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_the_first_process_exports_every_student(results, mode):
    from safetensors.torch import load_file

    folder, alone, _ = results
    for name in STUDENTS:
        for key, value in load_file(folder / mode / "model" / name / "model.safetensors").items():
            assert (value - alone[name]["weights"][f"ema_{name}.backbone.{key}"]).abs().max() < 1e-5
        assert (folder / "ddp" / "checkpoints" / "step_00000003" / "tensors" / name).is_dir()


def test_slices_cover_the_global_batch_in_every_group():
    assert ranks_of([1, 1, 2]) == [[0], [1], [2, 3]]
    assert slices_of([[0], [1], [2, 3]], 8) == [(0, 8), (0, 8), (0, 4), (4, 8)]


def test_a_lost_process_is_told_in_one_line_and_other_errors_pass(tmp_path):
    checkpoints = Checkpoints(RunArguments(output_dir=str(tmp_path)), Accelerator(), Objective(), None)
    with pytest.raises(LostProcess) as caught, name_lost_process({"step": 7}, checkpoints):
        raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer\nmore")
    assert "was lost in step 7" in str(caught.value) and "no checkpoint was written yet" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="sizes differ") as other, name_lost_process({"step": 7}, checkpoints):
        raise RuntimeError("sizes differ")
    assert not isinstance(other.value, LostProcess)


def start(rank, port, output):
    tiny = VIT.replace("16,", "32,", 1)
    flags = [
        *("--students", f"a=vits16:{tiny},patch_size=8", f"b=vits16:{tiny},patch_size=16", "--group-sizes", "1", "1"),
        *(
            "--data scenes --num-images 64 --shuffle-block 8 --num-workers 0 --probe-images 20 --probe-every 4000"
        ).split(),
        *("--global-crop-size 32 --local-crops 0 --batch-size 2 --steps 4000 --lr-warmup-steps 0").split(),
        *("--freeze-last-layer-steps 0 --teacher-temperature-warmup-steps 0 --log-every 1 --save-every 5").split(),
        *("--resume", "--output-dir", str(output)),
    ]
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {key: str(value) for key, value in place.items()} | {"ACCELERATE_USE_CPU": "true"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "dinov3_hf.cli", "distill", *flags]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_dead_process_stops_the_others_and_the_last_checkpoint_resumes(tmp_path):
    output, first = tmp_path / "out", 0
    for _ in range(2):
        port = free_port()
        pair = [start(rank, port, output) for rank in range(2)]
        try:
            wait_for(lambda first=first: len(list_checkpoints(output)) and newest(output) > first)
            pair[1].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            _, shown = pair[0].communicate(timeout=60)
        finally:
            for process in pair:
                process.kill()
                process.wait()
        print(f"stopped {time.monotonic() - killed:.1f} s after the other was killed, at step {newest(output)}")
        # Exit code 3, and one line that says what happened and from where to go on.
        assert pair[0].returncode == 3
        (line,) = (line for line in shown.splitlines() if "error:" in line)
        assert "a process of the run was lost in step" in line and f"step_{newest(output):08d}" in line
        assert "Traceback" not in shown
        # The second attempt went on from the first's last checkpoint.
        assert newest(output) > first
        steps = [line["step"] for line in lines_of(tmp_path, "out")]
        assert steps == list(range(1, len(steps) + 1))
        first = newest(output)


def newest(output):
    return int(list_checkpoints(output)[-1].name.removeprefix("step_"))
