"""DINOv3 vision transformer: model, backbone, classifier and pretraining network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

# Internals of transformers 5 without public names: its heads' backbones and recorded hidden states need them.
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    ModelOutput,
)
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_dinov3 import Dinov3Config
from .heads_dinov3 import Dinov3ProjectionHead
from .layers_dinov3 import Dinov3Attention, Dinov3Embeddings, Dinov3Layer, Dinov3LayerScale, pack_crops, split_crops
from .rope_dinov3 import Dinov3RotaryEmbedding, RopeAugmentation
from .saving_dinov3 import Dinov3SavingMixin


logger = logging.get_logger(__name__)


@dataclass
class Dinov3ModelOutput(BaseModelOutputWithPooling):
    """Outputs of `Dinov3Model`, all after the final norm.

    Args:
        last_hidden_state: class token, R register tokens, P patch tokens [B,1+R+P,D].
        pooler_output: class token [B,D].
        hidden_states: input of the first block, then the output of every block, before the norm.
        attentions: attention weights [B,heads,N,N] of every block (attn_implementation "eager").
        register_tokens: register tokens [B,R,D].
        patch_tokens: patch tokens [B,P,D], row by row.
    """

    register_tokens: torch.Tensor | None = None
    patch_tokens: torch.Tensor | None = None


@dataclass
class Dinov3BackboneOutput(BackboneOutput):
    """Outputs of `Dinov3Backbone`.

    Args:
        feature_maps: for each selected stage [B,D,H,W], or [B,1+P,D] with `reshape_hidden_states=False`.
        cls_tokens: for each selected stage [B,D], with `return_class_token=True`.
        last_hidden_state: normalised tokens [B,1+R+P,D].
    """

    cls_tokens: tuple[torch.Tensor, ...] | None = None
    last_hidden_state: torch.Tensor | None = None


@dataclass
class Dinov3ForPreTrainingOutput(ModelOutput):
    """Outputs of `Dinov3ForPreTraining`.

    Args:
        dino_logits_global: image head's logits of global crops [G,B,K].
        dino_logits_local: image head's logits of local crops [L,B,K], `None` without local crops.
        ibot_logits: patch head's logits [M,K] at the masked positions, crop by crop and row by row, `None` without
            masks.
        cls_tokens: normalised class tokens of the global crops [G,B,D], before the head.
        patch_tokens: normalised patch tokens of the global crops [G,B,P,D], before the head.
    """

    dino_logits_global: torch.Tensor | None = None
    dino_logits_local: torch.Tensor | None = None
    ibot_logits: torch.Tensor | None = None
    cls_tokens: torch.Tensor | None = None
    patch_tokens: torch.Tensor | None = None


class Dinov3PreTrainedModel(Dinov3SavingMixin, PreTrainedModel):
    config: Dinov3Config
    base_model_prefix = "dinov3"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Dinov3Embeddings", "Dinov3Layer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": Dinov3Layer, "attentions": Dinov3Attention}
    _input_embed_layer = "patch_embeddings"
    key_mapping = {r"^model\.layer\.": "layer."}
    auto_classes = {
        "AutoConfig": "configuration_dinov3.Dinov3Config",
        "AutoModel": "modeling_dinov3.Dinov3Model",
        "AutoBackbone": "modeling_dinov3.Dinov3Backbone",
        "AutoModelForImageClassification": "modeling_dinov3.Dinov3ForImageClassification",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            _init_linear(module, std)
        elif isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, Dinov3Embeddings):
            init.normal_(module.cls_token, std=std)
            init.normal_(module.register_tokens, std=std)
            init.zeros_(module.mask_token)
        elif isinstance(module, Dinov3LayerScale):
            init.constant_(module.lambda1, self.config.layerscale_value)
        else:
            super()._init_weights(module)


def _init_linear(layer: nn.Linear, std: float) -> None:
    init.trunc_normal_(layer.weight, std=std)
    if layer.bias is not None:
        init.zeros_(layer.bias)


class Dinov3Model(Dinov3PreTrainedModel):
    """Vision transformer (DINOv3, section 3.2): images to normalised class, register and patch tokens.

    Attributes:
        rope_augmentation: set by a training objective on its student; applied in train mode, drawn anew for every
            block and crop group. `None` by default and never saved: with `model.train()` alone, positions stay fixed.
    """

    rope_augmentation: RopeAugmentation | None = None

    def __init__(self, config: Dinov3Config):
        super().__init__(config)
        self.embeddings = Dinov3Embeddings(config)
        self.rope_embeddings = Dinov3RotaryEmbedding(config)
        self.layer = nn.ModuleList(Dinov3Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.untie_global_and_local_cls_norm:
            self.local_cls_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None, **kwargs: Any
    ) -> Dinov3ModelOutput:
        """Images [B,C,H,W]; the mask token replaces the patches at `bool_masked_pos` [B,P] bool."""
        return self._encode([pixel_values], [bool_masked_pos], **kwargs)[0]

    def forward_crops(
        self, crops: list[torch.Tensor], masks: list[torch.Tensor | None] | None = None
    ) -> list[Dinov3ModelOutput]:
        """Encode crop groups [B,C,H,W] of different sizes, each with its mask [B,P] or `None`, in one packed pass.

        The same as one call for each group, except in training with `untie_global_and_local_cls_norm`: then groups
        after the first (local crops) use `local_cls_norm` for their class and register tokens.
        """
        return self._encode(crops, masks or [None] * len(crops))

    def _encode(
        self, crops: list[torch.Tensor], masks: list[torch.Tensor | None], **kwargs: Any
    ) -> list[Dinov3ModelOutput]:
        grids = [self._grid(pixel_values) for pixel_values in crops]
        groups = [self.embeddings(crop, mask) for crop, mask in zip(crops, masks, strict=True)]
        crop_shapes = tuple((group.shape[0], group.shape[1]) for group in groups)
        augmentation = self.rope_augmentation if self.training else None
        hidden_states = pack_crops(groups)
        for index, layer in enumerate(self.layer):
            if index == 0 or augmentation is not None:
                tables = tuple(self.rope_embeddings(*grid, hidden_states.device, augmentation) for grid in grids)
            hidden_states = layer(hidden_states, tables, crop_shapes, **kwargs)
        prefix = self.rope_embeddings.num_prefix_tokens
        normalized = split_crops(self.norm(hidden_states), crop_shapes)
        if self.training and self.config.untie_global_and_local_cls_norm:
            for index, group in enumerate(split_crops(hidden_states, crop_shapes)[1:], start=1):
                local = self.local_cls_norm(group[:, :prefix])
                normalized[index] = torch.cat([local, normalized[index][:, prefix:]], dim=1)
        return [
            Dinov3ModelOutput(
                last_hidden_state=tokens,
                pooler_output=tokens[:, 0],
                register_tokens=tokens[:, 1:prefix],
                patch_tokens=tokens[:, prefix:],
            )
            for tokens in normalized
        ]

    def _grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Return the patches along height and width; a remainder is cut off, with a warning the first time."""
        size, channels = self.config.patch_size, self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or min(pixel_values.shape[2:]) < size:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)} must be [B,{channels},H,W] with H and W at least "
                f"{size}"
            )
        height, width = pixel_values.shape[2:]
        if (height % size or width % size) and not torch.compiler.is_compiling():
            logger.warning_once(
                f"Images of {height}x{width} are no multiple of the patch size {size}: the remainder is cut off."
            )
        return height // size, width // size


