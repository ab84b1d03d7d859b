import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, DINOv3ViTConfig, DINOv3ViTModel

from dinov3_hf import Dinov3Backbone, Dinov3Config, Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.checkpoints import load_meta
from dinov3_hf.checkpoints.meta_vit import vit_to_meta
from dinov3_hf.models import modeling_dinov3
from dinov3_hf.models.rope_dinov3 import RopeAugmentation


GOLDEN = load_file(Path(__file__).parents[1] / "data" / "vit_a.safetensors")
GOLDEN_TOKENS = {
    "x_norm_clstoken": "pooler_output",
    "x_norm_patchtokens": "patch_tokens",
    "x_storage_tokens": "register_tokens",
}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
    "num_register_tokens": 2,
    "layerscale_value": 0.5,
}
TINY_HEADS = {
    f"{head}_head_{field}": value
    for head in ("dino", "ibot")
    for field, value in {"num_prototypes": 24, "hidden_size": 48, "bottleneck_size": 16, "num_layers": 2}.items()
}


def make(model_class=Dinov3Model, **fields):
    torch.manual_seed(0)
    return model_class(Dinov3Config(**{**SMALL, **fields})).eval()


def golden_model(**overrides):
    state = {name[3:]: tensor for name, tensor in GOLDEN.items() if name.startswith("sd/")}
    return load_meta(state, **overrides)


def assert_close(ours, theirs, atol=2e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


# Parity with transformers -------------------------------------------------------------------------------------------

FAMILY = {
    "S": {"num_hidden_layers": 12},
    "S+": {"use_gated_mlp": True, "hidden_act": "silu"},
    "B": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "L": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    "H+": {
        "hidden_size": 1280,
        "num_attention_heads": 20,
        "intermediate_size": 5120,
        "use_gated_mlp": True,
        "hidden_act": "silu",
    },
    # The width of 7B costs too much memory here; its head dim, its MLP and its missing biases are what differ.
    "7B": {
        "hidden_size": 512,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "query_bias": False,
        "value_bias": False,
    },
    "key bias": {"key_bias": True, "num_register_tokens": 0},
}


@pytest.mark.parametrize("family", FAMILY)
def test_transformers_directory_gives_the_same_outputs(family, tmp_path):
    torch.manual_seed(0)
    fields = {"num_hidden_layers": 1, "num_register_tokens": 4, **FAMILY[family]}
    reference = DINOv3ViTModel(DINOv3ViTConfig(**fields)).eval()
    for name, parameter in reference.named_parameters():
        if name.endswith(("bias", "token", "tokens", "lambda1")):
            torch.nn.init.normal_(parameter, std=0.2)
    reference.save_pretrained(tmp_path)
    ours, info = Dinov3Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for size in ((224, 224), (256, 320), (230, 250)) if family == "S" else ((64, 96),):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected, output = (model(images, output_hidden_states=True) for model in (reference, ours))
        assert_close(output.last_hidden_state, expected.last_hidden_state, atol=1e-5)
        assert_close(output.pooler_output, expected.pooler_output, atol=1e-5)
        assert len(output.hidden_states) == len(expected.hidden_states) == fields["num_hidden_layers"] + 1
        for ours_state, transformers_state in zip(output.hidden_states, expected.hidden_states, strict=True):
            assert_close(ours_state, transformers_state, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("vits16", 21.6),
        ("vits16plus", 28.7),
        ("vitb16", 85.7),
        ("vitl16", 303),
        ("vith16plus", 840),
        ("vit7b16", 6716),
    ],
)
def test_parameter_counts(size, millions):
    with torch.device("meta"):
        model = Dinov3Model(Dinov3Config.from_size(size))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=5e-3)


