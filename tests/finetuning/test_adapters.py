"""Adapters: which weights they reach, round trips on our model and on that of transformers, and what is refused."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTModel, UperNetConfig, UperNetForSemanticSegmentation

from dinov3_hf import Dinov3Config, Dinov3ForImageClassification, Dinov3Model
from dinov3_hf.checkpoints import export
from dinov3_hf.finetuning.adapters import (
    add_adapters,
    export_merged,
    export_transformers_adapter,
    head_modules,
    load_adapter,
    mark_trainable,
    merge,
    save_adapter,
)

from ..processes import run_processes


SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
    "image_size": 32,
    "num_register_tokens": 3,
    "layerscale_value": 0.2,
}
IMAGES = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(24).view(2, 12) % 3 == 0


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder in the layout of transformers, as published checkpoints are."""
    torch.manual_seed(0)
    return export(Dinov3Model(Dinov3Config(**SMALL)), tmp_path_factory.mktemp("base"))


def classifier(base) -> Dinov3ForImageClassification:
    backbone = Dinov3Model.from_pretrained(base)
    config = backbone.config
    config.num_labels, config.name_or_path = 3, str(base)
    model = Dinov3ForImageClassification(config)
    model.dinov3.load_state_dict(backbone.state_dict())
    return model


def trained(base, **options):
    """An adapter whose every trainable value has moved, as after training."""
    torch.manual_seed(1)
    model = add_adapters(classifier(base), rank=2, alpha=3.0, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("train_tokens", [False, True])
def test_round_trips(base, tmp_path, dora, train_tokens):
    """Saved and loaded by PEFT, merged, exported merged and exported as adapter for transformers: equal outputs."""
    model = trained(base, dora=dora, train_tokens=train_tokens)
    inner = model.get_base_model().dinov3
    with torch.no_grad():
        logits, tokens = model(IMAGES).logits, inner(IMAGES, MASK).last_hidden_state
        before = classifier(base).eval()
        assert (logits - before(IMAGES).logits).abs().max() > 0.01
        save_adapter(model, tmp_path / "adapter")
        assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ] == str(base)
        plain = PeftModel.from_pretrained(classifier(base), tmp_path / "adapter").eval()
        for again in (plain, load_adapter(tmp_path / "adapter")):
            assert torch.equal(again(IMAGES).logits, logits)
            assert torch.equal(again.get_base_model().dinov3(IMAGES, MASK).last_hidden_state, tokens)
        merged = merge(model).eval()
        torch.testing.assert_close(merged(IMAGES).logits, logits, atol=1e-5, rtol=0)
        assert not [name for name in merged.state_dict() if "lora" in name or "modules_to_save" in name]
        export_merged(merged, tmp_path / "merged")
        reference = DINOv3ViTModel.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(reference(IMAGES, MASK).last_hidden_state, tokens, atol=1e-5, rtol=0)
        export_transformers_adapter(tmp_path / "adapter", tmp_path / "reference")
        reference = DINOv3ViTModel.from_pretrained(base)
        learnt = tmp_path / "reference" / "tokens.safetensors"
        assert learnt.is_file() == train_tokens
        if train_tokens:
            found = load_file(learnt)
            assert sorted(found) == [f"embeddings.{name}" for name in ("cls_token", "mask_token", "register_tokens")]
            assert not reference.load_state_dict(found, strict=False).unexpected_keys
        adapted = PeftModel.from_pretrained(reference, tmp_path / "reference").eval()
        torch.testing.assert_close(adapted(IMAGES, MASK).last_hidden_state, tokens, atol=1e-5, rtol=0)
        head = load_file(tmp_path / "reference" / "head.safetensors")
        assert sorted(head) == ["classifier.bias", "classifier.weight"]


def load_and_run(rank, base, folder):
    loaded = PeftModel.from_pretrained(
        Dinov3ForImageClassification.from_pretrained(base, num_labels=3), folder / "adapter"
    ).eval()
    with torch.no_grad():
        logits = loaded(load_file(folder / "images.safetensors")["images"]).logits
    save_file({"logits": logits}, folder / "logits.safetensors")


