"""Register our classes with transformers' Auto classes and pipelines, without importing transformers.

transformers' `register` functions take classes, and importing those of networks takes seconds. Therefore, when one of
transformers' auto modules is imported, its dictionaries of registered classes are replaced by ones that import a class
of ours on access. Importing our classes at that moment would fail: transformers' model files import the auto modules
before they are complete themselves, and our files import those model files.
"""

import importlib
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


# transformers' auto modules, their mappings, and what to register in each: classes of this package, by name.
MAPPINGS: dict[str, dict[str, dict[str, Any]]] = {
    "transformers.models.auto.configuration_auto": {
        "CONFIG_MAPPING": {
            "dinov3_hf": "Dinov3Config",
            "dinov3_hf_convnext": "Dinov3ConvNextConfig",
            "dinov3_hf_pyramid": "Dinov3PyramidConfig",
            "dinotxt": "DinoTxtConfig",
            "dinotxt_text": "DinoTxtTextConfig",
        },
    },
    "transformers.models.auto.modeling_auto": {
        "MODEL_MAPPING": {
            "Dinov3Config": "Dinov3Model",
            "Dinov3ConvNextConfig": "Dinov3ConvNextModel",
            "DinoTxtConfig": "DinoTxtModel",
        },
        "MODEL_FOR_BACKBONE_MAPPING": {
            "Dinov3Config": "Dinov3Backbone",
            "Dinov3ConvNextConfig": "Dinov3ConvNextBackbone",
            "Dinov3PyramidConfig": "Dinov3PyramidBackbone",
        },
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": {
            "Dinov3Config": "Dinov3ForImageClassification",
            "Dinov3ConvNextConfig": "Dinov3ConvNextForImageClassification",
        },
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING": {"DinoTxtConfig": "DinoTxtModel"},
    },
    "transformers.models.auto.image_processing_auto": {
        "IMAGE_PROCESSOR_MAPPING": {
            "Dinov3Config": {"torchvision": "Dinov3ImageProcessor"},
            "Dinov3ConvNextConfig": {"torchvision": "Dinov3ImageProcessor"},
        },
    },
    "transformers.models.auto.processing_auto": {"PROCESSOR_MAPPING": {"DinoTxtConfig": "DinoTxtProcessor"}},
    "transformers.models.auto.tokenization_auto": {"TOKENIZER_MAPPING": {"DinoTxtConfig": "DinoTxtTokenizer"}},
}
PIPELINES = "transformers.pipelines"
OWN_PIPELINE = "dinov3_hf.pipelines.zero_shot_segmentation"


def load(value: str | dict[str, str]) -> Any:
    """Import the class of this package with this name; of a dictionary, the classes of its values."""
    if isinstance(value, dict):
        return {key: load(name) for key, name in value.items()}
    return getattr(sys.modules[__package__], value)


class LazyEntries(MutableMapping):
    """The registered classes of one of transformers' mappings: ours, imported on access, and those of others.

    Keys are model types or configuration classes; `own` holds ours under model types or names of these classes. What
    others register under one of our keys replaces ours.
    """

    def __init__(self, registered: MutableMapping, own: dict[str, Any]):
        self.registered, self.own = registered, dict(own)
        self.has_types = "dinov3_hf" in own

    def _name(self, key: Any) -> str | None:
        """Return the key in `own` for a model type or a configuration class; None for classes of others."""
        if self.has_types:
            return key
        is_own = isinstance(key, type) and key.__module__.startswith("dinov3_hf.models.")
        return key.__name__ if is_own else None

    def __contains__(self, key: Any) -> bool:
        return key in self.registered or self._name(key) in self.own

    def __getitem__(self, key: Any) -> Any:
        if key in self.registered:
            return self.registered[key]
        if (name := self._name(key)) in self.own:
            return load(self.own[name])
        raise KeyError(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.registered[key] = value

    def __delitem__(self, key: Any) -> None:
        if key in self.registered:
            del self.registered[key]
        elif (name := self._name(key)) in self.own:
            del self.own[name]
        else:
            raise KeyError(key)

    def __iter__(self) -> Iterator:
        own = list(self.own) if self.has_types else [load(name) for name in self.own]
        return iter([*(key for key in own if key not in self.registered), *self.registered])

    def __len__(self) -> int:
        return len(list(iter(self)))


def enter(module: ModuleType) -> None:
    """Register our classes in one of transformers' modules, just imported; repeated calls change nothing."""
    if module.__name__ == PIPELINES:
        # Our pipeline registers itself. If its own import got us here, it is incomplete, and does so at its end.
        getattr(importlib.import_module(OWN_PIPELINE), "register", bool)()
        return
    for name, own in MAPPINGS[module.__name__].items():
        mapping = getattr(module, name)
        # Not public, but the only place that `register` writes to and transformers reads.
        if not isinstance(mapping._extra_content, LazyEntries):
            mapping._extra_content = LazyEntries(mapping._extra_content, own)


class AutoModuleFinder(MetaPathFinder):
    """Finds transformers' auto modules as Python does, and registers our classes once such a module has been executed.

    It stays installed, because a reloaded module has new mappings.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in MAPPINGS and name != PIPELINES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader

        def execute(module: ModuleType) -> None:
            # The loader belongs to this module alone; this restores it.
            del loader.exec_module
            loader.exec_module(module)
            enter(module)

        loader.exec_module = execute
        return spec


def register() -> None:
    """Register our classes in transformers' modules: in imported ones now, in the others when they are imported."""
    if not any(isinstance(finder, AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AutoModuleFinder())
    for name in (*MAPPINGS, PIPELINES):
        if name in sys.modules:
            # Waits for a module that another thread is importing.
            enter(importlib.import_module(name))
