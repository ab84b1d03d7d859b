"""Load both generations of the hub's parameter names; save weights as safetensors, together with the model's code."""

import inspect
import os
import shutil
from pathlib import Path
from typing import Any, Self

from torch import nn
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils.output_capturing import maybe_install_capturing_hooks


class Dinov3SavingMixin(nn.Module):
    """Building, loading and saving, for every `PreTrainedModel` of this package.

    Attributes:
        key_mapping: from the hub's newer parameter names, as regular expressions, to ours.
        auto_classes: transformers' Auto classes that can load a saved folder without this package, each with the file
            and class to use.
    """

    key_mapping: dict[str, str] = {}
    auto_classes: dict[str, str] = {}

    def post_init(self) -> None:
        super().post_init()
        # A model inside this one has its hooks already, and a second set would record every block twice.
        if any(getattr(inner, "_output_capturing_hooks_installed", False) for inner in self.modules()):
            self._output_capturing_hooks_installed = True
        # Otherwise transformers installs them on first use, under a lock that torch.compile cannot trace.
        maybe_install_capturing_hooks(self)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As in transformers, from safetensors only; also reads directories of transformers' own DINOv3 classes."""
        kwargs.setdefault("use_safetensors", True)
        kwargs.setdefault("key_mapping", cls.key_mapping)
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Otherwise a later save would write the parameter names that were read.
        model._weight_conversions = None
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with the code next to the weights, so that `trust_remote_code=True` can load them."""
        self.config.auto_map = dict(self.auto_classes)
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            for file in code_files(type(self)):
                shutil.copyfile(file, Path(save_directory) / file.name)


def code_files(model_class: type) -> list[Path]:
    """Return the file that defines a class, and the sibling files that it imports (with one dot)."""
    own = inspect.getfile(model_class)
    return [Path(own), *sorted({Path(file) for file in get_relative_import_files(own)})]


__all__ = ["Dinov3SavingMixin"]
