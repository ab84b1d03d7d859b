"""LoRA and DoRA adapters on the blocks of a backbone, saved with the head they were trained with (PEFT)."""

import copy
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from ..checkpoints import export, load_backbone
from ..checkpoints.adapters import target_pattern
from ..checkpoints.names import TARGET_MODULES
from ..errors import Refused
from ..models.modeling_dinov3 import Dinov3ForImageClassification, Dinov3Model


TOKENS = ("cls_token", "mask_token", "register_tokens")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
# Fields of a backbone in which an adapter and its base have to agree.
_SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "num_channels",
    "num_register_tokens",
    "use_gated_mlp",
)


def backbone_of(model: nn.Module) -> tuple[str, Dinov3Model]:
    """Return the name and the module of the only DINOv3 backbone in `model`; `Refused` without one."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Dinov3Model)]
    if len(found) != 1:
        raise Refused(f"model: got a {type(model).__name__} with {len(found)} DINOv3 backbones, accepted: one")
    return found[0]


def mark_trainable(model: nn.Module, everything: bool = False, train_tokens: bool = False) -> None:
    """Freeze the backbone of `model` in place, except for its tokens with `train_tokens`, or train `everything`."""
    model.requires_grad_(True)
    backbone = backbone_of(model)[1]
    if not everything:
        backbone.requires_grad_(False)
        for name in TOKENS:
            getattr(backbone.embeddings, name).requires_grad_(train_tokens)


def add_adapters(
    model: PreTrainedModel,
    rank: int = 8,
    alpha: float = 16.0,
    target_modules: Sequence[str] = TARGET_MODULES,
    dora: bool = False,
    train_tokens: bool = False,
):
    """Return `model` as a `PeftModel` that trains adapters in its backbone's blocks, its head, and maybe its tokens.

    `target_modules` are regular expressions of whole names of linear layers in a block (`q_proj`,
    `attention.[qv]_proj`). With `train_tokens` class, mask and register tokens are trained and saved as whole
    tensors; PEFT keeps modules only, so the patch embedding is saved with them, unchanged. Raises `Refused` for a
    target that matches nothing, with the names that there are.
    """
    from peft import LoraConfig, get_peft_model

    prefix, backbone = backbone_of(model)
    check_targets(backbone, target_modules)
    inside = f"{prefix}." if prefix else ""
    if train_tokens and not prefix:
        raise Refused("train_tokens: got a bare backbone, accepted: a model with a head around one")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=target_pattern(inside, target_modules),
        # PEFT compares ends of names: `embeddings` alone would also wrap `patch_embeddings`, and then fail to load.
        modules_to_save=head_modules(model, prefix) + ([f"{inside}embeddings"] if train_tokens else []),
        use_dora=dora,
    )
    adapted = get_peft_model(model, config)
    freeze_patch_embedding(adapted)
    return adapted


def check_targets(backbone: Dinov3Model, target_modules: Sequence[str]) -> None:
    """Raise `Refused` for a target that is no linear layer of the blocks."""
    names = {
        name for layer in backbone.layer for name, module in layer.named_modules() if isinstance(module, nn.Linear)
    }
    accepted = f"regular expressions of {', '.join(sorted({name.split('.')[-1] for name in names}))}"
    if not target_modules:
        raise Refused(f"target_modules: got none, accepted: {accepted}")
    for target in target_modules:
        try:
            pattern = re.compile(rf"(?:\w+\.)?(?:{target})")
        except re.error as error:
            raise Refused(f"target_modules: got {target!r} ({error}), accepted: {accepted}") from None
        if not any(pattern.fullmatch(name) for name in names):
            raise Refused(f"target_modules: got {target!r}, which matches nothing, accepted: {accepted}")


def head_modules(model: nn.Module, prefix: str) -> list[str]:
    """Return names of modules that hold all weights outside the backbone, each the end of no other module's name."""
    every = [name for name, _ in model.named_modules()]

    def split(name: str, module: nn.Module) -> list[str]:
        if name == prefix or not any(True for _ in module.parameters()):
            return []
        is_around = prefix.startswith(f"{name}.") or not name
        # PEFT takes no lists of modules, only what they hold.
        is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if not is_around and not is_list and sum(other.endswith(name) for other in every) == 1:
            return [name]
        bare = [own for own, _ in module.named_parameters(recurse=False)]
        if bare:
            raise Refused(
                f"method: {type(model).__name__} holds {name}.{bare[0]}, which PEFT cannot save, accepted: frozen or full"
            )
        inside = f"{name}." if name else ""
        return [found for own, child in module.named_children() for found in split(inside + own, child)]

    return split("", model)


