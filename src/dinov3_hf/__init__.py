"""DINOv3 on the Hugging Face stack: models, checkpoints and training."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

from ._version import __version__
from .checkpoints import tiny_checkpoint
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


AutoConfig.register(Dinov3Config.model_type, Dinov3Config)
AutoModel.register(Dinov3Config, Dinov3Model)
AutoBackbone.register(Dinov3Config, Dinov3Backbone)
AutoModelForImageClassification.register(Dinov3Config, Dinov3ForImageClassification)
AutoImageProcessor.register(Dinov3Config, image_processor_classes={"torchvision": Dinov3ImageProcessor})
AutoConfig.register(Dinov3ConvNextConfig.model_type, Dinov3ConvNextConfig)
AutoModel.register(Dinov3ConvNextConfig, Dinov3ConvNextModel)
AutoBackbone.register(Dinov3ConvNextConfig, Dinov3ConvNextBackbone)
AutoModelForImageClassification.register(Dinov3ConvNextConfig, Dinov3ConvNextForImageClassification)
AutoImageProcessor.register(Dinov3ConvNextConfig, image_processor_classes={"torchvision": Dinov3ImageProcessor})
AutoConfig.register(DinoTxtConfig.model_type, DinoTxtConfig)
AutoConfig.register(DinoTxtTextConfig.model_type, DinoTxtTextConfig)
AutoModel.register(DinoTxtConfig, DinoTxtModel)
AutoModelForZeroShotImageClassification.register(DinoTxtConfig, DinoTxtModel)
AutoProcessor.register(DinoTxtConfig, DinoTxtProcessor)
AutoTokenizer.register(DinoTxtConfig, fast_tokenizer_class=DinoTxtTokenizer)

# Registers pipeline("zero-shot-image-segmentation").
from . import pipelines as _pipelines  # noqa: E402, F401


__all__ = [
    "DinoTxtConfig",
    "DinoTxtModel",
    "DinoTxtProcessor",
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
