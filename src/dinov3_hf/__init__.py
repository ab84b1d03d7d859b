"""DINOv3 on the Hugging Face stack: models, checkpoints and training."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
)

from ._version import __version__
from .configuration_dinov3 import Dinov3Config
from .image_processing_dinov3 import Dinov3ImageProcessor
from .modeling_dinov3 import Dinov3Backbone, Dinov3ForImageClassification, Dinov3ForPreTraining, Dinov3Model


AutoConfig.register(Dinov3Config.model_type, Dinov3Config)
AutoModel.register(Dinov3Config, Dinov3Model)
AutoBackbone.register(Dinov3Config, Dinov3Backbone)
AutoModelForImageClassification.register(Dinov3Config, Dinov3ForImageClassification)
AutoImageProcessor.register(Dinov3Config, image_processor_classes={"torchvision": Dinov3ImageProcessor})

__all__ = [
    "Dinov3Backbone",
    "Dinov3Config",
    "Dinov3ForImageClassification",
    "Dinov3ForPreTraining",
    "Dinov3ImageProcessor",
    "Dinov3Model",
    "__version__",
]
