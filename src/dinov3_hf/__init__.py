"""DINOv3 on the Hugging Face stack: models, checkpoints and training.

Importing it takes milliseconds: torch and transformers are only imported when a name is first used.
"""

from typing import TYPE_CHECKING

from . import _auto_classes, _lazy
from ._version import __version__


if TYPE_CHECKING:
    from .checkpoints.bundled import tiny_checkpoint
    from .models.configuration_dinotxt import DinoTxtConfig, DinoTxtTextConfig
    from .models.configuration_dinov3 import Dinov3Config
    from .models.configuration_dinov3_convnext import Dinov3ConvNextConfig
    from .models.configuration_dinov3_pyramid import Dinov3PyramidConfig
    from .models.image_processing_dinov3 import Dinov3ImageProcessor
    from .models.modeling_dinotxt import DinoTxtModel
    from .models.modeling_dinov3 import Dinov3Backbone, Dinov3ForImageClassification, Dinov3ForPreTraining, Dinov3Model
    from .models.modeling_dinov3_convnext import (
        Dinov3ConvNextBackbone,
        Dinov3ConvNextForImageClassification,
        Dinov3ConvNextModel,
    )
    from .models.modeling_dinov3_pyramid import Dinov3PyramidBackbone
    from .models.processing_dinotxt import DinoTxtProcessor
    from .models.tokenization_dinotxt import DinoTxtTokenizer
    from .pipelines.dense import dense_features
else:
    __getattr__, __dir__ = _lazy.lazy_names(
        __name__,
        {
            ".checkpoints.bundled": ["tiny_checkpoint"],
            ".models.configuration_dinotxt": ["DinoTxtConfig", "DinoTxtTextConfig"],
            ".models.configuration_dinov3": ["Dinov3Config"],
            ".models.configuration_dinov3_convnext": ["Dinov3ConvNextConfig"],
            ".models.configuration_dinov3_pyramid": ["Dinov3PyramidConfig"],
            ".models.image_processing_dinov3": ["Dinov3ImageProcessor"],
            ".models.modeling_dinotxt": ["DinoTxtModel"],
            ".models.modeling_dinov3": [
                "Dinov3Backbone",
                "Dinov3ForImageClassification",
                "Dinov3ForPreTraining",
                "Dinov3Model",
            ],
            ".models.modeling_dinov3_convnext": [
                "Dinov3ConvNextBackbone",
                "Dinov3ConvNextForImageClassification",
                "Dinov3ConvNextModel",
            ],
            ".models.modeling_dinov3_pyramid": ["Dinov3PyramidBackbone"],
            ".models.processing_dinotxt": ["DinoTxtProcessor"],
            ".models.tokenization_dinotxt": ["DinoTxtTokenizer"],
            ".pipelines.dense": ["dense_features"],
        },
        modules=[
            "checkpoints",
            "data",
            "evaluation",
            "finetuning",
            "models",
            "pipelines",
            "recipe",
            "spaces",
            "text_alignment",
            "training",
            "visualization",
        ],
    )

# Last, because it needs the names above: if transformers' pipelines are imported already, it imports ours.
_auto_classes.register()


__all__ = [
    "DinoTxtConfig",
    "DinoTxtModel",
    "DinoTxtProcessor",
    "DinoTxtTextConfig",
    "DinoTxtTokenizer",
    "Dinov3Backbone",
    "Dinov3Config",
    "Dinov3ConvNextBackbone",
    "Dinov3ConvNextConfig",
    "Dinov3ConvNextForImageClassification",
    "Dinov3ConvNextModel",
    "Dinov3ForImageClassification",
    "Dinov3ForPreTraining",
    "Dinov3ImageProcessor",
    "Dinov3Model",
    "Dinov3PyramidBackbone",
    "Dinov3PyramidConfig",
    "__version__",
    "dense_features",
    "tiny_checkpoint",
]
