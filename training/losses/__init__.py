"""The losses of pretraining, one pure function a file."""

from .dino import dino_loss
from .ibot import ibot_loss
from .koleo import koleo_loss
from .sinkhorn_knopp import sinkhorn_knopp


__all__ = ["dino_loss", "ibot_loss", "koleo_loss", "sinkhorn_knopp"]
