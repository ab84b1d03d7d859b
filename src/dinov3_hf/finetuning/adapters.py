"""LoRA and DoRA adapters on the blocks of a backbone, saved with the head they were trained with (PEFT)."""

import copy
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ImageProcessingMixin, PreTrainedModel

from ..checkpoints import export, load_backbone
from ..checkpoints.adapters import target_pattern
from ..checkpoints.names import TARGET_MODULES
from ..errors import Refused
from ..models.modeling_dinov3 import Dinov3ForImageClassification, Dinov3Model


if TYPE_CHECKING:
    from peft import PeftModel

TOKENS = ("cls_token", "mask_token", "register_tokens")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
# Fields of the configuration that must be equal in the backbone an adapter was trained on and the one it is loaded on.
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
    """Return the name and the module of the DINOv3 backbone in `model`; `Refused` unless there is exactly one."""
    backbones = [(name, module) for name, module in model.named_modules() if isinstance(module, Dinov3Model)]
    if len(backbones) != 1:
        raise Refused(f"model: got a {type(model).__name__} with {len(backbones)} DINOv3 backbones, accepted: one")
    return backbones[0]


def mark_trainable(model: nn.Module, everything: bool = False, train_tokens: bool = False) -> None:
    """Set in place which weights of `model` are trained: all with `everything`, else only those outside the backbone.

    With `train_tokens` the class, mask and register tokens of a frozen backbone are trained too.
    """
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
    target_modules: tuple[str, ...] | list[str] = TARGET_MODULES,
    dora: bool = False,
    train_tokens: bool = False,
) -> "PeftModel":
    """Return `model` as a `PeftModel` whose head and adapters in the backbone's blocks are trained.

    `target_modules` are regular expressions that match the full name of a linear layer in a block (`q_proj`,
    `attention.[qv]_proj`). With `train_tokens` the class, mask and register tokens are trained too and saved as full
    tensors; PEFT can only save modules, so the patch embedding is saved with them, unchanged. Raises `Refused` for a
    target that matches no layer; the message lists the names of the layers.
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
        # PEFT matches the ends of names: `embeddings` alone would also wrap `patch_embeddings`, and then fail to load.
        modules_to_save=head_modules(model, prefix) + ([f"{inside}embeddings"] if train_tokens else []),
        use_dora=dora,
    )
    adapted = get_peft_model(model, config)
    freeze_patch_embedding(adapted)
    return adapted


def check_targets(backbone: Dinov3Model, target_modules: Sequence[str]) -> None:
    """Raise `Refused` for a target that matches no linear layer of the blocks."""
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
    """Return the modules that hold all weights outside the backbone, by names that PEFT can tell apart.

    PEFT matches the ends of names, so no returned name is the end of another module's name.
    """
    every = [name for name, _ in model.named_modules()]

    def split(name: str, module: nn.Module) -> list[str]:
        if name == prefix or not any(True for _ in module.parameters()):
            return []
        is_around = prefix.startswith(f"{name}.") or not name
        # PEFT does not accept module lists, only the modules in them.
        is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if not is_around and not is_list and sum(other.endswith(name) for other in every) == 1:
            return [name]
        bare = [own for own, _ in module.named_parameters(recurse=False)]
        if bare:
            raise Refused(
                f"method: {type(model).__name__} holds {name}.{bare[0]}, which PEFT cannot save, "
                "accepted: frozen or full"
            )
        inside = f"{name}." if name else ""
        return [part for own, child in module.named_children() for part in split(inside + own, child)]

    return split("", model)


def freeze_patch_embedding(model: nn.Module) -> None:
    """Freeze the patch embedding: PEFT saves it together with the tokens, and would train it too.

    PEFT unfreezes it again when it loads an adapter, so call this afterwards as well.
    """
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name and "patch_embeddings" in name:
            parameter.requires_grad_(False)


def save_adapter(model: "PeftModel", directory: str | os.PathLike) -> Path:
    """Save the adapters and the head of a `PeftModel`, and the configuration to rebuild it; returns the folder."""
    directory = Path(directory)
    # By default PEFT would look up the vocabulary size of the base model, which has none.
    model.save_pretrained(directory, save_embedding_layers=False)
    config = copy.deepcopy(model.get_base_model().config)
    config.architectures = [type(model.get_base_model()).__name__]
    config.save_pretrained(directory)
    return directory


def load_adapter(directory: str | os.PathLike, base: str | Dinov3Model | None = None) -> "PeftModel":
    """Load an adapter written by `save_adapter` onto its base model; returns a `PeftModel` in eval mode.

    Without `base` the base model named in the adapter's configuration is loaded. Raises `Refused` if there is no
    adapter, or if `base` has another architecture than the one the adapter was trained on.
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
            raise Refused(
                f"base: got {field}={got}, accepted: {expected}, as in the base that {directory.name} was trained on"
            )
    inner.load_state_dict(backbone.state_dict())
    model.name_or_path = named
    return PeftModel.from_pretrained(model, directory).eval()


def read_adapter_config(directory: Path) -> dict:
    """Read adapter_config.json; `Refused` if there is none."""
    if not (directory / CONFIG).is_file():
        raise Refused(f"adapter: no {CONFIG} in {str(directory)!r}, accepted: a folder that PEFT wrote")
    return json.loads((directory / CONFIG).read_text())


def merge(model: "PeftModel") -> PreTrainedModel:
    """Return a copy of the model inside a `PeftModel`, with the adapters merged into its weights."""
    return copy.deepcopy(model).merge_and_unload()


def export_merged(
    model: PreTrainedModel, directory: str | os.PathLike, processor: ImageProcessingMixin | None = None
) -> Path:
    """Save the backbone of a model without adapters in transformers' own `dinov3_vit` layout.

    The head goes to head.safetensors. Returns the folder.
    """
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
    """Save the backbone's adapters with the weight names of transformers' `DINOv3ViTModel`; returns the folder.

    They load with `PeftModel.from_pretrained` on that model. It cannot hold the head, which goes to
    head.safetensors. PEFT cannot restore trained tokens on it either (its wrapper of `embeddings` also matches
    `patch_embeddings`): they go to tokens.safetensors with the names of the model's weights; load them first, with
    `load_state_dict(tokens, strict=False)`.
    """
    directory, output = Path(directory), Path(output)
    config, tensors = read_adapter_config(directory), load_file(directory / WEIGHTS)
    prefix = next(
        matched[1] for name in tensors if (matched := re.match(r"base_model\.model\.(.*?)layer\.\d+\..*lora_A", name))
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
