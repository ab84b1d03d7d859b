"""Our classes in transformers' Auto classes and pipelines, without importing transformers.

What transformers' `register` functions take are classes, and those of networks take seconds to import. So the dictionaries
that they write to are replaced, as each of transformers' auto modules is imported, by one that imports a class of ours when
it is asked for. Importing our classes right then would not do either: transformers' own model files import the auto
modules half-way, and ours import those files.
"""

import importlib
import sys
from collections.abc import Iterator, MutableMapping
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any


# For each of transformers' auto modules, its mappings, and what each of them gets: classes of this package by name.
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
    """Import the class of this package that a name, or each name of a dictionary, stands for."""
    if isinstance(value, dict):
        return {key: load(name) for key, name in value.items()}
    return getattr(sys.modules[__package__], value)


class LazyEntries(MutableMapping):
    """What is registered in one of transformers' mappings: ours, imported when it is asked for, and what others add.

    Keys are model types or classes of configurations; ours stand in `own` as model types or names of those classes. What
    is registered under one of our keys takes its place.
    """

    def __init__(self, registered: MutableMapping, own: dict[str, Any]):
        self.registered, self.own = registered, dict(own)
        self.has_types = "dinov3_hf" in own

    def _name(self, key: Any) -> str | None:
        """Return the name of a key of ours, without importing it: who asks with a class has imported that."""
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
        else:
            del self.own[self._name(key)]

    def __iter__(self) -> Iterator:
        own = list(self.own) if self.has_types else [load(name) for name in self.own]
        return iter([*(key for key in own if key not in self.registered), *self.registered])

    def __len__(self) -> int:
        return len(list(iter(self)))


def enter(module: ModuleType) -> None:
    """Enter our classes into one of transformers' modules, which has just been imported; a second time changes nothing."""
    if module.__name__ == PIPELINES:
        # It enters itself. Where it is what imports transformers' pipelines, it is not there yet, and does so at its end.
        getattr(importlib.import_module(OWN_PIPELINE), "register", bool)()
        return
    for name, own in MAPPINGS[module.__name__].items():
        mapping = getattr(module, name)
        # Not public, but it is all that `register` writes to and all that transformers reads of it.
        if not isinstance(mapping._extra_content, LazyEntries):
            mapping._extra_content = LazyEntries(mapping._extra_content, own)


class AutoModuleFinder(MetaPathFinder):
    """Finds transformers' auto modules as Python does, and enters our classes once such a module has been executed.

    It stays: a module that is loaded again has new mappings.
    """

    def find_spec(self, name, path=None, target=None):
        if name not in MAPPINGS and name != PIPELINES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        loader = spec.loader

        def execute(module: ModuleType) -> None:
            # The loader is this module's own; from here on it is as it was.
            del loader.exec_module
            loader.exec_module(module)
            enter(module)

        loader.exec_module = execute
        return spec


def register() -> None:
    """Enter our classes into transformers' modules: those imported already at once, others when they are imported."""
    if not any(isinstance(finder, AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AutoModuleFinder())
    for name in (*MAPPINGS, PIPELINES):
        if name in sys.modules:
            # Waits for a module that another thread is importing.
            enter(importlib.import_module(name))
