"""What all protocols share: a frozen network and its baselines, the preprocessing, and the store of features."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..data.views import Preprocessing, WholeImage
from ..provenance import weights_digest
from .feature_store import Extractor, Features, FeatureStore
from .features import (
    RAW_PIXELS_SIDE,
    cls_and_mean_features,
    cls_features,
    patch_features,
    randomly_initialised,
    raw_image_features,
    raw_patch_features,
)


if TYPE_CHECKING:
    from datasets import Dataset

KINDS = {"cls": cls_features, "cls+mean": cls_and_mean_features, "patches": patch_features}


@dataclass
class Bench:
    """A frozen network to be measured, its two baselines, and the settings that all protocols share.

    `preprocessing` gives square crops for image-level tasks; `whole` derives from it the uncropped view of dense
    tasks. `seed` decides the weights of the randomly initialised network and every random draw.
    """

    model: nn.Module
    preprocessing: Preprocessing
    store: FeatureStore = field(default_factory=FeatureStore)
    batch_size: int = 64
    seed: int = 0
    baselines: bool = True
    progress: bool = True

    @property
    def patch_size(self) -> int:
        return self.model.config.patch_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def whole(self) -> WholeImage:
        """The uncropped view: shorter side resized to `image_size`, both sides to multiples of the patch size."""
        view = self.preprocessing
        return WholeImage(view.image_size, self.patch_size, view.mean, view.std)

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """The network ("model") and, with baselines, the same network with random weights ("random_init")."""
        network = {"random_init": randomly_initialised(self.model, self.seed)} if self.baselines else {}
        return {"model": self.model, **network}

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {name: weights_digest(network) for name, network in self.networks.items()}

    def extractors(self, kind: str, raw_pixels: bool = True) -> dict[str, Extractor]:
        """Return the encoders to compare: "model" and, with baselines, "random_init" and "raw_pixels".

        `kind` is "cls", "cls+mean" (class token joined with the mean patch token) or "patches".
        """
        width = self.model.config.hidden_size * (2 if kind == "cls+mean" else 1)
        patch = self.patch_size if kind == "patches" else None
        extractors = {
            name: Extractor(KINDS[kind](network), width, f"{kind} of {self._digests[name]}", patch)
            for name, network in self.networks.items()
        }
        if self.baselines and raw_pixels:
            side = min(self.preprocessing.image_size, RAW_PIXELS_SIDE)
            function, width = (raw_patch_features(patch), 3 * patch**2) if patch else (raw_image_features, 3 * side**2)
            extractors["raw_pixels"] = Extractor(
                function, width, f"raw pixels, patch {patch}, side {None if patch else side}", patch
            )
        return extractors

    def extract(
        self,
        rows: "Dataset",
        image_column: str,
        kind: str,
        description: str,
        whole: bool = False,
        raw_pixels: bool = True,
    ) -> dict[str, Features]:
        """Return every encoder's features of the images in `rows`; see `extractors` and `FeatureStore.extract`."""
        return self.store.extract(
            rows,
            image_column,
            self.whole if whole else self.preprocessing,
            self.extractors(kind, raw_pixels),
            self.batch_size,
            self.device,
            description,
            self.progress,
        )

    def checkpoint(self, *about: object) -> Path:
        """Return the file for the training state of the head that the values `about` describe."""
        text = json.dumps([*self._digests.values(), repr(self.preprocessing), self.seed, *about], default=repr)
        return self.store.folder / "heads" / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.pt"
