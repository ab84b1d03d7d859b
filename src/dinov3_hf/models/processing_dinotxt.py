"""Processor of dino.txt: images and texts to a model's inputs."""

from transformers import ProcessorMixin


class DinoTxtProcessor(ProcessorMixin):
    """A backbone's image processor and a text tower's tokenizer in one; texts are padded to the context."""

    def __init__(self, image_processor, tokenizer):
        super().__init__(image_processor, tokenizer)

    def unknown_words(self, texts: list[str]) -> list[str]:
        """Return the words of `texts` that the text tower was never taught, as far as its tokenizer knows."""
        return self.tokenizer.unknown_words(texts)


__all__ = ["DinoTxtProcessor"]
