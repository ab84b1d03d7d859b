import pytest
import torch
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig

from dinov3_hf import Dinov3Backbone, Dinov3Config
from dinov3_hf.models.configuration_dinov3_pyramid import Dinov3PyramidConfig
from dinov3_hf.models.modeling_dinov3_pyramid import Dinov3PyramidBackbone


def vit_config(**fields):
    fields = {"patch_size": 8, "num_hidden_layers": 4, **fields}
    return Dinov3Config(hidden_size=24, intermediate_size=32, num_attention_heads=2, num_register_tokens=2, **fields)


def pyramid(strides=(4, 8, 16, 32), **fields):
    torch.manual_seed(0)
    model = Dinov3PyramidBackbone(Dinov3PyramidConfig(vit_config=vit_config(**fields), strides=strides)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("patch_size, image", [(8, (64, 96)), (16, (64, 96)), (4, (32, 32)), (32, (64, 32))])
def test_maps_have_the_strides_of_the_image(patch_size, image):
    model = pyramid(patch_size=patch_size)
    maps = model(torch.randn(2, 3, *image)).feature_maps
    assert [tuple(found.shape) for found in maps] == [(2, 24, image[0] // s, image[1] // s) for s in (4, 8, 16, 32)]
    assert model.channels == [24] * 4


def test_each_level_is_made_from_its_own_stage():
    model, images = pyramid(patch_size=16, out_indices=[1, 2, 3, 4]), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, maps = model(images).feature_maps, model.vit(images).feature_maps
        first, norm, _, second = model.levels[0]
        up = F.conv_transpose2d(maps[0], first.weight, first.bias, stride=2)
        mean, variance = up.mean((1, 2, 3)), up.var((1, 2, 3), correction=0)
        up = (up - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        finest = F.conv_transpose2d(F.gelu(up), second.weight, second.bias, stride=2)
        finer = F.conv_transpose2d(maps[1], model.levels[1][0].weight, model.levels[1][0].bias, stride=2)
    torch.testing.assert_close(found[0], finest)
    torch.testing.assert_close(found[1], finer)
    assert torch.equal(found[2], maps[2])
    assert torch.equal(found[3], maps[3].unflatten(2, (2, 2)).unflatten(4, (2, 2)).amax((3, 5)))


def test_one_stage_serves_every_level():
    model, images = pyramid(strides=(8, 32)), torch.randn(1, 3, 64, 64)
    found, last = model(images).feature_maps, model.vit(images).feature_maps[0]
    assert torch.equal(found[0], last)
    assert torch.equal(found[1], F.max_pool2d(last, 4))


def test_the_backbone_inside_is_the_same_as_alone():
    model, images = pyramid(out_indices=[1, 2, 3, 4]), torch.randn(1, 3, 32, 64)
    alone = Dinov3Backbone(model.config.vit_config).eval()
    alone.load_state_dict(model.vit.state_dict())
    states = model(images, output_hidden_states=True).hidden_states
    expected = alone(images, output_hidden_states=True).hidden_states
    assert len(states) == len(expected) == 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(states, expected, strict=True))
    assert model(images).hidden_states is None
    assert torch.equal(model(images, return_dict=False)[0][1], model(images).feature_maps[1])


def test_a_saved_pyramid_loads_equal(tmp_path):
    model, images = pyramid(strides=(4, 16), out_indices=[2, 4]), torch.randn(1, 3, 32, 32)
    model.save_pretrained(tmp_path)
    loaded, info = Dinov3PyramidBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for ours, theirs in zip(model(images).feature_maps, loaded(images).feature_maps, strict=True):
        assert torch.equal(ours, theirs)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config.vit_config) is Dinov3Config and config.stage_names == ["stride4", "stride16"]
    assert type(AutoBackbone.from_config(config)) is Dinov3PyramidBackbone


def test_out_features_choose_levels():
    config = Dinov3PyramidConfig(vit_config=vit_config(), out_features=["stride8", "stride32"])
    model = Dinov3PyramidBackbone(config)
    assert [found.shape[-1] for found in model(torch.randn(1, 3, 64, 64)).feature_maps] == [8, 2]


def test_gradients_reach_backbone_and_levels():
    model = pyramid()
    sum(found.square().mean() for found in model(torch.randn(1, 3, 32, 32)).feature_maps).backward()
    assert model.vit.embeddings.patch_embeddings.weight.grad.norm() > 0
    assert model.levels[0][0].weight.grad.norm() > 0


@pytest.mark.parametrize(
    "vit, fields, error, message",
    [
        ({}, {"strides": (4, 12)}, ValueError, r"strides: got \[4, 12\], accepted: ascending, the patch size 8 times"),
        ({}, {"strides": (8, 4)}, ValueError, r"strides: got \[8, 4\]"),
        ({}, {"strides": (0, 4)}, ValueError, r"strides: got \[0, 4\]"),
        ({"patch_size": 14}, {}, ValueError, "strides: got .* the patch size 14 times"),
        ({"out_indices": [1, 4]}, {}, ValueError, r"vit_config.out_indices: got \[1, 4\], accepted: one stage or 4"),
        ({"reshape_hidden_states": False}, {}, ValueError, "vit_config.reshape_hidden_states: got False"),
        ({}, {"stride": 4}, TypeError, "no field 'stride' .did you mean 'strides'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(vit, fields, error, message):
    with pytest.raises(error, match=message):
        Dinov3PyramidConfig(vit_config=vit_config(**vit), **fields)


def test_images_the_levels_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="pixel_values: got 48x64 pixels, accepted: multiples of the stride 32"):
        pyramid()(torch.randn(1, 3, 48, 64))
