"""How models are read and written: either generation of the hub's keys in, safetensors with their own code out."""

import shutil
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils.output_capturing import maybe_install_capturing_hooks


class Dinov3SavingMixin:
    """What every `PreTrainedModel` of this package does when it is built, loaded and saved.

    Attributes:
        key_mapping: names of the hub's newer key generation, as regular expressions, to ours.
        auto_classes: transformers' Auto classes that a saved folder serves, each with the file and class that it finds
            there where this package is absent.
    """

    key_mapping: dict[str, str] = {}
    auto_classes: dict[str, str] = {}

    def post_init(self) -> None:
        super().post_init()
        # A model inside has its hooks already, and a second set would record every block twice.
        if any(getattr(inner, "_output_capturing_hooks_installed", False) for inner in self.modules()):
            self._output_capturing_hooks_installed = True
        # Installed at the first request otherwise, under a lock that torch.compile cannot enter.
        maybe_install_capturing_hooks(self)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers', from safetensors only; also reads a stock directory of either key generation."""
        kwargs.setdefault("use_safetensors", True)
        kwargs.setdefault("key_mapping", cls.key_mapping)
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Otherwise a later save would write the key generation that was read.
        model._weight_conversions = None
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As transformers', with the code beside the weights, so that `trust_remote_code=True` can load them."""
        self.config.auto_map = dict(self.auto_classes)
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            for file in code_files(type(self)):
                shutil.copyfile(file, Path(save_directory) / file.name)


def code_files(model_class: type) -> list[Path]:
    """Return the file that defines a class and, of its siblings, those that it needs: it imports them with one dot."""
    own = sys.modules[model_class.__module__].__file__
    return [Path(own), *sorted({Path(file) for file in get_relative_import_files(own)})]


__all__ = ["Dinov3SavingMixin"]
