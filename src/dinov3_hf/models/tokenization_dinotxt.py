"""Tokenizers of dino.txt: CLIP's vocabulary, or one trained on your own captions."""

import gzip
import html
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import BatchEncoding, TruncationStrategy
from transformers.utils import PaddingStrategy, logging


logger = logging.get_logger(__name__)

START, END, PAD = "<start_of_text>", "<end_of_text>", "<pad>"
MAX_KNOWN_WORDS = 20_000
# The special tokens and the 256 bytes: with these every text has a spelling.
MIN_VOCAB_SIZE = 3 + 256

# open_clip ignores case here, which changes two lower-case characters: the long s is an s, and the Greek iota
# subscript (U+0345) falls between the classes and is dropped: no letter, but the lower case of one.
_CLIP_PIECES = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"
# Vowel signs and accents written apart (\p{M}) stay in their word, in which CLIP breaks it.
_CONTRACTIONS = r"['’](?:s|t|re|ve|m|ll|d)(?![\p{L}\p{M}])"
_BASIC_PIECES = rf"{_CONTRACTIONS}|[\p{{L}}\p{{M}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{M}}\p{{N}}]+"
_WORDS = pre_tokenizers.Split(Regex(rf"{_CONTRACTIONS}|[\p{{L}}\p{{M}}]+|[\p{{N}}]+"), behavior="removed", invert=True)
_BASIC_CLEANING = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
)


