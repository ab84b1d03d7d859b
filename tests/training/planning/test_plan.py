"""A plan against real networks, real steps, formulas written out by hand, and published numbers."""

import re
import time
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining
from dinov3_hf.checkpoints import export
from dinov3_hf.cli import main
from dinov3_hf.recipe import build_recipe
from dinov3_hf.training.arguments import PretrainRecipe
from dinov3_hf.training.masking import draw_masks
from dinov3_hf.training.planning.plan import KG_CO2_PER_KWH, PUE, WATTS, format_plan, fullest, make_plan
from dinov3_hf.training.planning.rehearsal import Stage, build_networks, fake_tensors
from dinov3_hf.training.schedules import Schedules


WIDTH, HIDDEN, DEPTH, NUM_HEADS, PATCH = 64, 128, 2, 2, 8
TINY = {
    "size": None, "patch_size": PATCH, "hidden_size": WIDTH, "num_hidden_layers": DEPTH,
    "num_attention_heads": NUM_HEADS, "intermediate_size": HIDDEN, "num_register_tokens": 2,
    "global_crop_size": 48, "local_crop_size": 24, "local_crops": 3, "batch_size": 4, "steps": 10,
    "lr_warmup_steps": 1, "freeze_last_layer_steps": 0, "teacher_temperature_warmup_steps": 0, "num_workers": 1,
} | {f"{head}_head_{name}": size for head in ("dino", "ibot")
     for name, size in (("num_prototypes", 96), ("hidden_size", 48), ("bottleneck_size", 32))}  # fmt: skip
GRAM = {"gram_teacher": "ema_copy", "gram_crop_size": 96}
# The 7B model of the paper (DINOv3, table 2 and appendix C), 16 images a process.
BILLIONS = {
    "size": "vit7b16", "global_crop_size": 256, "local_crop_size": 112, "batch_size": 16,
    "dino_head_num_prototypes": 262144, "dino_head_bottleneck_size": 512, "dino_head_hidden_size": 8192,
    "ibot_head_num_prototypes": 98304, "ibot_head_bottleneck_size": 384, "ibot_head_hidden_size": 4096,
    "steps": 1_000_000,
}  # fmt: skip


def tiny(**fields):
    return build_recipe(PretrainRecipe, **TINY | fields)


@cache
def plan_of(processes=1, **fields):
    return make_plan(tiny(**fields), processes)


def real_step(recipe, precision="no"):
    """Return an objective of real tensors, computing as a GPU would, and a function that takes its forward pass."""
    torch.manual_seed(0)
    objective = Stage(recipe, precision, build_networks(recipe)).objective
    crops, images = recipe.crops, recipe.optimization.batch_size
    grid = (crops.global_crop_size // PATCH,) * 2
    masks = draw_masks(grid, 2, images, 0, 0, crops.mask_probability, tuple(crops.mask_ratio), 0, images)
    sizes = {"global_crops": (2, crops.global_crop_size), "local_crops": (crops.local_crops, crops.local_crop_size)}
    if objective.gram_teacher is not None:
        sizes["gram_crops"] = (2, recipe.gram.gram_crop_size)
    batch = {name: torch.randn(count, images, 3, side, side) for name, (count, side) in sizes.items()}
    batch["masks"] = torch.from_numpy(masks)
    values = Schedules(recipe.optimization, images, recipe.gram).values_at(recipe.optimization.steps - 1)

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return objective(batch, values).loss

    return objective, batch, forward


def test_parameters_are_those_of_a_real_model():
    config = Dinov3Config(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=NUM_HEADS, intermediate_size=HIDDEN,
        patch_size=PATCH, num_register_tokens=2, **{name: size for name, size in TINY.items() if "_head_" in name},
    )  # fmt: skip
    real = Dinov3ForPreTraining(config)
    networks = {"backbone": real.dinov3, "dino_head": real.dino_head, "ibot_head": real.ibot_head}
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    plan, total = plan_of(), sum(counts.values())
    parts = plan.memory["one process"]
    assert plan.parameters == counts
    assert (parts["master weights"], parts["AdamW moments"], parts["EMA teacher"]) == (4 * total, 8 * total, 4 * total)
    # fp32 pixels and one byte for each patch of two global crops
    batch = 4 * 4 * 3 * (2 * 48**2 + 3 * 24**2) + 4 * 2 * 36
    assert parts["input batch"] == batch and plan.prefetched == 2 * batch


@pytest.mark.parametrize(
    "fields", [{}, {"drop_path_rate": 0.5}, GRAM | {"local_crops": 2}], ids=["plain", "drop", "gram"]
)
def test_flops_are_those_counted_in_a_real_step(fields):
    recipe = tiny(**fields)
    _, _, forward = real_step(recipe)
    with FlopCounterMode(display=False) as counter:
        forward().backward()
    planned = sum(plan_of(**fields).flops.values()) * recipe.optimization.batch_size
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.02)