class Dinov3Backbone(BackboneMixin, Dinov3Model):
    """`Dinov3Model` as the backbone of transformers' detection, segmentation and depth heads."""

    def __init__(self, config: Dinov3Config):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Dinov3BackboneOutput:
        """Images [B,C,H,W] to the feature maps of `config.out_features`."""
        kwargs["output_hidden_states"] = True
        # Not super(): that is BackboneMixin, whose forward only raises.
        output = Dinov3Model.forward(self, pixel_values, **kwargs)
        height, width = self._grid(pixel_values)
        prefix = self.rope_embeddings.num_prefix_tokens
        feature_maps, cls_tokens = [], []
        for stage in self.out_features:
            index = self.stage_names.index(stage)
            tokens = output.hidden_states[index]
            if index == len(self.stage_names) - 1:
                tokens = output.last_hidden_state
            elif self.config.apply_layernorm:
                tokens = self.norm(tokens)
            cls_tokens.append(tokens[:, 0])
            patches = tokens[:, prefix:]
            if self.config.reshape_hidden_states:
                feature_maps.append(patches.transpose(1, 2).unflatten(2, (height, width)).contiguous())
            else:
                # Heads that take tokens (such as DPT) expect the class token first and no register tokens.
                feature_maps.append(torch.cat([tokens[:, :1], patches], dim=1))
        return Dinov3BackboneOutput(
            feature_maps=tuple(feature_maps),
            cls_tokens=tuple(cls_tokens) if self.config.return_class_token else None,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            last_hidden_state=output.last_hidden_state,
        )