class DinoTxtTokenizer(PreTrainedTokenizerFast):
    """Texts to `input_ids` and `attention_mask` [T,N]: start token, byte-pair tokens, end token, then padding of id 0.

    Texts are truncated to `model_max_length` tokens, end token included, unless `truncation=False` is passed. Special
    tokens inside a text are not recognised: `"<end_of_text>"` is tokenised as the characters it consists of.

    Args:
        clean: cleaning before tokenisation. "clip": open_clip's (broken encodings repaired by ftfy, HTML entities,
            white space, lower case); "basic": Unicode NFC, white space, lower case.
        known_words: the words of the captions that this tokenizer was trained on, sorted; `None` if unknown.

    Raises:
        ValueError: texts that are not strings, pairs of texts, pre-split texts, a context below 3 tokens.
        ImportError: a text to be cleaned with "clip" without ftfy installed.
    """

    def __init__(
        self,
        *args: Any,
        clean: str = "basic",
        known_words: list[str] | None = None,
        bos_token: str = START,
        eos_token: str = END,
        pad_token: str = PAD,
        model_max_length: int = 77,
        split_special_tokens: bool = True,
        **kwargs: Any,
    ):
        if clean not in ("clip", "basic"):
            raise ValueError(f"clean: got {clean!r}, accepted: 'clip' or 'basic'")
        _check_context("model_max_length", model_max_length)
        super().__init__(
            *args,
            clean=clean,
            known_words=known_words,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            model_max_length=model_max_length,
            # CLIP pads with "!": matched as a special token, it would be cut out of every text that has one.
            split_special_tokens=split_special_tokens,
            **kwargs,
        )
        self.clean, self.known_words = clean, known_words
        # CLIP's cleaning needs Python; after it nothing may be normalised again (an entity can spell an accent apart).
        self._tokenizer.normalizer = _BASIC_CLEANING if clean == "basic" else None
        ends = [(self.bos_token, self.bos_token_id), (self.eos_token, self.eos_token_id)]
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{self.bos_token} $A {self.eos_token}", special_tokens=ends
        )

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        # Otherwise transformers passes vocabulary and merges to `__init__`, which would have to build the tokenizer.
        return kwargs

    def unknown_words(self, texts: str | list[str]) -> list[str]:
        """Return the words of `texts` that are in no training caption, in order, each once; [] without `known_words`.

        Only the 20,000 most frequent words of the captions are kept: a rarer one counts as unknown.
        """
        if self.known_words is None:
            return []
        known = set(self.known_words)
        words = (word for text in _check_texts(texts) for word in _words(text))
        return [word for word in dict.fromkeys(words) if word not in known]

    def _get_padding_truncation_strategies(
        self,
        padding: bool | str | PaddingStrategy = False,
        truncation: bool | str | TruncationStrategy | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> tuple[PaddingStrategy, TruncationStrategy, int | None, dict[str, Any]]:
        # Pipelines ask only for padding, and the model has no positions for a longer text.
        truncation = True if truncation is None else truncation
        if max_length is not None and truncation is not False:
            _check_context("max_length", max_length)
        return super()._get_padding_truncation_strategies(padding, truncation, max_length, **kwargs)

    def _encode_plus(
        self,
        text: str | list[str],
        text_pair: str | list[str] | None = None,
        is_split_into_words: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        if text_pair is not None or is_split_into_words:
            raise ValueError("text: got a pair or a pre-split text, accepted: a str or a list of str")
        cleaned = [_clip_clean(x) if self.clean == "clip" else _whole(x) for x in _check_texts(text)]
        encoded = super()._encode_plus(cleaned[0] if isinstance(text, str) else cleaned, **kwargs)
        if any(encoding.overflowing for encoding in encoded.encodings):
            length = kwargs["max_length"]
            logger.warning_once(f"Texts longer than {length} tokens are truncated to {length}, end token included.")
        return encoded

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        if skip_special_tokens:
            # The first end token ends the text. Id 0 is padding only after it: in CLIP it is also "!".
            ids = [x for x in takewhile(lambda x: x != self.eos_token_id, ids) if x != self.bos_token_id]
        return super()._decode(ids, **kwargs).strip()


def clip_tokenizer(context_length: int = 77) -> DinoTxtTokenizer:
    """Return CLIP's tokenizer: 49,408 tokens, start 49406, end 49407, padding 0, cut to `context_length` tokens.

    The ids are those of open_clip's `SimpleTokenizer`, token for token, with two exceptions: the names of the start
    and end token inside a text, which open_clip reads as these tokens and this one as text; and letters and digits
    newer than Unicode 16, which the `tokenizers` library does not recognise as such.

    Raises:
        ImportError: the vocabulary, a file of open_clip_torch, is not installed.
    """
    spec = find_spec("open_clip")  # does not import it, which takes seconds
    file = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz" if spec and spec.origin else None
    if file is None or not file.is_file():
        raise ImportError("CLIP's vocabulary comes with open_clip_torch: pip install 'dinov3-hf[text]'")
    # One line of version, then 48,894 merges; the tail of the file is not used.
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [(first, second) for first, second in map(str.split, lines)]
    letters = _byte_letters()
    tokens = [*letters, *(x + "</w>" for x in letters), *map("".join, merges), START, END]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = _split(_CLIP_PIECES, prefix=False)
    # "Ġ" is how the byte-level alphabet writes a space.
    tokenizer.decoder = decoders.Sequence([decoders.Replace("</w>", "Ġ"), decoders.ByteLevel()])
    return DinoTxtTokenizer(
        tokenizer_object=tokenizer, clean="clip", pad_token=letters[0], model_max_length=context_length
    )


def train_tokenizer(captions: Iterable[str], vocab_size: int = 4096, context_length: int = 77) -> DinoTxtTokenizer:
    """Train a lower-case byte-level BPE of at most `vocab_size` tokens on a stream of captions, read once.

    Padding, start and end have ids 0, 1 and 2, every byte has a token, and the same captions give the same tokenizer.

    Raises:
        ValueError: captions that are not strings or contain no words, `vocab_size` below 259, a context below 3
            tokens.
    """
    if not isinstance(vocab_size, int) or vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size: got {vocab_size!r}, accepted: at least {MIN_VOCAB_SIZE} (256 bytes, 3 special)")
    _check_context("context_length", context_length)
    if isinstance(captions, str):
        raise ValueError(f"captions: got the str {captions[:40]!r}, accepted: an iterable of str")
    words: Counter[str] = Counter()

    def checked() -> Iterator[str]:
        for index, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise ValueError(f"captions[{index}]: got {caption!r:.40}, accepted: str")
            words.update(_words(caption))
            yield _whole(caption)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _BASIC_CLEANING
    tokenizer.pre_tokenizer = _split(_BASIC_PIECES, prefix=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, START, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(checked(), trainer)
    if not words:
        raise ValueError("captions: got no words, accepted: at least one caption with a word")
    # Equally frequent words in alphabetical order, so that the captions' order does not matter.
    frequent = sorted(words, key=lambda word: (-words[word], word))[:MAX_KNOWN_WORDS]
    return DinoTxtTokenizer(
        tokenizer_object=tokenizer, clean="basic", known_words=sorted(frequent), model_max_length=context_length
    )


def _check_context(name: str, length: int) -> None:
    if not isinstance(length, int) or length < 3:
        raise ValueError(f"{name}: got {length!r}, accepted: at least 3 (the start token, one of text, the end token)")


def _check_texts(texts: str | list[str]) -> list[str]:
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list | tuple) or not texts:
        raise ValueError(f"text: got {texts!r:.40}, accepted: a str or a list of at least one str")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text[{index}]: got {text!r:.40}, accepted: str")
    return list(texts)


def _whole(text: str) -> str:
    """Replace unpaired surrogates, which UTF-8 cannot encode, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _clip_clean(text: str) -> str:
    """Clean a text as open_clip does by default, which unescapes HTML entities twice."""
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise ImportError(f"clean='clip' needs ftfy ({error}): pip install 'dinov3-hf[text]'") from None
    return " ".join(html.unescape(html.unescape(fix_text(text))).split()).lower()


def _words(text: str) -> list[str]:
    pieces = _WORDS.pre_tokenize_str(_BASIC_CLEANING.normalize_str(_whole(text)))
    return [piece for piece, _ in pieces if piece[0] not in "'’"]


def _split(pieces: str, prefix: bool) -> pre_tokenizers.PreTokenizer:
    """Return a pre-tokenizer that splits a text and maps bytes to letters; `prefix` puts a space before each piece."""
    split = pre_tokenizers.Split(Regex(pieces), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)])


def _byte_letters() -> list[str]:
    """Return the 256 letters of the byte-level alphabet in CLIP's order: printable bytes first, then the others."""
    printable = [chr(x) for x in (*range(33, 127), *range(161, 173), *range(174, 256))]
    return printable + [chr(256 + x) for x in range(256 - len(printable))]


# Saved tokenizers carry their code, as saved models do.
DinoTxtTokenizer.register_for_auto_class()

__all__ = ["DinoTxtTokenizer", "clip_tokenizer", "train_tokenizer"]