def freeze_patch_embedding(model: nn.Module) -> None:
    """Freeze the patch embedding that PEFT keeps, and would train, with the tokens; also after it loaded an adapter."""
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name and "patch_embeddings" in name:
            parameter.requires_grad_(False)


def save_adapter(model, directory: str | os.PathLike) -> Path:
    """Write the adapters of a `PeftModel` with its head, and the configuration that rebuilds it; returns the folder."""
    directory = Path(directory)
    # PEFT otherwise asks the base for a vocabulary.
    model.save_pretrained(directory, save_embedding_layers=False)
    config = copy.deepcopy(model.get_base_model().config)
    config.architectures = [type(model.get_base_model()).__name__]
    config.save_pretrained(directory)
    return directory


def load_adapter(directory: str | os.PathLike, base: str | Dinov3Model | None = None):
    """Load what `save_adapter` wrote on its base, by default the one it names, as a `PeftModel` in eval mode.

    Raises `Refused` without an adapter, and where `base` is of another shape.
    """
    import transformers
    from peft import PeftModel
    from transformers import AutoConfig

    directory = Path(directory)
    named = read_adapter_config(directory)["base_model_name_or_path"]
    backbone = base if isinstance(base, nn.Module) else load_backbone(base or named, "base")
    config = AutoConfig.from_pretrained(directory)
    name = config.architectures[0]
    head_class = (
        Dinov3ForImageClassification if name == "Dinov3ForImageClassification" else getattr(transformers, name)
    )
    model = head_class(config)
    prefix, inner = backbone_of(model)
    for field in _SHAPE:
        expected, got = getattr(inner.config, field), getattr(backbone.config, field)
        if got != expected:
            raise Refused(f"base: got {field}={got}, accepted: {expected}, as the base of {directory.name} had")
    inner.load_state_dict(backbone.state_dict())
    model.name_or_path = named
    return PeftModel.from_pretrained(model, directory).eval()


def read_adapter_config(directory: Path) -> dict:
    """Read adapter_config.json; `Refused` without it."""
    if not (directory / CONFIG).is_file():
        raise Refused(f"adapter: no {CONFIG} in {str(directory)!r}, accepted: a folder that PEFT wrote")
    return json.loads((directory / CONFIG).read_text())


def merge(model) -> PreTrainedModel:
    """Return a copy of a `PeftModel`'s model with the adapters added to its weights."""
    return copy.deepcopy(model).merge_and_unload()


def export_merged(model: PreTrainedModel, directory: str | os.PathLike, processor=None) -> Path:
    """Write the backbone of a model without adapters as a stock `dinov3_vit` folder; its head in head.safetensors."""
    prefix, inner = backbone_of(model)
    backbone = Dinov3Model(inner.config)
    backbone.load_state_dict(inner.state_dict())
    directory = export(backbone, directory)
    inside = f"{prefix}." if prefix else ""
    head = {name: value.contiguous() for name, value in model.state_dict().items() if not name.startswith(inside)}
    if prefix and head:
        save_file(head, directory / "head.safetensors", metadata={"format": "pt"})
    if processor is not None:
        processor.save_pretrained(directory)
    return directory


def export_transformers_adapter(directory: str | os.PathLike, output: str | os.PathLike) -> Path:
    """Write the backbone's adapters under stock's names, for `PeftModel.from_pretrained` on a `DINOv3ViTModel`.

    That model has no place for the head, which goes to head.safetensors. PEFT cannot give it back trained tokens
    either (its wrapper of `embeddings` also takes `patch_embeddings`): they go to tokens.safetensors, whose names are
    the model's, to be loaded first with `load_state_dict(tokens, strict=False)`.
    """
    directory, output = Path(directory), Path(output)
    config, tensors = read_adapter_config(directory), load_file(directory / WEIGHTS)
    prefix = next(
        found[1] for name in tensors if (found := re.match(r"base_model\.model\.(.*?)layer\.\d+\..*lora_A", name))
    )
    adapters, head, tokens = {}, {}, {}
    for name, tensor in tensors.items():
        name = name.removeprefix(_PEFT_PREFIX)
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix):
            head[name] = tensor
        elif inner.startswith("layer."):
            adapters[f"{_PEFT_PREFIX}model.{inner}"] = tensor
        elif inner.split(".")[-1] in TOKENS:
            tokens[inner] = tensor
    config |= {
        "auto_mapping": None,
        "modules_to_save": None,
        "target_modules": config["target_modules"].replace(f"{re.escape(prefix)}layer", r"model\.layer", 1),
    }
    output.mkdir(parents=True, exist_ok=True)
    for file, part in ((WEIGHTS, adapters), ("head.safetensors", head), ("tokens.safetensors", tokens)):
        if part:
            save_file(part, output / file, metadata={"format": "pt"})
    (output / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return output
