"""One whole objective against a second implementation, and what a step changes and what it leaves."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining
from dinov3_hf.models.rope_dinov3 import RopeAugmentation
from dinov3_hf.training.arguments import ObjectiveArguments
from dinov3_hf.training.engine.loop import build_optimizer, clip_gradients, set_rates
from dinov3_hf.training.param_groups import parameter_groups
from dinov3_hf.training.self_distillation import SelfDistillation

from ..processes import run_processes


VALUES = {
    "teacher_temperature": 0.06,
    "local_weight": 0.5,
    "momentum": 0.9,
    "lr": 1e-2,
    "last_layer_lr": 1e-2,
    "backbone_lr": 1e-2,
    "weight_decay": 0.1,
}


def make(seed=0, **fields):
    torch.manual_seed(seed)
    config = Dinov3Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=4,
        num_register_tokens=2, layerscale_value=0.5,
        dino_head_num_prototypes=12, dino_head_hidden_size=16, dino_head_bottleneck_size=8,
        ibot_head_num_prototypes=10, ibot_head_hidden_size=16, ibot_head_bottleneck_size=8, head_initializer_range=0.2,
    )  # fmt: skip
    objective = SelfDistillation(Dinov3ForPreTraining(config), ObjectiveArguments(**fields)).train()
    # A teacher of its own, so that swapping the two networks would show.
    for parameter in objective.teacher.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return objective


def make_batch(locals_=3, masked=True):
    torch.manual_seed(1)
    masks = torch.zeros(2, 4, 16, dtype=torch.bool)
    if masked:
        masks[0, 1, :5], masks[1, 0, 3:6], masks[1, 3, 7] = True, True, True
    batch = {"global_crops": torch.randn(2, 4, 3, 16, 16), "masks": masks}
    return batch | ({"local_crops": torch.randn(locals_, 4, 3, 8, 8)} if locals_ else {})


def naive_sinkhorn(logits, temperature):
    p = torch.exp(logits.double() / temperature)
    p = p / p.sum()
    for _ in range(3):
        for k in range(p.shape[1]):
            p[:, k] = p[:, k] / p[:, k].sum()
        for n in range(p.shape[0]):
            p[n] = p[n] / p[n].sum()
    return p.float()


def naive_loss(objective, batch, values, koleo_weight=0.1):
    """The formulas, image by image: every crop through the network by itself."""
    student, teacher = objective.student, objective.teacher
    crops, masks = batch["global_crops"], batch["masks"]

    def run(net, image, mask=None):
        output = net.dinov3(image[None], None if mask is None else mask[None])
        return output.pooler_output[0], output.patch_tokens[0]

    def ce(target, logits):
        return -(target * torch.log_softmax(logits / 0.1, -1)).sum()

    with torch.no_grad():
        seen = [[run(teacher, crops[g, b]) for b in range(4)] for g in range(2)]
        image_targets = naive_sinkhorn(
            torch.stack([teacher.dino_head(seen[g][b][0]) for g in range(2) for b in range(4)]),
            values["teacher_temperature"],
        )
        places = [(g, b, p) for g in range(2) for b in range(4) for p in range(16) if masks[g, b, p]]
        patch_targets = naive_sinkhorn(
            torch.stack([teacher.ibot_head(seen[g][b][1][p]) for g, b, p in places]), values["teacher_temperature"]
        )
    own = [[run(student, crops[g, b], masks[g, b]) for b in range(4)] for g in range(2)]
    global_loss = (
        sum(ce(image_targets[4 * t + b], student.dino_head(own[1 - t][b][0])) for t in range(2) for b in range(4)) / 8
    )
    locals_ = batch["local_crops"]
    local_loss = sum(
        ce(image_targets[4 * t + b], student.dino_head(run(student, locals_[s, b])[0]))
        for s in range(len(locals_)) for t in range(2) for b in range(4)
    ) / (len(locals_) * 2 * 4)  # fmt: skip
    ibot = sum(
        ce(target, student.ibot_head(own[g][b][1][p])) / masks[g, b].sum()
        for (g, b, p), target in zip(places, patch_targets, strict=True)
    ) / 8  # fmt: skip
    koleo = 0.0
    for g in range(2):
        x = normalize(torch.stack([own[g][b][0] for b in range(4)]), eps=1e-8)
        for i in range(4):
            j = max((j for j in range(4) if j != i), key=lambda j: (x[i] @ x[j]).item())
            koleo = koleo - torch.log((x[i] - x[j] + 1e-8).norm() + 1e-8) / 4 / 2
    pairs = 2 * 1 + 2 * len(locals_)
    loss = 2 * len(locals_) / pairs * values["local_weight"] * local_loss + 2 / pairs * global_loss
    parts = {"dino_global": global_loss, "dino_local": local_loss, "koleo": koleo, "ibot": ibot}
    return loss + ibot + koleo_weight * 2 * koleo, parts


def test_equals_an_independent_implementation_in_value_and_gradient():
    objective, batch = make(), make_batch()
    output = objective(batch, VALUES)
    output.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in objective.student.named_parameters()}
    objective.student.zero_grad()
    loss, parts = naive_loss(objective, batch, VALUES)
    loss.backward()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, value in parts.items():
        assert output.metrics[name].item() == pytest.approx(value.item(), rel=1e-5), name
    for name, parameter in objective.student.named_parameters():
        scale = parameter.grad.abs().max()
        assert (found[name] - parameter.grad).abs().max() <= 1e-4 * scale + 1e-7, name


def test_a_step_changes_every_trained_parameter_and_no_teacher_gets_a_gradient():
    objective, batch = make(), make_batch()
    before, teacher = copy.deepcopy(objective.student.state_dict()), copy.deepcopy(objective.teacher.state_dict())
    optimizer = build_optimizer(parameter_groups(objective.student, 0.9, 0.2), [0.9, 0.999])
    set_rates(optimizer, VALUES)
    objective(batch, VALUES).loss.backward()
    norms = clip_gradients(objective.networks(), 3.0)
    assert set(norms) == {"backbone", "dino_head", "ibot_head"}
    optimizer.step()
    objective.after_step(0, VALUES)
    for name, value in objective.student.state_dict().items():
        assert not torch.equal(value, before[name]), f"{name} did not move"
        expected = 0.9 * teacher[name] + 0.1 * value
        assert torch.allclose(objective.teacher.state_dict()[name], expected, atol=1e-6), name
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in objective.teacher.parameters())


def test_networks_are_trained_and_teachers_are_not():
    objective = make()
    trained = [parameter for network in objective.networks().values() for parameter in network.parameters()]
    assert {id(p) for p in trained} == {id(p) for p in objective.student.parameters()}
    objective.train()
    assert objective.student.training and not objective.teacher.training
    assert not any(module.training for network in objective.frozen_networks().values() for module in network.modules())


def test_without_masked_patches_the_patch_loss_is_zero_and_its_head_keeps_a_gradient():
    objective = make()
    output = objective(make_batch(masked=False), VALUES)
    output.loss.backward()
    assert output.metrics["ibot"] == 0 and torch.isfinite(output.loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in objective.student.parameters())


def test_without_local_crops_only_the_global_pairs_count():
    objective, batch = make(koleo_weight=0.0, ibot_weight=0.0), make_batch(locals_=0)
    output = objective(batch, VALUES)
    assert output.loss.item() == pytest.approx(output.metrics["dino_global"].item(), rel=1e-6)
    assert output.metrics["dino_local"] == 0


def test_rope_augmentation_is_the_students_alone():
    torch.manual_seed(0)
    objective = make()
    student = objective.student
    student.dinov3.rope_augmentation = RopeAugmentation(rescale=2.0)
    fresh = SelfDistillation(student, ObjectiveArguments())
    assert fresh.student.dinov3.rope_augmentation is not None and fresh.teacher.dinov3.rope_augmentation is None


def test_bf16_stays_near_fp32():
    objective, batch = make(), make_batch()
    exact = objective(batch, VALUES).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(batch, VALUES)
    assert output.loss.dtype == torch.float32 and output.loss.item() == pytest.approx(exact, rel=2e-2)


def share(rank, folder):
    """One of two processes: its half of the images, then gradients averaged as data-parallel training does."""
    dist.init_process_group("gloo")
    batch = {name: value[:, 2 * rank : 2 * rank + 2] for name, value in make_uneven_batch().items()}
    results = {}
    for name, group in (("joint", dist.group.WORLD), ("apart", None)):
        objective = make(koleo_distributed=True)
        objective.join(group, group)
        output = objective(batch, VALUES)
        output.loss.backward()
        for parameter in objective.student.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= 2
        loss = output.loss.detach()
        dist.all_reduce(loss)
        results[name] = {"loss": loss / 2, **{key: p.grad for key, p in objective.student.named_parameters()}}
    torch.save(results, f"{folder}/{rank}.pt")


def make_uneven_batch():
    """Every masked patch belongs to an image of the first half: the second process has none."""
    batch = make_batch()
    batch["masks"][:, 2:] = False
    return batch


def test_two_processes_equal_one_and_do_not_without_communication(tmp_path):
    run_processes(share, str(tmp_path))
    objective = make(koleo_distributed=True)
    output = objective(make_uneven_batch(), VALUES)
    output.loss.backward()
    expected = {"loss": output.loss.detach(), **{key: p.grad for key, p in objective.student.named_parameters()}}

    def error(found, name):
        return ((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-7)).item()

    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in expected:
            assert error(results["joint"], name) < (1e-5 if name == "loss" else 1e-4), name
        # The negative control: a hundred times the tolerance apart.
        assert error(results["apart"], "loss") > 1e-3
        assert max(error(results["apart"], name) for name in expected if name != "loss") > 1e-2