def test_another_process_gives_the_same_logits(base, tmp_path):
    model = trained(base, train_tokens=True)
    save_adapter(model, tmp_path / "adapter")
    save_file({"images": IMAGES}, tmp_path / "images.safetensors")
    run_processes(load_and_run, str(base), tmp_path, world=1)
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], model(IMAGES).logits)


def test_what_is_trained(base):
    model = add_adapters(classifier(base), rank=2, target_modules=["[qv]_proj"], train_tokens=True)
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapted = {name for name in found if "lora" in name}
    # Two layers, two targets, two factors.
    assert len(adapted) == 8 and all(".q_proj." in name or ".v_proj." in name for name in adapted)
    assert {name.split(".")[-1] for name in found - adapted} == {
        "cls_token",
        "mask_token",
        "register_tokens",
        "weight",
        "bias",
    }
    assert not [name for name in found if "patch_embeddings" in name]
    model = classifier(base)
    mark_trainable(model, train_tokens=True)
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tokens = {f"dinov3.embeddings.{name}" for name in ("cls_token", "mask_token", "register_tokens")}
    assert found == tokens | {"classifier.weight", "classifier.bias"}
    mark_trainable(model, everything=True)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "targets, message",
    [
        (
            ["qkv"],
            "target_modules: got 'qkv', which matches nothing, accepted: regular expressions of down_proj, k_proj",
        ),
        (["q_proj", "gate_proj"], "target_modules: got 'gate_proj', which matches nothing"),
        (["q_proj("], "target_modules: got 'q_proj\\('"),
        ([], "target_modules: got none"),
    ],
)
def test_targets_that_match_nothing_are_refused(base, targets, message):
    with pytest.raises(ValueError, match=message):
        add_adapters(classifier(base), target_modules=targets)


@pytest.mark.parametrize("field, value", [("hidden_size", 32), ("num_hidden_layers", 3), ("num_register_tokens", 1)])
def test_another_base_is_refused(base, tmp_path, field, value):
    save_adapter(trained(base), tmp_path)
    other = Dinov3Model(Dinov3Config(**{**SMALL, field: value}))
    with pytest.raises(ValueError, match=f"base: got {field}={value}, accepted: {SMALL[field]}"):
        load_adapter(tmp_path, other)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="adapter: no adapter_config.json"):
        load_adapter(tmp_path)


def test_a_dense_head_is_saved_whole(tmp_path):
    """Modules, batch norm statistics included, and only the backbone's blocks get adapters."""
    torch.manual_seed(0)
    config = UperNetConfig(backbone_config=Dinov3Config(**SMALL, out_indices=[0, 1, 2]), hidden_size=16)
    config.num_labels, config.auxiliary_in_channels, config.pool_scales = 4, 24, [1, 2]
    config.auxiliary_channels, config.auxiliary_num_convs = 8, 1
    head = UperNetForSemanticSegmentation(config)
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    assert head_modules(head, "backbone") == ["decode_head", "auxiliary_head"]
    model = add_adapters(head, rank=2, train_tokens=True)
    assert not [name for name, _ in model.named_parameters() if "lora" in name and ".backbone.layer." not in name]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.train()(IMAGES)
        model.eval()
        again = UperNetForSemanticSegmentation(config)
        again.load_state_dict(state)
        save_adapter(model, tmp_path)
        again = PeftModel.from_pretrained(again, tmp_path).eval()
        assert torch.equal(again(IMAGES).logits, model(IMAGES).logits)
        # The same through our helper, which takes the backbone's weights from a model.
        backbone = Dinov3Model(Dinov3Config(**SMALL))
        backbone.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("backbone.")})
        assert torch.equal(load_adapter(tmp_path, backbone)(IMAGES).logits, model(IMAGES).logits)