def test_parameter_names_are_frozen():
    blocks = [
        f"layer.0.{name}"
        for name in (
            "norm1.weight",
            "norm1.bias",
            "attention.q_proj.weight",
            "attention.q_proj.bias",
            "attention.k_proj.weight",
            "attention.v_proj.weight",
            "attention.v_proj.bias",
            "attention.o_proj.weight",
            "attention.o_proj.bias",
            "layer_scale1.lambda1",
            "norm2.weight",
            "norm2.bias",
            "mlp.up_proj.weight",
            "mlp.up_proj.bias",
            "mlp.down_proj.weight",
            "mlp.down_proj.bias",
            "layer_scale2.lambda1",
        )
    ]
    embeddings = ["cls_token", "mask_token", "register_tokens", "patch_embeddings.weight", "patch_embeddings.bias"]
    names = [f"embeddings.{name}" for name in embeddings] + blocks + ["norm.weight", "norm.bias"]
    assert list(make(num_hidden_layers=1).state_dict()) == names
    untied = make(num_hidden_layers=1, untie_global_and_local_cls_norm=True)
    assert list(untied.state_dict()) == names + ["local_cls_norm.weight", "local_cls_norm.bias"]
    heads = [f"{h}_head.{n}" for h in ("dino", "ibot") for n in ("mlp.0.weight", "mlp.0.bias")]
    pretraining = make(Dinov3ForPreTraining, **TINY_HEADS, num_hidden_layers=1).state_dict()
    assert [f"dinov3.{name}" for name in names] == [name for name in pretraining if name.startswith("dinov3.")]
    assert set(heads) | {"dino_head.last_layer.weight", "ibot_head.mlp.2.bias"} < set(pretraining)
    gated = make(num_hidden_layers=1, use_gated_mlp=True, layerscale_value=None).state_dict()
    assert "layer.0.mlp.gate_proj.weight" in gated and not any("layer_scale" in name for name in gated)


def test_initial_weights():
    model = make(Dinov3ForPreTraining, **TINY_HEADS, hidden_size=128, head_initializer_range=0.1).requires_grad_(False)
    linear = model.dinov3.layer[0].mlp.up_proj
    assert linear.weight.std() == pytest.approx(0.02, rel=0.05) and linear.bias.abs().max() == 0
    assert model.dino_head.last_layer.weight.std() == pytest.approx(0.1, rel=0.15)
    assert model.dino_head.mlp[0].weight.std() == pytest.approx(0.1, rel=0.05)
    embeddings, bound = model.dinov3.embeddings, (3 * 8 * 8) ** -0.5
    for parameter in embeddings.patch_embeddings.parameters():
        assert 0.9 * bound < parameter.abs().max() <= bound
    assert embeddings.cls_token.std() == pytest.approx(0.02, rel=0.3) and embeddings.mask_token.abs().max() == 0
    assert (model.dinov3.layer[0].layer_scale1.lambda1 == 0.5).all()


# Parity with the published system -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "images"), [("eval64", "x64"), ("eval96x48", "x96x48"), ("eval64_masked", "x64")])
def test_golden_outputs(group, images):
    mask = GOLDEN["in/mask"] if group.endswith("masked") else None
    with torch.no_grad():
        output = golden_model()(GOLDEN[f"in/{images}"], mask, output_hidden_states=True)
    for name, field in GOLDEN_TOKENS.items():
        assert_close(output[field], GOLDEN[f"{group}/{name}"])
    assert_close(output.hidden_states[-1], GOLDEN[f"{group}/x_prenorm"])


@pytest.mark.parametrize("images", ["x64", "x96x48"])
def test_golden_intermediate_layers(images):
    model = golden_model(out_indices=[1, 3])
    backbone = Dinov3Backbone(model.config)
    backbone.load_state_dict(model.state_dict())
    with torch.no_grad():
        output = backbone.eval()(GOLDEN[f"in/{images}"], output_hidden_states=True)
    for layer, feature_map in zip((0, 2), output.feature_maps, strict=True):
        golden = f"inter_{images}_norm_reshape/layer{layer}"
        assert_close(feature_map, GOLDEN[f"{golden}/patch"])
        tokens = model.norm(output.hidden_states[layer + 1])
        assert_close(tokens[:, 0], GOLDEN[f"{golden}/cls"])
        assert_close(tokens[:, 1:5], GOLDEN[f"{golden}/storage"])


