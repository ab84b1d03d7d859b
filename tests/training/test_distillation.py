"""The objective of distillation: losses against naive loops, grids that differ, students that ignore each other."""

import copy
import json

import pytest
import torch
from torch.nn.functional import layer_norm, normalize, smooth_l1_loss

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining
from dinov3_hf.training.arguments import CropArguments, ObjectiveArguments
from dinov3_hf.training.distill_arguments import DistillArguments, parse_student
from dinov3_hf.training.distillation import Distillation
from dinov3_hf.training.engine.loop import build_optimizer, clip_gradients, set_rates
from dinov3_hf.training.param_groups import parameter_groups
from dinov3_hf.training.students import HeadedNetwork, load_weights, new_student, student_config


VALUES = {"teacher_temperature": 0.06, "local_weight": 0.5, "momentum": 0.9, "weight_decay": 0.1}
VALUES |= dict.fromkeys(("lr", "last_layer_lr", "backbone_lr"), 1e-2)
VIT = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,layerscale_value=0.5"
STUDENTS = {
    "small": f"small=vits16:{VIT},patch_size=4",
    "gated": f"gated=vits16plus:{VIT},patch_size=4,num_register_tokens=1",
    "coarse": f"coarse=vits16:{VIT},patch_size=8",
    "conv": "conv=convnext_tiny:depths=[1,1],hidden_sizes=[8,12],layer_scale_init_value=0.5",
}
SIDE = 16


def make_teacher(full=True):
    torch.manual_seed(7)
    heads = {f"{head}_head_{part}": 8 for head in ("dino", "ibot") for part in ("hidden_size", "bottleneck_size")}
    config = Dinov3Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=4,
        layerscale_value=0.5, dino_head_num_prototypes=12, ibot_head_num_prototypes=10, head_initializer_range=0.3,
        **heads,
    )  # fmt: skip
    net = Dinov3ForPreTraining(config)
    if full:
        return HeadedNetwork(net.dinov3, net.dino_head, net.ibot_head), config
    return HeadedNetwork(net.dinov3, torch.nn.Identity(), torch.nn.Identity()), None


def make(names=("small",), full=True, feature_loss="cosine", drop_path_rate=0.0, **weights):
    teacher, heads = make_teacher(full)
    arguments = DistillArguments(
        students=[STUDENTS[name] for name in names],
        drop_path_rate=drop_path_rate,
        dino_head_hidden_size=20,
        head_initializer_range=0.2,
    )
    arguments.validate()
    crops = CropArguments(global_crop_size=SIDE, local_crops=3)
    students = {}
    for spec in arguments.specs():
        config = student_config(spec, arguments, crops, heads)
        students[spec.name] = new_student(spec.name, config, arguments, teacher, heads, seed=3)
    return Distillation(teacher, students, ObjectiveArguments(**weights), None if full else feature_loss).train()


