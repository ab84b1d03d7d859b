"""Initialisation of a run: a randomly initialised student, or existing weights."""

import copy

from huggingface_hub.errors import StrictDataclassError

from dinov3_hf.checkpoints import load_backbone, load_model
from dinov3_hf.checkpoints.adapters import target_pattern
from dinov3_hf.checkpoints.weights import PROJECTION_HEADS
from dinov3_hf.errors import Refused
from dinov3_hf.models.configuration_dinov3 import Dinov3Config
from dinov3_hf.models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.models.modeling_dinov3_convnext import Dinov3ConvNextModel
from dinov3_hf.models.rope_dinov3 import RopeAugmentation

from .arguments import CropArguments, GramArguments, ModelArguments


# Fields that define no shape, and fields that may be changed when a run starts from existing weights.
NO_SHAPE = ("init_from", "init_heads", "size", "head_num_layers", "lora_rank", "lora_alpha")
FREE = ("drop_path_rate", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale", "head_initializer_range")


def build_config(model: ModelArguments, crops: CropArguments, start: Dinov3Config | None = None) -> Dinov3Config:
    """Convert the recipe's model fields into a `Dinov3Config`; null fields keep the value of the size (or of `start`).

    `start` is the configuration of the weights that the run starts from. Raises `Refused` if no model can be built, or
    if a field contradicts `start`.
    """
    try:
        return _build_config(model, crops, start)
    except (ValueError, StrictDataclassError) as error:
        raise Refused(" ".join(str(error).split())) from None


def _build_config(model: ModelArguments, crops: CropArguments, start: Dinov3Config | None) -> Dinov3Config:
    given = {name: value for name, value in vars(model).items() if value is not None and name not in NO_SHAPE}
    heads = {f"{head}_num_layers": model.head_num_layers for head in PROJECTION_HEADS}
    heads |= {name: given.pop(name) for name in list(given) if name.startswith(PROJECTION_HEADS)}
    free = {name: given.get(name) for name in FREE} | {"image_size": crops.global_crop_size}
    if start is None:
        fields = given | heads | free
        return Dinov3Config.from_size(model.size, **fields) if model.size else Dinov3Config(**fields)
    shape = Dinov3Config.from_size(model.size).to_dict() if model.size else {}
    shape = {name: shape[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size") if name in shape}
    for name, value in (shape | given).items():
        # The layer scale is part of the weights, and a norm for local crops can be added.
        if name not in (*FREE, "layerscale_value", "untie_global_and_local_cls_norm") and value != getattr(
            start, name
        ):
            raise Refused(f"{name}: got {value!r}, accepted: null or {getattr(start, name)!r}, as init_from has it")
    untied = start.untie_global_and_local_cls_norm or model.untie_global_and_local_cls_norm
    return Dinov3Config(**_fields(start) | heads | free | {"untie_global_and_local_cls_norm": untied})


def build_student(model: ModelArguments, crops: CropArguments) -> tuple[Dinov3ForPreTraining, bool]:
    """Build the student; return it and whether its heads are new. Random weights depend on torch's random state.

    With `init_from`, backbone and heads are loaded from it; missing heads are randomly initialised.
    """
    loaded = load_model(model.init_from, "init_from") if model.init_from else None
    if loaded is None:
        student, heads_are_new = Dinov3ForPreTraining(build_config(model, crops)), True
    elif isinstance(loaded, Dinov3ConvNextModel):
        raise Refused(f"init_from: got the ConvNeXt {model.init_from!r}, accepted: a vision transformer")
    else:
        backbone = loaded.dinov3 if isinstance(loaded, Dinov3ForPreTraining) else loaded
        heads_are_new = backbone is loaded or not model.init_heads
        config = build_config(model, crops, loaded.config)
        if not heads_are_new:
            kept = [name for name in vars(loaded.config) if name.startswith(PROJECTION_HEADS)]
            config = Dinov3Config(**_fields(config) | {name: getattr(loaded.config, name) for name in kept})
        student = Dinov3ForPreTraining(config)
        tensors = {f"dinov3.{name}": tensor for name, tensor in backbone.state_dict().items()}
        if not heads_are_new:
            tensors |= {
                name: tensor for name, tensor in loaded.state_dict().items() if name.startswith(PROJECTION_HEADS)
            }
        missing = student.load_state_dict(tensors, strict=False).missing_keys
        if any("local_cls_norm" in name for name in missing):
            student.dinov3.local_cls_norm.load_state_dict(student.dinov3.norm.state_dict())
    if model.lora_rank is not None:
        add_adapters(student, model.lora_rank, model.lora_alpha)
    config = student.config
    if any((config.pos_embed_shift, config.pos_embed_jitter, config.pos_embed_rescale)):
        augmentation = RopeAugmentation(config.pos_embed_shift, config.pos_embed_jitter, config.pos_embed_rescale)
        student.dinov3.rope_augmentation = augmentation
    return student, heads_are_new


def add_adapters(student: Dinov3ForPreTraining, rank: int, alpha: float) -> None:
    """Freeze the backbone and add LoRA adapters to every linear layer of its blocks, in place.

    The adapters, the mask token, the norm of local crops and the heads stay trainable. Raises `Refused` without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise Refused(f"lora_rank: got {rank}, accepted: null, or after pip install peft") from None
    backbone = student.dinov3
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=target_pattern()), backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name or "mask_token" in name or "local_cls_norm" in name)


def _fields(config: Dinov3Config) -> dict:
    return {name: getattr(config, name) for name in Dinov3Config.default_config_fields() if not name.startswith("_")}


def build_gram_teacher(gram: GramArguments, student: Dinov3ForPreTraining) -> Dinov3Model | None:
    """Build the Gram teacher; None if there is no separate network (`none`, `ema`)."""
    if gram.gram_teacher == "checkpoint":
        assert gram.gram_checkpoint is not None  # refused by `GramArguments.validate`
        return load_backbone(gram.gram_checkpoint, "gram_checkpoint")
    if gram.gram_teacher == "ema_copy":
        # Its weights are overwritten at gram_start_step. The copy includes the student's adapters, if any.
        return copy.deepcopy(student.dinov3)
    return None
