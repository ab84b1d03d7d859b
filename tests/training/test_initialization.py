"""Starting from anyone's weights: shapes, heads, adapters, and a backbone that rests while new heads warm up."""

import pytest
import torch
from safetensors.torch import load_file

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.checkpoints import export, load_pretraining
from dinov3_hf.errors import Refused
from dinov3_hf.training.arguments import CropArguments, GramArguments, ModelArguments, ObjectiveArguments
from dinov3_hf.training.engine.loop import build_optimizer, set_rates
from dinov3_hf.training.initialization import build_gram_teacher, build_student
from dinov3_hf.training.param_groups import parameter_groups
from dinov3_hf.training.self_distillation import SelfDistillation


TINY_HEADS = {
    f"{head}_head_{part}": size
    for head in ("dino", "ibot")
    for part, size in (("num_prototypes", 12), ("hidden_size", 20), ("bottleneck_size", 8))
}
CROPS = CropArguments(global_crop_size=16, local_crop_size=8, local_crops=2)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = Dinov3Config(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32, patch_size=4,
        num_register_tokens=1, layerscale_value=0.3, image_size=16, head_initializer_range=0.2, **TINY_HEADS,
    )  # fmt: skip
    return Dinov3ForPreTraining(config)


@pytest.fixture(scope="module")
def sources(network, tmp_path_factory):
    """The same backbone exported with heads, in the transformers layout, and in Meta's layouts."""
    folder = tmp_path_factory.mktemp("sources")
    export(network, folder / "ours")
    export(network.dinov3, folder / "reference")
    export(network.dinov3, folder / "meta", layout="meta")
    export(network, folder / "meta_training", layout="meta")
    return {
        "ours": folder / "ours",
        "reference": folder / "reference",
        "meta": folder / "meta" / "model.pth",
        "meta_training": folder / "meta_training" / "model.pth",
    }


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(2, 3, 16, dtype=torch.bool)
    masks[0, :, :5] = True
    return {
        "global_crops": torch.randn(2, 3, 3, 16, 16, generator=generator),
        "local_crops": torch.randn(2, 3, 3, 8, 8, generator=generator),
        "masks": masks,
    }


VALUES = {"teacher_temperature": 0.07, "local_weight": 1.0, "momentum": 0.9, "weight_decay": 0.1}


def step(objective, optimizer, lr, backbone_lr, seed=0):
    set_rates(optimizer, VALUES | {"lr": lr, "last_layer_lr": lr, "backbone_lr": backbone_lr})
    optimizer.zero_grad(set_to_none=True)
    objective(batch(seed), VALUES).loss.backward()
    optimizer.step()
    objective.after_step(0, VALUES)


@pytest.mark.parametrize(
    "name, has_heads", [("ours", True), ("reference", False), ("meta", False), ("meta_training", True)]
)
def test_weights_of_anyone(sources, network, name, has_heads):
    model = ModelArguments(init_from=str(sources[name]), **({} if has_heads else TINY_HEADS), num_attention_heads=2)
    if name == "meta":
        model.num_attention_heads = None
    student, heads_are_new = build_student(model, CROPS)
    assert heads_are_new is not has_heads
    for key, tensor in network.state_dict().items():
        if key.startswith("dinov3.") or has_heads:
            assert torch.equal(student.state_dict()[key], tensor), key
    assert student.config.dino_head_num_prototypes == 12


def test_new_heads_can_be_asked_for(sources, network):
    fields = TINY_HEADS | {"dino_head_num_prototypes": 30}
    student, heads_are_new = build_student(
        ModelArguments(init_from=str(sources["ours"]), init_heads=False, **fields), CROPS
    )
    assert heads_are_new and student.dino_head.last_layer.weight.shape[0] == 30
    assert torch.equal(student.dinov3.norm.weight, network.dinov3.norm.weight)


def test_a_shape_that_contradicts_the_weights_is_refused(sources):
    with pytest.raises(ValueError, match="hidden_size: got 48, accepted: null or 24, as init_from has it"):
        build_student(ModelArguments(init_from=str(sources["ours"]), hidden_size=48), CROPS)
    with pytest.raises(ValueError, match="hidden_size: got 384"):
        build_student(ModelArguments(init_from=str(sources["ours"]), size="vits16"), CROPS)
    with pytest.raises(Refused, match="^init_from: no config.json"):
        build_student(ModelArguments(init_from="./nowhere"), CROPS)


