"""Processor of dino.txt: images and texts to a model's inputs."""

from transformers import BaseImageProcessor, PreTrainedTokenizerBase, ProcessorMixin


class DinoTxtProcessor(ProcessorMixin):
    """A backbone's image processor and a text tower's tokenizer in one."""

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)

    def unknown_words(self, texts: list[str]) -> list[str]:
        """Return the words of `texts` that the tokenizer knows to be absent from the training captions."""
        return self.tokenizer.unknown_words(texts)


__all__ = ["DinoTxtProcessor"]
