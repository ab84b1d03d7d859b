"""What is built on `Dinov3Model`: backbone, classifier, pretraining network, adapters."""

import copy

import pytest
import torch
from transformers import AutoBackbone, AutoModelForImageClassification

from dinov3_hf import Dinov3Backbone, Dinov3Config, Dinov3ForImageClassification, Dinov3ForPreTraining, Dinov3Model


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


def assert_close(ours, theirs, atol=2e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def test_hidden_states_of_a_model_inside_another_come_once():
    images = torch.randn(1, 3, 16, 16)
    model = make(Dinov3ForImageClassification, num_labels=3)
    expected = model.dinov3(images, output_hidden_states=True).hidden_states
    states = model(images, output_hidden_states=True).hidden_states
    assert len(states) == len(expected) == SMALL["num_hidden_layers"] + 1
    for ours, theirs in zip(states, expected, strict=True):
        assert_close(ours, theirs, atol=0)
    network = make(Dinov3ForPreTraining, **TINY_HEADS)
    assert len(network.dinov3(images, output_hidden_states=True).hidden_states) == SMALL["num_hidden_layers"] + 1


def test_backbone_outputs():
    fields = {"out_features": ["stage1", "stage2"], "return_class_token": True}
    maps, images = make(Dinov3Backbone, **fields), torch.randn(2, 3, 16, 24)
    output = maps(images)
    hidden = maps(images, output_hidden_states=True).hidden_states
    assert output.hidden_states is None and maps.channels == [32, 32]
    for feature_map, cls_token, state in zip(output.feature_maps, output.cls_tokens, hidden[1:], strict=True):
        tokens = maps.norm(state)
        assert_close(feature_map, tokens[:, 3:].unflatten(1, (2, 3)).permute(0, 3, 1, 2), atol=1e-6)
        assert_close(cls_token, tokens[:, 0], atol=1e-6)
    tokens = make(Dinov3Backbone, **fields, reshape_hidden_states=False, apply_layernorm=False)(images).feature_maps
    assert_close(tokens[0], hidden[1][:, [0, 3, 4, 5, 6, 7, 8]], atol=1e-6)
    assert_close(tokens[1][:, 1:], output.feature_maps[1].flatten(2).transpose(1, 2), atol=1e-6)
    assert isinstance(AutoBackbone.from_config(maps.config), Dinov3Backbone)


def test_backbone_serves_a_segmentation_head():
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(
        backbone_config=Dinov3Config(**SMALL, out_indices=[1, 2]),
        hidden_size=16,
        num_labels=3,
        use_auxiliary_head=False,
        pool_scales=[1, 2],
    )
    with torch.no_grad():
        logits = UperNetForSemanticSegmentation(config).eval()(torch.randn(1, 3, 32, 32)).logits
    assert logits.shape == (1, 3, 32, 32)


def test_classifier_trains_and_starts_from_a_backbone(tmp_path):
    backbone = make()
    backbone.save_pretrained(tmp_path)
    model, info = Dinov3ForImageClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    output = model(images, labels=labels)
    tokens = backbone(images)
    features = torch.cat([tokens.pooler_output, tokens.patch_tokens.mean(1)], dim=1)
    assert_close(output.logits, model.classifier(features), atol=1e-6)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    output.loss.backward()
    assert model.dinov3.layer[0].attention.q_proj.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "classifier")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(loaded(images).logits, model.eval()(images).logits)


def test_pretraining_forward():
    torch.manual_seed(0)
    model = make(Dinov3ForPreTraining, **TINY_HEADS)
    crops, local = torch.randn(2, 3, 3, 16, 16), torch.randn(4, 3, 3, 8, 8)
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    masks[0, 1, 2] = masks[1, 0, 1] = masks[1, 2, 3] = True
    output = model(crops, local, masks)
    assert output.dino_logits_global.shape == (2, 3, 24) and output.dino_logits_local.shape == (4, 3, 24)
    assert output.patch_tokens.shape == (2, 3, 4, 32) and output.cls_tokens.shape == (2, 3, 32)
    for crop in range(2):
        tokens = model.dinov3(crops[crop], masks[crop])
        assert_close(output.cls_tokens[crop], tokens.pooler_output, atol=1e-5)
        assert_close(output.dino_logits_global[crop], model.dino_head(tokens.pooler_output), atol=1e-5)
    assert_close(output.dino_logits_local[2], model.dino_head(model.dinov3(local[2]).pooler_output), atol=1e-5)
    rows = torch.stack([output.patch_tokens[0, 1, 2], output.patch_tokens[1, 0, 1], output.patch_tokens[1, 2, 3]])
    assert_close(output.ibot_logits, model.ibot_head(rows), atol=1e-6)

    teacher = model(crops, masks=masks, mask_inputs=False)
    unmasked = model(crops)
    assert unmasked.ibot_logits is None and teacher.dino_logits_local is None
    assert torch.equal(teacher.patch_tokens, unmasked.patch_tokens)
    assert_close(teacher.ibot_logits, model.ibot_head(unmasked.patch_tokens[masks]), atol=1e-6)
    assert not torch.allclose(teacher.cls_tokens, output.cls_tokens)


def test_pretraining_reaches_every_parameter_and_saves(tmp_path):
    model = make(Dinov3ForPreTraining, **TINY_HEADS, untie_global_and_local_cls_norm=True).train()
    masks = torch.rand(2, 2, 4) > 0.5
    output = model(torch.randn(2, 2, 3, 16, 16), torch.randn(3, 2, 3, 8, 8), masks)
    sum(tensor.pow(3).sum() for tensor in output.to_tuple()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.save_pretrained(tmp_path)
    loaded, info = Dinov3ForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_lora_wraps_the_projections(tmp_path):
    peft = pytest.importorskip("peft")
    model, images = make(), torch.randn(2, 3, 16, 16)
    expected = model(images).last_hidden_state
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    assert torch.equal(adapted(images).last_hidden_state, expected)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    changed = adapted.eval()(images).last_hidden_state
    assert (changed - expected).abs().max() > 0.01
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    assert torch.equal(loaded(images).last_hidden_state, changed)
    assert_close(loaded.merge_and_unload()(images).last_hidden_state, changed, atol=1e-5)
