import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    DINOv3ConvNextBackbone,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from dinov3_hf import (
    Dinov3ConvNextBackbone,
    Dinov3ConvNextConfig,
    Dinov3ConvNextForImageClassification,
    Dinov3ConvNextModel,
    Dinov3ImageProcessor,
)
from dinov3_hf.models.configuration_dinov3_convnext import CONVNEXT_SIZES
from dinov3_hf.pipelines.dense import dense_features


SMALL = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}
SHAPES = ((2, 3, 64, 64), (1, 3, 64, 96), (1, 3, 75, 110))


def fill(model):
    """Weights that each matter: with the layer scale of 1e-6 a block could be wrong unseen."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter, std=0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model.eval()


def make(model_class=Dinov3ConvNextModel, **fields):
    return fill(model_class(Dinov3ConvNextConfig(**{**SMALL, **fields})))


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def assert_close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


# Parity with transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "depths"),
    [
        ("convnext_tiny", [3, 3, 9, 3]),
        ("convnext_small", [3, 3, 27, 3]),
        # B and L are S but for their widths: the whole of them is a matter of patience.
        ("convnext_base", [1, 1, 2, 1]),
        ("convnext_large", [1, 1, 2, 1]),
        pytest.param("convnext_base", [3, 3, 27, 3], marks=pytest.mark.slow),
        pytest.param("convnext_large", [3, 3, 27, 3], marks=pytest.mark.slow),
    ],
)
def test_transformers_directory_gives_the_same_outputs(size, depths, tmp_path):
    reference = fill(DINOv3ConvNextModel(DINOv3ConvNextConfig(**{**CONVNEXT_SIZES[size], "depths": depths})))
    reference.save_pretrained(tmp_path)
    ours, info = Dinov3ConvNextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert ours.config.hidden_sizes == CONVNEXT_SIZES[size]["hidden_sizes"]
    for shape in SHAPES if size == "convnext_tiny" else SHAPES[1:2]:
        pixel_values = images(*shape)
        with torch.no_grad():
            expected, output = (model(pixel_values, output_hidden_states=True) for model in (reference, ours))
        assert expected.last_hidden_state.std() > 0.1
        assert_close(output.last_hidden_state, expected.last_hidden_state)
        assert_close(output.pooler_output, expected.pooler_output)
        assert len(output.hidden_states) == len(expected.hidden_states) == 5
        for ours_map, transformers_map in zip(output.hidden_states, expected.hidden_states, strict=True):
            assert_close(ours_map, transformers_map)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("indices", [[4], [1, 2, 3, 4], [0, 3]])
def test_backbone_gives_the_maps_of_transformers(shape, indices, tmp_path):
    fill(DINOv3ConvNextModel(DINOv3ConvNextConfig(**SMALL))).save_pretrained(tmp_path)
    reference = DINOv3ConvNextBackbone.from_pretrained(tmp_path, out_indices=indices).eval()
    ours, info = Dinov3ConvNextBackbone.from_pretrained(tmp_path, out_indices=indices, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert ours.channels == reference.channels and ours.out_features == reference.out_features
    pixel_values = images(*shape)
    with torch.no_grad():
        output, expected = ours.eval()(pixel_values), reference(pixel_values)
        states = ours(pixel_values, output_hidden_states=True).hidden_states
    assert output.hidden_states is None and len(states) == 5
    assert len(output.feature_maps) == len(expected.feature_maps) == len(indices)
    for ours_map, transformers_map in zip(output.feature_maps, expected.feature_maps, strict=True):
        assert torch.equal(ours_map, transformers_map)


@pytest.mark.parametrize(
    ("size", "millions"),
    [("convnext_tiny", 28), ("convnext_small", 49.5), ("convnext_base", 87.6), ("convnext_large", 196.2)],
)
def test_parameter_counts(size, millions):
    with torch.device("meta"):
        model = Dinov3ConvNextModel(Dinov3ConvNextConfig.from_size(size))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=1e-2)


def test_parameter_names_are_those_of_published_files(tmp_path):
    model = make(depths=[1, 1, 1, 1])
    block = [f"{n}.{k}" for n in ("depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2") for k in "wb"]
    stage = [f"downsample_layers.{i}.{k}" for i in (0, 1) for k in "wb"] + [f"layers.0.{n}" for n in ["gamma", *block]]
    names = [f"stages.{i}.{n}" for i in range(4) for n in stage] + ["layer_norm.w", "layer_norm.b"]
    names = {name[:-1] + {"w": "weight", "b": "bias"}[name[-1]] if name[-2] == "." else name for name in names}
    assert set(model.state_dict()) == names
    reference = DINOv3ConvNextModel(DINOv3ConvNextConfig(**{**SMALL, "depths": [1, 1, 1, 1]}))
    reference.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == names


# The method ---------------------------------------------------------------------------------------------------------


def test_outputs_are_one_norm_over_mean_and_patches():
    model, pixel_values = make(), images(2, 3, 64, 96)
    output = model(pixel_values, output_hidden_states=True)
    last = output.hidden_states[-1]
    assert last.shape == (2, 24, 2, 3)
    tokens = torch.stack([last.mean(dim=(2, 3)), *[last[:, :, i, j] for i in range(2) for j in range(3)]], dim=1)
    weight, bias = model.layer_norm.weight, model.layer_norm.bias
    centred = tokens - tokens.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias
    assert_close(output.last_hidden_state, expected)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert torch.equal(output.patch_tokens, output.last_hidden_state[:, 1:])
    assert output.register_tokens.shape == (2, 0, 24)
    config = model.config
    assert (config.hidden_size, config.patch_size, config.num_register_tokens) == (24, 32, 0)
    assert Dinov3ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1]).patch_size == 8


def triangle(length: int, size: int) -> torch.Tensor:
    """Antialiased bilinear resampling of a line as a matrix [size,length], by its definition."""
    scale = length / size
    reach = max(scale, 1.0)
    rows = []
    for index in range(size):
        centre = (index + 0.5) * scale
        weights = [max(0.0, 1 - abs((place + 0.5 - centre) / reach)) for place in range(length)]
        rows.append([weight / sum(weights) for weight in weights])
    return torch.tensor(rows)


@pytest.mark.parametrize(("shape", "patch_size"), [((2, 3, 64, 96), 16), ((1, 3, 75, 110), 16), ((1, 3, 64, 96), 14)])
def test_intermediate_maps_are_resized_then_the_last_one_is_normalised(shape, patch_size):
    model, pixel_values = make(), images(*shape)
    height, width = shape[2] // patch_size, shape[3] // patch_size
    with torch.no_grad():
        maps = model.intermediate_maps(pixel_values, patch_size)
        raw = model(pixel_values, output_hidden_states=True).hidden_states[1:]
        expected = [triangle(m.shape[2], height) @ m @ triangle(m.shape[3], width).T for m in raw]
        expected[-1] = model.layer_norm(expected[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert [tuple(m.shape[1:]) for m in maps] == [(d, height, width) for d in SMALL["hidden_sizes"]]
    for ours, theirs in zip(maps, expected, strict=True):
        assert_close(ours, theirs)


def test_drop_path_is_a_ramp_over_all_blocks_drawn_for_each_image():
    model = make(drop_path_rate=0.4, depths=[1, 2, 1, 1])
    rates = [getattr(layer.drop_path, "drop_prob", 0.0) for stage in model.stages for layer in stage.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    layer, maps = model.stages[3].layers[0].train(), images(400, 24, 2, 2)
    with torch.no_grad():
        branch = layer.eval()(maps) - maps
        kept = (layer.train()(maps) - maps).flatten(1)
    dropped = (kept == 0).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.4, abs=0.08)
    assert_close(kept[~dropped], branch.flatten(1)[~dropped] / 0.6)


def test_initial_weights():
    config = Dinov3ConvNextConfig(hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1])
    model = Dinov3ConvNextModel(config).requires_grad_(False)
    layer = model.stages[2].layers[0]
    for module in (layer.depthwise_conv, layer.pointwise_conv1, model.stages[1].downsample_layers[1]):
        assert module.weight.std() == pytest.approx(0.02, rel=0.05) and module.bias.abs().max() == 0
    assert (layer.gamma == 1e-6).all() and (model.layer_norm.weight == 1).all()


# Training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [Dinov3ConvNextModel, Dinov3ConvNextForImageClassification])
def test_one_step_changes_every_parameter(model_class):
    model = make(model_class, num_labels=3, drop_path_rate=0.1).train()
    before = copy.deepcopy(model.state_dict())
    pixel_values = images(4, 3, 64, 96)
    if model_class is Dinov3ConvNextModel:
        loss = model(pixel_values).last_hidden_state.pow(3).mean()
    else:
        loss = model(pixel_values, labels=torch.tensor([0, 1, 2, 1])).loss
    loss.backward()
    # Adam's first step has the learning rate's size wherever there is a gradient.
    torch.optim.Adam(model.parameters(), lr=1e-2).step()
    assert [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])] == []


def test_backbone_has_no_parameter_without_a_gradient():
    backbone = make(Dinov3ConvNextBackbone).train()
    backbone(images(1, 3, 64, 64)).feature_maps[0].sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_activation_checkpointing_keeps_gradients(drop_path_rate):
    model, gradients = make(drop_path_rate=drop_path_rate).train(), []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model.zero_grad()
        torch.manual_seed(3)
        model(images(4, 3, 64, 64)).last_hidden_state.pow(3).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_bf16_stays_near_fp32():
    model, pixel_values = make(), images(2, 3, 64, 96)
    expected = model(pixel_values).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(pixel_values).last_hidden_state - expected).abs().max() < 0.1
    model.bfloat16()
    assert (model(pixel_values.bfloat16()).last_hidden_state - expected).abs().max() < 0.1
    assert model.intermediate_maps(pixel_values.bfloat16())[-1].dtype == torch.bfloat16


@pytest.mark.slow
def test_fullgraph_compile():
    model, pixel_values = make(depths=[1, 1, 1, 1]), images(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, output = (m(pixel_values, output_hidden_states=True) for m in (model, compiled))
    assert_close(output.last_hidden_state, expected.last_hidden_state)
    assert_close(output.hidden_states[-1], expected.hidden_states[-1])


# The transformers machinery -----------------------------------------------------------------------------------------


def test_every_auto_class_finds_ours(tmp_path):
    classifier, pixel_values = make(Dinov3ConvNextForImageClassification, num_labels=3), images(1, 3, 64, 96)
    classifier.save_pretrained(tmp_path)
    Dinov3ImageProcessor().save_pretrained(tmp_path)
    with torch.no_grad():
        again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(again(pixel_values).logits, classifier(pixel_values).logits)
        model = AutoModel.from_pretrained(tmp_path).eval()
        assert isinstance(model, Dinov3ConvNextModel)
        assert torch.equal(model(pixel_values).last_hidden_state, classifier.dinov3(pixel_values).last_hidden_state)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is Dinov3ConvNextConfig and config.depths == SMALL["depths"]
    assert isinstance(AutoBackbone.from_config(config), Dinov3ConvNextBackbone)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), Dinov3ImageProcessor)


def test_a_head_of_transformers_takes_all_four_stages(tmp_path):
    backbone = make(Dinov3ConvNextBackbone, hidden_sizes=[8, 16, 24, 32], out_indices=[1, 2, 3, 4])
    config = UperNetConfig(backbone_config=backbone.config, hidden_size=16, num_labels=3, use_auxiliary_head=False)
    model, pixel_values = fill(UperNetForSemanticSegmentation(config)), images(1, 3, 64, 96)
    model.backbone.load_state_dict(backbone.state_dict())
    model.save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = model(pixel_values).logits
        assert logits.shape == (1, 3, 64, 96) and logits.std() > 0.1
        assert_close(again(pixel_values).logits, logits)


def test_classifier_sees_class_token_and_mean_patch():
    model, pixel_values = make(Dinov3ConvNextForImageClassification, num_labels=3), images(2, 3, 64, 96)
    tokens, labels = model.dinov3(pixel_values).last_hidden_state, torch.tensor([2, 0])
    logits = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1) @ model.classifier.weight.T + model.classifier.bias
    output = model(pixel_values, labels=labels)
    assert_close(output.logits, logits)
    assert_close(output.loss, -logits.log_softmax(1)[torch.arange(2), labels].mean())


def test_dense_features_cover_images_of_any_size():
    model = make()
    whole = dense_features(model, images(1, 3, 64, 96))
    assert_close(whole, model(images(1, 3, 64, 96)).patch_tokens.transpose(1, 2).unflatten(2, (2, 3)))
    assert dense_features(model, images(1, 3, 100, 130), window=64).shape == (1, 24, 3, 4)
    with pytest.raises(
        ValueError, match="got a Dinov3ConvNextBackbone, accepted: a Dinov3Model, a Dinov3ConvNextModel"
    ):
        dense_features(make(Dinov3ConvNextBackbone), images(1, 3, 64, 64))


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 31, 64)])
@pytest.mark.parametrize("model_class", [Dinov3ConvNextModel, Dinov3ConvNextBackbone])
def test_wrong_images_give_one_line(model_class, shape):
    with pytest.raises(ValueError) as error:
        make(model_class)(torch.randn(shape))
    assert f"pixel_values of shape {shape} must be [B,3,H,W] with H and W at least 32" in str(error.value)


def test_intermediate_maps_refuse_a_patch_larger_than_the_image():
    with pytest.raises(ValueError, match="patch_size: got 65, accepted: at most the sides of the images \\(64\\)"):
        make().intermediate_maps(images(1, 3, 64, 96), patch_size=65)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [1, 1]}, "depths: got 2 stages, accepted: as many as hidden_sizes (4)"),
        ({"depths": [1, 0, 1, 1]}, "depths: got [1, 0, 1, 1], accepted: a number of at least 1 for each stage"),
        ({"hidden_sizes": []}, "hidden_sizes: got [], accepted: a number of at least 1 for each stage"),
        ({"drop_path_rate": 1.0}, "drop_path_rate: got 1.0, accepted: at least 0 and below 1"),
        ({"num_channels": 0}, "num_channels: got 0, accepted: at least 1"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError) as error:
        Dinov3ConvNextConfig(**{**SMALL, **fields})
    assert str(error.value) == message


def test_unknown_fields_and_sizes_are_refused(tmp_path):
    with pytest.raises(TypeError, match="no field 'hidden_size' \\(did you mean 'hidden_sizes'"):
        Dinov3ConvNextConfig(hidden_size=8)
    with pytest.raises(ValueError, match="size 'convnext_huge' must be one of convnext_tiny, convnext_small"):
        Dinov3ConvNextConfig.from_size("convnext_huge")
    assert Dinov3ConvNextConfig.from_size("convnext_base", drop_path_rate=0.1).hidden_size == 1024
    assert Dinov3ConvNextConfig() == Dinov3ConvNextConfig.from_size("convnext_tiny")