def block_flops(images, size):
    """Matrix products of one block on square images, written out."""
    tokens = (size // PATCH) ** 2 + 1 + 2
    linear = 2 * tokens * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
    return images * (linear + 2 * 2 * tokens**2 * WIDTH)


def embedding_flops(images, size):
    return 2 * images * (size // PATCH) ** 2 * 3 * PATCH**2 * WIDTH


@pytest.mark.parametrize("drop, kept", [(0.0, 1.0), (0.5, 0.5)])
def test_flops_are_those_of_the_formula(drop, kept):
    flops = plan_of(drop_path_rate=drop).flops
    teacher = DEPTH * block_flops(2, 48) + embedding_flops(2, 48)
    bundled = embedding_flops(2, 48) + embedding_flops(3, 24)
    blocks = DEPTH * kept * (block_flops(2, 48) + block_flops(3, 24))
    assert flops["teacher forward"] == pytest.approx(teacher)
    assert flops["student forward"] == pytest.approx(blocks + bundled)


def test_checkpointing_runs_the_blocks_once_more_and_holds_less():
    plain, recomputed = plan_of(), plan_of(activation_checkpointing=True)
    extra = recomputed.flops["student backward"] - plain.flops["student backward"]
    # Recomputing stops at the last tensor that is needed: the second linear layer of a block's MLP may be skipped.
    blocks = DEPTH * (block_flops(2, 48) + block_flops(3, 24))
    assert 0.7 * blocks < extra <= 1.001 * blocks
    assert recomputed.memory == plain.other and recomputed.other == plain.memory
    parts = [plan.memory["one process"]["activations"] for plan in (plain, recomputed)]
    assert parts[1] < 0.6 * parts[0]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("fields", [{}, {"drop_path_rate": 0.5}, GRAM], ids=["plain", "drop", "gram"])
def test_what_is_held_after_the_forward_pass_is_what_autograd_saves(precision, fields):
    recipe = tiny(mixed_precision=precision, **fields)
    objective, batch, forward = real_step(recipe, precision)
    given = {tensor.untyped_storage().data_ptr() for tensor in [*objective.parameters(), *batch.values()]}
    saved, held = {}, []

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    measured = sum(size for key, size in saved.items() if key not in given)
    with fake_tensors():
        stage = Stage(recipe, precision, build_networks(recipe))
        stage.objective.register_forward_hook(lambda *_: held.append(dict(_get_current_dispatch_mode().live)))
        (batch, step, share), *others = stage.situations()
        timeline = stage.rehearse(batch, step, checkpointing=False).timeline
    assert share == 1 and not others and loss.isfinite()
    assert sum(held[0].values()) - held[0]["input batch"] == pytest.approx(measured, rel=0.03)
    assert fullest(timeline)["activations"] >= held[0]["activations"]


def test_processes_share_weights_with_fsdp2_and_repeat_them_with_ddp():
    alone, plan = plan_of(), plan_of(8)
    total = sum(plan.parameters.values())
    ddp, fsdp2 = plan.memory["ddp"], plan.memory["fsdp2"]
    assert ddp == alone.memory["one process"] | {"gradient buckets": 4 * total}
    for part in ("master weights", "AdamW moments", "EMA teacher"):
        assert fsdp2[part] == ddp[part] // 8
    # Another moment may be the fullest where gradients weigh less.
    assert fsdp2["activations"] == pytest.approx(ddp["activations"], rel=0.05)
    assert plan.global_batch == 32 and plan.flops == alone.flops
    assert plan.images_per_second == pytest.approx(8 * alone.images_per_second)
    assert plan.gpu_hours == pytest.approx(8 * alone.gpu_hours)


def test_accumulated_gradients_stay():
    plan = plan_of(2, gradient_accumulation_steps=4)
    total = 4 * sum(plan.parameters.values())
    assert plan.memory["ddp"]["gradients"] == plan.memory["fsdp2"]["gradients"] == total
    assert plan.global_batch == 32
    assert sum(plan.flops.values()) == pytest.approx(sum(plan_of().flops.values()))


def test_gram_anchoring_costs_its_share_of_the_run():
    always, later = plan_of(**GRAM), plan_of(**GRAM, gram_start_step=4)
    teacher = DEPTH * block_flops(2, 96) + embedding_flops(2, 96)
    assert always.flops["gram_teacher forward"] == pytest.approx(teacher)
    assert later.flops["gram_teacher forward"] == pytest.approx(0.6 * teacher)
    assert always.memory == later.memory
    backbone = always.memory["one process"]["Gram teacher"]
    assert backbone == 4 * always.parameters["backbone"]
    assert plan_of().memory["one process"]["Gram teacher"] == 0


def test_crop_sizes_that_change_count_by_their_shares_and_the_largest_needs_the_memory():
    sets = {"crop_size_sets": [[48, 24, 48], [96, 24, 96]], "crop_size_probabilities": [3, 1]}
    mixed, small, large = make_plan(tiny(**sets)), plan_of(), plan_of(global_crop_size=96)
    for part in ("student forward", "student backward", "teacher forward"):
        assert mixed.flops[part] == pytest.approx(0.75 * small.flops[part] + 0.25 * large.flops[part])
    assert mixed.memory == large.memory


def test_going_on_from_weights_plans_their_sizes_and_leaves_them(tmp_path):
    torch.manual_seed(0)
    config = Dinov3Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8
    )
    network = Dinov3ForPreTraining(config).dinov3
    export(network, tmp_path)
    fields = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    fields |= {"num_register_tokens": None, "patch_size": None, "init_from": str(tmp_path)}
    assert make_plan(tiny(**fields)).parameters["backbone"] == sum(p.numel() for p in network.parameters())


def test_adapters_alone_have_gradients_and_moments(tmp_path):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    config = Dinov3Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8
    )
    export(Dinov3ForPreTraining(config).dinov3, tmp_path)
    fields = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    fields |= {"num_register_tokens": None, "patch_size": None, "init_from": str(tmp_path), "lora_rank": 2}
    plan = make_plan(tiny(**fields), processes=2)
    # A and B of four square layers and two between 32 and 64, in two blocks, and the mask token.
    adapters = 2 * 2 * (4 * (32 + 32) + 2 * (32 + 64)) + 32
    heads = plan.parameters["dino_head"] + plan.parameters["ibot_head"]
    assert plan.memory["ddp"]["AdamW moments"] == 8 * (adapters + heads)
    assert plan.memory["ddp"]["gradient buckets"] == 4 * (adapters + heads)
    assert plan.memory["ddp"]["master weights"] == 4 * sum(plan.parameters.values()) > 4 * (adapters + heads)