def test_a_local_norm_is_added_as_a_copy(sources, network):
    student, _ = build_student(
        ModelArguments(init_from=str(sources["ours"]), untie_global_and_local_cls_norm=True), CROPS
    )
    assert torch.equal(student.dinov3.local_cls_norm.weight, network.dinov3.norm.weight)


def test_backbone_and_its_teacher_rest_while_heads_warm_up(sources):
    student, _ = build_student(ModelArguments(init_from=str(sources["reference"]), **TINY_HEADS), CROPS)
    objective = SelfDistillation(student, ObjectiveArguments()).train()
    before = {key: tensor.clone() for key, tensor in objective.state_dict().items()}
    optimizer = build_optimizer(parameter_groups(student, 0.9, 0.2), [0.9, 0.999])
    step(objective, optimizer, 1e-2, 0.0)
    for key, tensor in objective.state_dict().items():
        rests = ".dinov3." in key or key == "gram_updates" or key.endswith("bias")
        assert torch.equal(tensor, before[key]) or not rests or "_head" in key, key
    assert not torch.equal(student.dino_head.last_layer.weight, before["student.dino_head.last_layer.weight"])
    assert not torch.equal(
        objective.teacher.dino_head.last_layer.weight, before["teacher.dino_head.last_layer.weight"]
    )
    step(objective, optimizer, 1e-2, 1e-2)
    assert not torch.equal(student.dinov3.norm.weight, before["student.dinov3.norm.weight"])


@pytest.fixture
def adapted(sources):
    pytest.importorskip("peft")
    torch.manual_seed(1)
    student, _ = build_student(ModelArguments(init_from=str(sources["ours"]), lora_rank=3, lora_alpha=6), CROPS)
    return student


def test_adapters_start_at_the_weights_and_only_they_and_heads_learn(adapted, network):
    images = batch()["global_crops"][0]
    with torch.no_grad():
        assert torch.allclose(
            adapted.dinov3(images).last_hidden_state, network.dinov3(images).last_hidden_state, atol=1e-6
        )
    objective = SelfDistillation(adapted, ObjectiveArguments()).train()
    before = {key: tensor.clone() for key, tensor in objective.state_dict().items()}
    optimizer = build_optimizer(parameter_groups(adapted, 0.9, 0.2), [0.9, 0.999])
    for seed in range(2):
        step(objective, optimizer, 1e-2, 1e-2, seed)
    after = objective.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    student = {key.removeprefix("student.") for key in moved if key.startswith("student.")}
    assert all("lora_" in key or "_head." in key or "mask_token" in key for key in student)
    assert sum("lora_" in key for key in student) == 2 * 2 * 6  # A and B of six linear layers in two blocks
    # The teacher follows exactly what moves, with momentum .9 of two steps.
    assert {key.removeprefix("teacher.") for key in moved if key.startswith("teacher.")} == student


def test_adapters_are_merged_on_export(adapted, network, tmp_path):
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    export(adapted, tmp_path)
    merged, images = load_pretraining(tmp_path), batch()["global_crops"][0]
    with torch.no_grad():
        expected = adapted.dinov3.eval()(images).last_hidden_state
        found = merged.dinov3(images).last_hidden_state
        plain = network.dinov3(images).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5) and (found - plain).abs().max() > 0.1
    assert not any("lora" in key or "base_layer" in key for key in load_file(tmp_path / "model.safetensors"))


def test_adapters_need_weights_to_start_from():
    with pytest.raises(ValueError, match="lora_rank: got 4, accepted: null without init_from"):
        ModelArguments(lora_rank=4).validate()


def test_gram_teachers(sources, adapted, network):
    assert build_gram_teacher(GramArguments(), network) is None
    assert build_gram_teacher(GramArguments(gram_teacher="ema"), network) is None
    gram = GramArguments(gram_teacher="checkpoint", gram_checkpoint=str(sources["ours"]))
    assert isinstance(build_gram_teacher(gram, network), Dinov3Model)
    copied = GramArguments(gram_teacher="ema_copy", gram_start_step=1)
    objective = SelfDistillation(adapted, ObjectiveArguments(), build_gram_teacher(copied, adapted), copied)
    for parameter in objective.teacher.parameters():
        parameter.add_(0.5)
    objective.before_step(1)
    for mine, theirs in zip(objective.gram_teacher.parameters(), objective.teacher.dinov3.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not any(parameter.requires_grad for parameter in objective.gram_teacher.parameters())