class Dinov3ForImageClassification(Dinov3PreTrainedModel):
    """Linear classifier on the concatenated class token and mean patch token, as in DINOv3's linear probe."""

    def __init__(self, config: Dinov3Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dinov3 = Dinov3Model(config)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Images [B,C,H,W] and labels [B] to the loss and logits [B,num_labels]."""
        outputs = self.dinov3(pixel_values, **kwargs)
        features = torch.cat([outputs.pooler_output, outputs.patch_tokens.mean(dim=1)], dim=-1)
        logits = self.classifier(features)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class Dinov3ForPreTraining(Dinov3PreTrainedModel):
    """Backbone with the image (DINO) head and the patch (iBOT) head of self-distillation, called in one `forward`."""

    def __init__(self, config: Dinov3Config):
        super().__init__(config)
        self.dinov3 = Dinov3Model(config)
        self.dino_head = Dinov3ProjectionHead(
            config.hidden_size,
            config.dino_head_hidden_size,
            config.dino_head_bottleneck_size,
            config.dino_head_num_prototypes,
            config.dino_head_num_layers,
        )
        self.ibot_head = Dinov3ProjectionHead(
            config.hidden_size,
            config.ibot_head_hidden_size,
            config.ibot_head_bottleneck_size,
            config.ibot_head_num_prototypes,
            config.ibot_head_num_layers,
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The backbone initialises itself: the linear layers here are those of the heads.
        if isinstance(module, nn.Linear):
            _init_linear(module, self.config.head_initializer_range)

    def forward(
        self,
        global_crops: torch.Tensor,
        local_crops: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        mask_inputs: bool = True,
    ) -> Dinov3ForPreTrainingOutput:
        """Encode global crops [G,B,3,H,W] with masks [G,B,P] bool and local crops [L,B,3,h,w] in one packed pass.

        The patch head runs only on the masked positions. With `mask_inputs=False`, as for a teacher, it does so too,
        but the backbone's input is not masked.
        """
        crops = [global_crops] if local_crops is None else [global_crops, local_crops]
        input_masks = [masks.flatten(0, 1) if masks is not None and mask_inputs else None, None]
        outputs = self.dinov3.forward_crops([crop.flatten(0, 1) for crop in crops], input_masks[: len(crops)])
        cls_tokens = [output.pooler_output for output in outputs]
        dino_logits = self.dino_head(torch.cat(cls_tokens)).split([len(tokens) for tokens in cls_tokens])
        patch_tokens: Any = outputs[0].patch_tokens
        ibot_logits = None
        if masks is not None:
            masked = masks.flatten().nonzero().squeeze(1)
            ibot_logits = self.ibot_head(patch_tokens.flatten(0, 1).index_select(0, masked))
        return Dinov3ForPreTrainingOutput(
            dino_logits_global=dino_logits[0].unflatten(0, global_crops.shape[:2]),
            dino_logits_local=None if local_crops is None else dino_logits[1].unflatten(0, local_crops.shape[:2]),
            ibot_logits=ibot_logits,
            cls_tokens=cls_tokens[0].unflatten(0, global_crops.shape[:2]),
            patch_tokens=patch_tokens.unflatten(0, global_crops.shape[:2]),
        )


__all__ = [
    "Dinov3Backbone",
    "Dinov3ForImageClassification",
    "Dinov3ForPreTraining",
    "Dinov3Model",
    "Dinov3PreTrainedModel",
]