def test_golden_joint_training_pass_and_gradients():
    model = golden_model().train()
    outputs = model.forward_crops([GOLDEN["in/x64"], GOLDEN["in/xlocal32"]], [GOLDEN["in/mask"], None])
    loss = 0
    for group, output in zip(("global", "local"), outputs, strict=True):
        for name, field in GOLDEN_TOKENS.items():
            assert_close(output[field], GOLDEN[f"trainlist/{group}/{name}"])
            # In fp64: terms of both signs nearly cancel.
            loss = loss + (output[field].double() * GOLDEN[f"trainlist/{group}/gradweight_{name}"]).sum()
    torch.testing.assert_close(loss.float(), GOLDEN["trainlist/loss"], rtol=1e-5, atol=0)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = vit_to_meta(model.config, gradients)
    golden = {name.removeprefix("trainlist/grad/"): t for name, t in GOLDEN.items() if "trainlist/grad/" in name}
    assert set(golden) == {name for name in gradients if "bias_mask" not in name and "periods" not in name}
    for name, gradient in golden.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name


# Packed crops -------------------------------------------------------------------------------------------------------


def test_packed_crops_equal_separate_calls_in_value_and_gradient():
    torch.manual_seed(0)
    crops = [torch.randn(2, 3, 32, 24), torch.randn(4, 3, 16, 16), torch.randn(1, 3, 40, 40)]
    masks = [torch.rand(2, 12) > 0.5, None, None]
    model = make().train()
    packed = model.forward_crops(crops, masks)
    separate = [model(crop, mask) for crop, mask in zip(crops, masks, strict=True)]
    gradients = []
    for outputs in (packed, separate):
        model.zero_grad()
        sum(output.last_hidden_state.pow(3).mean() for output in outputs).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for ours, theirs in zip(packed, separate, strict=True):
        assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5)
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], atol=1e-5)


def test_local_norm_serves_prefix_tokens_of_local_crops_in_training_only():
    model = make(untie_global_and_local_cls_norm=True)
    torch.nn.init.constant_(model.local_cls_norm.bias, 3.0)
    crops = [torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 16)]
    expected = [model(crop).last_hidden_state for crop in crops]
    for output, tokens in zip(model.forward_crops(crops), expected, strict=True):
        assert_close(output.last_hidden_state, tokens, atol=1e-5)
    first, local = model.train().forward_crops(crops)
    assert_close(first.last_hidden_state, expected[0], atol=1e-5)
    assert_close(local.last_hidden_state[:, :3], expected[1][:, :3] + 3, atol=1e-5)
    assert_close(local.patch_tokens, expected[1][:, 3:], atol=1e-5)


def test_train_mode_alone_is_deterministic_and_augmentation_acts_there_only(monkeypatch):
    model, images = make(pos_embed_rescale=2.0), torch.randn(2, 3, 16, 16)
    plain = model(images).last_hidden_state
    assert torch.equal(model.train()(images).last_hidden_state, plain)
    model.rope_augmentation = RopeAugmentation(rescale=2.0)
    assert not torch.equal(model(images).last_hidden_state, model(images).last_hidden_state)
    draws, draw = [], RopeAugmentation.__call__
    monkeypatch.setattr(RopeAugmentation, "__call__", lambda self, coords: draws.append(1) or draw(self, coords))
    model.forward_crops([images, images])
    assert len(draws) == 4, "one draw for each of 2 blocks and 2 crop groups"
    assert torch.equal(model.eval()(images).last_hidden_state, plain)


# Input --------------------------------------------------------------------------------------------------------------


def test_remainder_is_cut_off_with_a_warning(monkeypatch):
    seen = []
    monkeypatch.setattr(modeling_dinov3.logger, "warning_once", seen.append, raising=False)
    model, images = make(), torch.randn(1, 3, 21, 35)
    output = model(images)
    assert output.patch_tokens.shape == (1, 2 * 4, 32)
    assert seen == ["Images of 21x35 are no multiple of the patch size 8: the remainder is cut off."]
    torch.testing.assert_close(output.last_hidden_state, model(images[..., :16, :32]).last_hidden_state)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 4, 16, 16), (1, 3, 7, 16)])
