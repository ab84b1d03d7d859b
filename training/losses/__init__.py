"""The losses of the paper, one pure function per file."""

from .dino import dino_loss
from .gram import gram_loss, resize_patches
from .ibot import ibot_loss
from .koleo import koleo_loss
from .sinkhorn_knopp import sinkhorn_knopp


__all__ = ["dino_loss", "gram_loss", "ibot_loss", "koleo_loss", "resize_patches", "sinkhorn_knopp"]