def make_batch(seed=1, full=True):
    """Two crops of four images; the masks of each grid are its own."""
    generator = torch.Generator().manual_seed(seed)
    batch = {"global_crops": torch.randn(2, 4, 3, SIDE, SIDE, generator=generator)}
    for size in (4, 8):
        masks = (
            torch.rand(2, 4, (SIDE // size) ** 2, generator=generator) < torch.rand(2, 4, 1, generator=generator) - 0.2
        )
        batch[f"masks_{size}"] = masks if full else torch.ones_like(masks)
    return batch | ({"local_crops": torch.randn(3, 4, 3, 8, 8, generator=generator)} if full else {})


def naive_sinkhorn(logits, temperature):
    p = torch.exp(logits.double() / temperature)
    for _ in range(3):
        p = p / p.sum(dim=0, keepdim=True)
        p = p / p.sum(dim=1, keepdim=True)
    return p.float()


def see(network, image):
    """Class token and patch tokens of one image by itself."""
    output = network.backbone(image[None])
    return output.pooler_output[0], output.patch_tokens[0]


def naive_koleo(cls_tokens):
    total = 0.0
    for crop in cls_tokens:
        x = normalize(torch.stack(crop), eps=1e-8)
        for i in range(len(x)):
            j = max((j for j in range(len(x)) if j != i), key=lambda j: (x[i] @ x[j]).item())
            total = total - torch.log((x[i] - x[j] + 1e-8).norm() + 1e-8) / len(x) / len(cls_tokens)
    return total


def naive_full(objective, batch, name):
    """METHOD's formulas, image by image; the student is shown whole crops."""
    student, teacher, crops = objective.student(name), objective.teacher, batch["global_crops"]
    masks, temperature = batch["masks_4"], VALUES["teacher_temperature"]

    def ce(target, logits):
        return -(target * torch.log_softmax(logits / 0.1, -1)).sum()

    with torch.no_grad():
        seen = [[see(teacher, crops[g, b]) for b in range(4)] for g in range(2)]
        image = torch.stack([teacher.dino_head(seen[g][b][0]) for g in range(2) for b in range(4)])
        image = naive_sinkhorn(image, temperature)
        places = [tuple(place) for place in masks.nonzero().tolist()]
        rows = naive_sinkhorn(torch.stack([teacher.ibot_head(seen[g][b][1][p]) for g, b, p in places]), temperature)
    own = [[see(student, crops[g, b]) for b in range(4)] for g in range(2)]
    dino = sum(ce(image[4 * t + b], student.dino_head(own[1 - t][b][0])) for t in range(2) for b in range(4)) / 8
    local = sum(
        ce(image[4 * t + b], student.dino_head(see(student, batch["local_crops"][s, b])[0]))
        for s in range(3) for t in range(2) for b in range(4)
    ) / 24  # fmt: skip
    ibot = sum(
        ce(target, student.ibot_head(own[g][b][1][p])) / masks[g, b].sum()
        for (g, b, p), target in zip(places, rows, strict=True)
    ) / 8  # fmt: skip
    koleo = naive_koleo([[cls for cls, _ in crop] for crop in own])
    # Two (student, teacher) pairs of global crops, six of a local and a global one.
    return 2 / 8 * dino + 6 / 8 * 0.5 * local + ibot + 0.1 * 2 * koleo


def naive_headless(objective, batch, name):
    student, teacher, total, own = objective.student(name), objective.teacher, 0.0, []

    def distance(mine, theirs):
        if objective.feature_loss == "cosine":
            return 1 - (mine @ theirs) / mine.norm() / theirs.norm()
        return smooth_l1_loss(mine, layer_norm(theirs, theirs.shape))

    for crop in batch["global_crops"]:
        own.append([])
        for image in crop:
            (cls, patches), (target, targets) = see(student, image), see(teacher, image)
            own[-1].append(cls)
            patch = sum(distance(student.ibot_head(p), t) for p, t in zip(patches, targets, strict=True)) / len(
                targets
            )
            total = total + (distance(student.dino_head(cls), target.detach()) + patch) / 8
    return total + 0.1 * 2 * naive_koleo(own)


@pytest.mark.parametrize("kind", ["full", "cosine", "smooth_l1"])
def test_equals_an_independent_implementation_in_value_and_gradient(kind):
    objective, batch = make(full=kind == "full", feature_loss=kind), make_batch(full=kind == "full")
    output = objective(batch, VALUES)
    output.loss.backward()
    student = objective.student("small")
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    loss = (naive_full if kind == "full" else naive_headless)(objective, batch, "small")
    loss.backward()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in student.named_parameters():
        # Whole crops: the mask token is never shown.
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (found[name] - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-7, name


class Positions(torch.nn.Module):
    """A backbone whose patch tokens are the coordinates of their centres, from -1 to 1 over the crop."""

    def __init__(self, patch_size):
        super().__init__()
        self.config = type("Config", (), {"patch_size": patch_size})

    def forward(self, pixel_values):
        rows, columns = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        y, x = (2 * (torch.arange(count) + 0.5) / count - 1 for count in (rows, columns))
        tokens = torch.stack([y[:, None].expand(rows, columns), x[None].expand(rows, columns)], dim=-1).flatten(0, 1)
        tokens = tokens.expand(len(pixel_values), -1, -1)
        return type("Output", (), {"patch_tokens": tokens, "pooler_output": tokens.mean(dim=1)})


@pytest.mark.parametrize("student_size", [8, 16, 32])
def test_patch_targets_lie_where_the_students_patches_lie(student_size):
    """A teacher of patches of 16 that names each place, crops that are not square, a mask on the student's grid."""
    crops = torch.zeros(2, 3, 3, 128, 192)
    rows, columns = 128 // student_size, 192 // student_size
    mask = torch.rand(2, 3, rows * columns, generator=torch.Generator().manual_seed(0)) < 0.3
    teacher = HeadedNetwork(Positions(16), torch.nn.Identity(), torch.nn.Identity())
    objective = Distillation(teacher, {}, ObjectiveArguments(), "cosine")
    _, targets = objective.targets(crops, {student_size: mask}, 1.0)
    flat = mask.nonzero()[:, 2]
    inside = ((flat // columns) % (rows - 1) > 0) & ((flat % columns) % (columns - 1) > 0)
    places = torch.stack([2 * (flat // columns + 0.5) / rows - 1, 2 * (flat % columns + 0.5) / columns - 1], dim=1)
    apart, patch = (targets[student_size] - places).abs(), 2 * max(student_size, 16) / 128
    assert len(apart) == len(flat) and inside.sum() > 3
    # A cubic is not quite straight between two patches; at the border the last row is repeated.
    assert apart[inside].max() < 0.1 * patch and apart.max() < 0.5 * patch
    # The negative control: the student's index, taken in the teacher's own grid.
    if student_size > 16:
        wrong = teacher.backbone(crops.flatten(0, 1)).patch_tokens[0][flat]
        assert (wrong - places).abs().max() > patch


def test_a_convnext_takes_targets_of_its_own_grid():
    """Student stride 8, teacher patch size 4: the targets are the teacher's tokens, resized before its patch head."""
    objective, batch = make(["conv"]), make_batch()
    assert objective.student("conv").config.patch_size == 8
    tokens = objective.teacher(batch["global_crops"]).patch_tokens.flatten(0, 1)
    maps = tokens.transpose(1, 2).unflatten(2, (4, 4))
    coarse = (
        torch.nn.functional.interpolate(maps, (2, 2), mode="bicubic").flatten(2).transpose(1, 2).unflatten(0, (2, 4))
    )
    places = batch["masks_8"].nonzero().tolist()
    logits = torch.stack([objective.teacher.ibot_head(coarse[g, b, p]) for g, b, p in places])
    rows = naive_sinkhorn(logits, VALUES["teacher_temperature"])
    student, total = objective.student("conv"), 0.0
    for (g, b, p), target in zip(places, rows, strict=True):
        own = student.ibot_head(see(student, batch["global_crops"][g, b])[1][p])
        total = total - (target * torch.log_softmax(own / 0.1, -1)).sum() / batch["masks_8"][g, b].sum() / 8
    assert objective(batch, VALUES).metrics["conv/ibot"].item() == pytest.approx(total.item(), rel=1e-4)


def train(objective, steps=3, full=True):
    """A few steps as the loop makes them."""
    groups = [group for name in objective.names for group in parameter_groups(objective.student(name), 0.9, 0.2)]
    optimizer, lines = build_optimizer(groups, [0.9, 0.999]), []
    for step in range(steps):
        torch.manual_seed(step)
        set_rates(optimizer, VALUES)
        optimizer.zero_grad(set_to_none=True)
        # Two passes summed, as gradient accumulation does: the draws of the second must not depend on company either.
        for part in range(2):
            output = objective(make_batch(2 * step + part, full), VALUES)
            (output.loss / 2).backward()
        clip_gradients(objective.networks(), 1.0)
        optimizer.step()
        objective.after_step(step, VALUES)
        lines.append({name: value.item() for name, value in output.metrics.items()})
    return lines


@pytest.mark.parametrize("full", [True, False])
def test_together_is_as_alone(full):
    """Four students, with drop path and clipping that bites: each learns what it learns without the others."""
    together = make(list(STUDENTS), full, drop_path_rate=0.5)
    start = copy.deepcopy(together.state_dict())
    lines = train(together, full=full)
    for name in STUDENTS:
        alone = make([name], full, drop_path_rate=0.5)
        assert all(torch.equal(start[key], value) for key, value in alone.state_dict().items())
        own = train(alone, full=full)
        for mine, theirs in zip(own, lines, strict=True):
            assert all(abs(mine[key] - theirs[key]) <= 1e-5 * abs(mine[key]) for key in mine)
        moved = 0.0
        for key, value in alone.state_dict().items():
            assert (value - together.state_dict()[key]).abs().max() <= 1e-5, key
            moved = max(moved, (value - start[key]).abs().max().item())
        assert moved > 1e-2


@pytest.mark.parametrize("names", [["small"], list(STUDENTS)])
def test_the_teacher_looks_once_whatever_the_number_of_students(names):
    objective, passes = make(names), []
    objective.teacher.backbone.layer[0].register_forward_hook(lambda *call: passes.append(1))
    for step in range(3):
        objective(make_batch(step), VALUES)
    assert len(passes) == 3


def test_a_step_moves_students_and_averages_and_not_the_teacher():
    objective = make(["small", "conv"])
    teacher = copy.deepcopy(objective.teacher.state_dict())
    before = copy.deepcopy(objective.state_dict())
    assert not any(name.startswith("teacher.") for name in before), "a checkpoint holds what the run made"
    train(objective, steps=1)
    after = objective.state_dict()
    for name, value in after.items():
        if name.startswith("student_"):
            # No crop is masked, so that nothing but weight decay moves the mask token, which is zero.
            assert not torch.equal(value, before[name]) or "mask_token" in name, name
            average = name.replace("student_", "ema_", 1)
            assert torch.allclose(after[average], 0.9 * before[average] + 0.1 * value, atol=1e-6), average
    assert all(torch.equal(value, teacher[name]) for name, value in objective.teacher.state_dict().items())
    assert not any(
        parameter.requires_grad for net in objective.frozen_networks().values() for parameter in net.parameters()
    )
    assert (
        objective.student("small").training and not objective.ema("small").training and not objective.teacher.training
    )


def test_bf16_stays_near_fp32():
    for full in (True, False):
        objective, batch = make(["small", "conv"], full), make_batch(full=full)
        exact = objective(batch, VALUES).loss.item()
        with torch.autocast("cpu", torch.bfloat16):
            output = objective(batch, VALUES)
        assert output.loss.dtype == torch.float32 and output.loss.item() == pytest.approx(exact, rel=3e-2)


def test_exports_are_stock_directories_of_the_averages(tmp_path):
    from transformers import AutoModel

    from dinov3_hf.checkpoints import load_pretraining

    objective = make(["small", "conv"])
    train(objective, steps=1)
    small, conv = objective.export(tmp_path)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    for folder in (small, conv):
        reference, ema = AutoModel.from_pretrained(folder).eval(), objective.ema(folder.name)
        assert type(reference).__name__.startswith("DINOv3")
        assert torch.allclose(reference(pixels).last_hidden_state, ema.backbone(pixels).last_hidden_state, atol=1e-5)
    heads = load_pretraining(small).ibot_head.state_dict()
    assert all(
        torch.equal(value, heads[name]) for name, value in objective.ema("small").ibot_head.state_dict().items()
    )


def test_a_student_from_a_folder_starts_from_its_weights_or_has_its_shape_alone(tmp_path):
    teacher, heads = make_teacher()
    crops = CropArguments(global_crop_size=SIDE)
    (folder,) = make(["small"]).export(tmp_path)
    for has_weights in (True, False):
        spec = parse_student(f"pruned={folder}")
        assert spec.has_weights is has_weights
        config = student_config(spec, DistillArguments(), crops, heads)
        student = new_student(spec.name, config, DistillArguments(), teacher, heads, seed=0)
        load_weights(student, spec)
        weights = make(["small"]).ema("small").backbone.state_dict()
        same = [torch.equal(value, weights[name]) for name, value in student.backbone.state_dict().items()]
        assert all(same) is has_weights and config.hidden_size == 16 and config.dino_head_num_prototypes == 12
        (folder / "model.safetensors").unlink(missing_ok=True)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "dinov3_vit"


@pytest.mark.parametrize(
    "students, message",
    [
        (
            ["vitx16"],
            r"students: vitx16: got 'vitx16', accepted: vits16, .*convnext_large, or a folder with a config.json",
        ),
        (["vits16:hiden_size=8"], r"students: vits16: .*did you mean 'hidden_size'"),
        (["vits16:hidden_size"], "students: got 'vits16:hidden_size', accepted: a size with changed fields"),
        (["vits16", "vits16"], r"students: got \['vits16', 'vits16'\], accepted: different names"),
        (["some/my.model"], "students: got 'some/my.model', accepted: a name of letters, digits"),
        (["vits16\nvitb16"], r"students: got 'vits16\\nvitb16', accepted: a name of letters, digits"),
        ([], r"students: got \[\], accepted: at least one"),
    ],
)
def test_wrong_students_are_refused(students, message):
    arguments = DistillArguments(students=students)
    with pytest.raises(ValueError, match=message):
        arguments.validate()
        for spec in arguments.specs():
            student_config(spec, arguments, CropArguments(), None)