def test_wrong_images_give_one_line(shape):
    with pytest.raises(ValueError) as error:
        make()(torch.randn(shape))
    assert f"pixel_values of shape {shape} must be [B,3,H,W] with H and W at least 8" in str(error.value)


# The transformers machinery -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_attention_implementations_agree_with_sdpa(implementation):
    model, images = make(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images).last_hidden_state
        model.set_attn_implementation(implementation)
        assert_close(model(images).last_hidden_state, expected, atol=2e-6)


def test_flash_attention_is_dispatched():
    model = make()
    try:
        model.set_attn_implementation("flash_attention_2")
    except ImportError as error:
        pytest.skip(f"flash_attention_2: {str(error).splitlines()[0][:80]}")
    if not torch.cuda.is_available():
        pytest.skip("flash_attention_2 needs a GPU")
    model, images = model.cuda().bfloat16(), torch.randn(2, 3, 32, 32, device="cuda")
    flash = model(images).last_hidden_state
    model.set_attn_implementation("sdpa")
    assert_close(flash, model(images).last_hidden_state, atol=5e-2)


def test_attentions_are_returned_and_sum_to_one():
    model = make()
    model.set_attn_implementation("eager")
    attentions = model(torch.randn(1, 3, 16, 16), output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(1, 2, 7, 7)] * 2
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(1, 2, 7))


def test_fullgraph_compile_of_every_entry():
    model, images = make(), torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, output = model(images, output_hidden_states=True), compiled(images, output_hidden_states=True)
    assert_close(output.last_hidden_state, expected.last_hidden_state, atol=1e-5)
    assert_close(output.hidden_states[-1], expected.hidden_states[-1], atol=1e-5)
    model.train().rope_augmentation = RopeAugmentation(shift=0.1, jitter=1.5, rescale=2.0)
    compiled(images, torch.rand(2, 16) > 0.5).last_hidden_state.sum().backward()
    model.rope_augmentation = None
    pack = torch.compile(model.forward_crops, fullgraph=True, backend="aot_eager")
    crops = [images, torch.randn(2, 3, 16, 16)]
    for ours, theirs in zip(pack(crops), model.forward_crops(crops), strict=True):
        assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5)


@pytest.mark.slow
def test_fullgraph_inductor_compile():
    model, images = make(), torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(images).last_hidden_state, model(images).last_hidden_state, atol=1e-5)


def test_compiled_blocks_equal_eager_ones():
    model = make()
    crops = [torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 16)]
    expected = model.forward_crops(crops)
    for layer in model.layer:
        layer.compile(fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(model.forward_crops(crops), expected, strict=True):
        assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_activation_checkpointing_keeps_gradients(drop_path_rate):
    model = make(drop_path_rate=drop_path_rate).train()
    crops = [torch.randn(4, 3, 32, 32), torch.randn(4, 3, 16, 16)]
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model.zero_grad()
        torch.manual_seed(3)
        sum(output.last_hidden_state.pow(3).sum() for output in model.forward_crops(crops)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_stays_near_fp32_and_trains(autocast):
    model, images = make(layerscale_value=1.0), torch.randn(2, 3, 32, 32)
    expected = model(images).last_hidden_state
    if not autocast:
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = model.train().forward_crops([images, images[..., :16, :16]])
        outputs[0].last_hidden_state.float().pow(3).sum().backward()
    assert (outputs[0].last_hidden_state - expected).abs().max() < 0.05
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_deep_copy_and_pickle_free_state(tmp_path):
    model, images = make(), torch.randn(1, 3, 16, 16)
    expected = model(images).last_hidden_state
    assert torch.equal(copy.deepcopy(model)(images).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    for loaded in (Dinov3Model.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, Dinov3Model)
        assert torch.equal(loaded(images).last_hidden_state, expected)