def test_nothing_fake_is_left_behind():
    recipe = tiny()
    expected = real_step(recipe)[2]().item()
    make_plan(recipe)
    assert real_step(recipe)[2]().item() == expected


@pytest.mark.slow
def test_seven_billion_parameters_are_planned_in_seconds():
    start = time.process_time()
    plan = make_plan(build_recipe(PretrainRecipe, **BILLIONS), processes=256, device_memory=80)
    # On a busy machine too: processor time, not the clock's.
    assert time.process_time() - start < 60
    assert plan.parameters["backbone"] / 1e6 == pytest.approx(6716.04, abs=0.005)
    assert plan.global_batch == 4096
    assert plan.memory["fsdp2"]["master weights"] == plan.memory["ddp"]["master weights"] // 256
    text = format_plan(plan)
    assert "backbone 6,716.04 M" in text and len(text.splitlines()) < 40
    assert "ddp will not fit: needs" in text and "of 80.0 GiB" in text


def test_energy_follows_the_assumptions():
    """61,440 GPU-hours are 47 MWh and 18 t CO2eq (DINOv3, section 9)."""
    megawatt_hours = 61440 * WATTS * PUE / 1e6
    assert round(megawatt_hours) == 47 and round(megawatt_hours * KG_CO2_PER_KWH) == 18


def test_a_plan_that_does_not_fit_says_so(capsys):
    flags = ["pretrain", "--config", "tiny_cpu", "--plan", "--batch-size", "8"]
    assert main([*flags, "--device-memory", "0.02"]) == 0
    text = capsys.readouterr().out
    need = float(re.search(r"^  total +([\d.]+)$", text, re.M)[1]) / 1024
    advice = "try a smaller batch_size, activation checkpointing or more processes"
    assert f"will not fit: needs {need:.1f} of 0.0 GiB (--device-memory); {advice}" in text.splitlines()
    assert main([*flags, "--device-memory", "80"]) == 0
    text = capsys.readouterr().out
    assert "will not fit" not in text and f"fits: needs {need:.1f} of 80.0 GiB" in text


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--plan", "--processes", "0"], "processes: got 0, accepted: a whole number of at least 1"),
        (["--plan", "--processes", "-3"], "processes: got -3, accepted: a whole number of at least 1"),
        (["--plan", "--device-memory", "0"], "device_memory: got 0, accepted: a number above 0"),
        (["--processes", "2"], "processes: got 2, accepted: only with --plan"),
        (
            ["--plan", "--global-crop-size", "50"],
            "global_crop_size: got 50, accepted: a multiple of the patch size (8)",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_line(flags, message, tmp_path, capsys):
    assert main(["pretrain", "--config", "tiny_cpu", "--output-dir", str(tmp_path / "out"), *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_rehearsal_allocates_nothing():
    """A layer of 16 TiB can be planned."""
    with fake_tensors():
        weight = torch.empty(2**21, 2**21)
    assert weight.untyped_storage().nbytes() == 2**44
