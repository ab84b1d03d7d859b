import json
import pickle
import random
import sys
import unicodedata
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from dinov3_hf.models import tokenization_dinotxt
from dinov3_hf.models.configuration_dinotxt import DinoTxtConfig
from dinov3_hf.models.tokenization_dinotxt import MIN_VOCAB_SIZE, DinoTxtTokenizer, clip_tokenizer, train_tokenizer


CAPTIONS = ["A red circle, left of two blue squares.", "the DOG's bone", "Two dogs and 25 cats", "नीला कुत्ता"]

SCRIPTS = (
    "Ελληνικά ΟΔΟΣ",
    "Привет ЁЖ",
    "שָׁלוֹם",
    "مَرْحَبًا",
    "नीला कुत्ता",
    "สวัสดีครับ",
    "漢字かなカナ",
    "한국어 ㅎㅏㄴ",
    "İIıŞ",
    "ᲐᲑგ 𞤀𞤣𞤢 𐵐𐵰",
    "naïve CAFÉ ẞß",
    "ﬁne ﬃ Ⅷ ½ ²",
)
EMOJI = ("👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇨🇭", "❤️", "🧑🏿‍🚀", "1️⃣", "☺")
ENTITIES = (
    "&amp;", "&amp;amp;", "&lt;b&gt;", "&amp;lt;", "&#233;", "e&#x301;", "&#x1F600;", "&nbsp;",
    "&eacute", "&bogus;", "&#0;", "&amp;#39;s", "&#x345;",
)  # fmt: skip
SPACES = (
    " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028",
    "\u0085", "\x00", "\x07", "\x1f", "\x7f", "\ufeff", "\u202e", "\ufffd",
)  # fmt: skip
MARKS = (
    "!", "!!!", "...", "?!", "--", "$9.99", "<|endoftext|>", "</w>", "#tag_1", "@", "'", "''",
    "“”", "∑", "\u0301", "\u0345", "\ud83d", "\ud83d\ude00",
)  # fmt: skip
WORDS = (
    "a photo of THE dog", "it's", "they'LL", "we’ve", "I'm", "d'Or", "it'ſ", "rock'n'roll", "WOW", "isn't",
    "antidisestablishmentarianism", "x" * 40, "2024", "1,000.50", "３",
)  # fmt: skip
MOJIBAKE = ("cafÃ©", "â€œquotedâ€\x9d", "donâ€™t", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "naÃ¯ve Â© 2020", "l’Ã©tÃ©", "ã\x81\x82")
BLANKS = ("", " ", "\t\n", "\u3000\u00a0", "&nbsp;", "\x00")


def generated_texts(count: int) -> list[str]:
    """Texts of mixed parts, some glued, some over-long, with characters drawn from many scripts' blocks."""
    draw = random.Random(0)
    # Unicode 3.2, which every Python has: the two libraries disagree on places still empty in Unicode 16.
    blocks = ((0x20, 0x250), (0x250, 0x530), (0x600, 0x6FF), (0x900, 0xDFF), (0x1E00, 0x2BFF), (0x3000, 0x9000))
    blocks = [[chr(c) for c in range(*x) if unicodedata.ucd_3_2_0.category(chr(c)) != "Cn"] for x in blocks]
    parts = (*SCRIPTS, *EMOJI, *ENTITIES, *SPACES, *MARKS, *WORDS, *MOJIBAKE)

    def part() -> str:
        kind = draw.random()
        if kind < 0.15:
            return "".join(draw.choices("abcdefghijklmnopqrstuvwxyzABCDEF0123456789'-!", k=draw.randint(1, 12)))
        if kind < 0.25:
            return "".join(draw.choice(draw.choice(blocks)) for _ in range(draw.randint(1, 4)))
        return draw.choice(parts)

    texts = list(BLANKS)
    while len(texts) < count:
        length = draw.randint(60, 200) if draw.random() < 0.02 else draw.randint(1, 8)
        texts.append(draw.choice(("", " ", " ")).join(part() for _ in range(length)))
    return texts


@pytest.fixture(scope="module")
def clip():
    if find_spec("open_clip") is None or find_spec("ftfy") is None:
        pytest.skip("CLIP's vocabulary needs the extra [text]")
    return clip_tokenizer()


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(iter(CAPTIONS), vocab_size=400, context_length=16)


@pytest.fixture
def warnings_seen(monkeypatch):
    seen = []
    monkeypatch.setattr(tokenization_dinotxt.logger, "warning_once", seen.append, raising=False)
    return seen


def test_same_tokens_as_open_clip(clip):
    open_clip = pytest.importorskip("open_clip")
    texts = generated_texts(10_000)
    expected = open_clip.SimpleTokenizer()(texts)
    found = clip(texts, padding="max_length", return_tensors="pt")
    different = [texts[i] for i in (found.input_ids != expected).any(dim=1).nonzero().flatten()]
    assert not different, f"{len(different)} differ: {different[:5]!r}"
    # The generator reaches what it is for: cut texts, empty ones, and many tokens.
    lengths = found.attention_mask.sum(dim=1)
    assert (lengths == 77).sum() > 150 and (lengths == 2).sum() >= len(BLANKS) - 1 and expected.unique().numel() > 2000
    assert torch.equal(lengths - 1, expected.eq(clip.eos_token_id).int().argmax(dim=1))


def test_clip_vocabulary(clip):
    assert (len(clip), clip.vocab_size, clip.model_max_length) == (49408, 49408, 77)
    assert (clip.bos_token_id, clip.eos_token_id, clip.pad_token_id) == (49406, 49407, 0)
    # "!" is padding's token and stays a letter of the text; a caption cannot end itself.
    assert clip("wow!! !").input_ids == [49406, 2781, 748, 256, 49407]
    assert clip("dog <end_of_text> cat").input_ids.count(clip.eos_token_id) == 1
    assert clip_tokenizer(context_length=9).model_max_length == 9


def test_decoding_leaves_padding_out(clip, trained):
    for tokenizer in (clip, trained):
        ids = tokenizer(["A dog!! Café", "cats"], padding=True, return_tensors="pt").input_ids
        assert tokenizer.batch_decode(ids, skip_special_tokens=True) == ["a dog !! café", "cats"]
        assert tokenizer.decode(ids[1]).startswith("<start_of_text>")


def test_long_texts_are_cut_as_pipelines_call_it(trained, warnings_seen):
    texts = ["dog", "dog " * 100]
    trained(texts[:1], padding="max_length")
    assert warnings_seen == []
    output = trained(texts, return_tensors="pt", padding=True)
    assert output.input_ids.shape == (2, 16) and output.attention_mask.sum(dim=1).tolist() == [3, 16]
    assert output.input_ids[:, 0].tolist() == [trained.bos_token_id] * 2
    assert output.input_ids[1, -1] == output.input_ids[0, 2] == trained.eos_token_id
    assert (output.input_ids[0, 3:] == 0).all()
    assert warnings_seen == ["Texts longer than 16 tokens are truncated to 16, end token included."]
    short = trained(texts, max_length=5, padding="max_length", truncation=True)
    assert [len(ids) for ids in short.input_ids] == [5, 5] and short.input_ids[1][-1] == trained.eos_token_id
    assert len(trained.encode(texts[1])) == 16
    assert len(trained(texts[1], truncation=False).input_ids) == 102
    assert len(warnings_seen) == 3  # `warning_once` drops repeated lines


@pytest.mark.parametrize("name", ["clip", "trained"])
def test_round_trip(name, request, tmp_path):
    tokenizer = request.getfixturevalue(name)
    texts = [*CAPTIONS, "&amp;amp; Wow!! 👍🏽", "", "dog " * 100]
    expected = tokenizer(texts, padding=True)
    tokenizer.save_pretrained(tmp_path)
    again = DinoTxtTokenizer.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    for other in (again, DinoTxtTokenizer.from_pretrained(tmp_path / "again"), pickle.loads(pickle.dumps(tokenizer))):
        assert other(texts, padding=True).data == expected.data
        for field in ("clean", "known_words", "model_max_length", "pad_token_id", "bos_token_id", "eos_token_id"):
            assert getattr(other, field) == getattr(tokenizer, field), field


def test_auto_tokenizer_reads_it(trained, tmp_path, monkeypatch):
    AutoConfig.register("dinotxt", DinoTxtConfig, exist_ok=True)
    AutoTokenizer.register(DinoTxtConfig, fast_tokenizer_class=DinoTxtTokenizer, exist_ok=True)
    DinoTxtConfig().save_pretrained(tmp_path / "model")
    trained.save_pretrained(tmp_path / "model")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(loaded) is DinoTxtTokenizer
    # Where the package is absent, the code next to the vocabulary reads it.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    carried = AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert type(carried).__module__.startswith("transformers_modules")
    assert carried(CAPTIONS).data == loaded(CAPTIONS).data == trained(CAPTIONS).data
    assert carried.unknown_words("a green dog") == loaded.unknown_words("a green dog") == ["green"]


def test_basic_cleaning_of_clip_needs_no_ftfy(clip, tmp_path, monkeypatch):
    clip.save_pretrained(tmp_path)
    basic = DinoTxtTokenizer.from_pretrained(tmp_path, clean="basic")
    expected = clip("a café dog").input_ids
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert basic(" A  cafe\u0301\tDOG ").input_ids == expected
    with pytest.raises(ImportError, match=r"^clean='clip' needs ftfy .* pip install 'dinov3-hf\[text\]'$"):
        clip("a dog")


def test_trained_tokenizer(trained):
    assert (trained.pad_token_id, trained.bos_token_id, trained.eos_token_id) == (0, 1, 2)
    assert MIN_VOCAB_SIZE < len(trained) == trained.vocab_size <= 400
    assert len(train_tokenizer(CAPTIONS, vocab_size=MIN_VOCAB_SIZE)) == MIN_VOCAB_SIZE
    # A word of the captions is one token, in any case and place; an unseen text still has a spelling.
    dog, red_dog, twice = (trained(x).input_ids for x in ("dog", "RED  Dog", "dogdog"))
    assert len(dog) == 3 and red_dog[2:] == dog[1:] and twice[1] == dog[1] != twice[2]
    for text in ("zebra 🦓 Ωμέγα \x00", "<pad> <end_of_text>", "\ud83d"):
        ids = trained(text, truncation=False).input_ids
        assert ids[0] == 1 and ids[-1] == 2 and len(ids) > 2 and min(ids[1:-1]) > 2
    assert (
        trained.decode(trained("zebra 🦓 Ωμέγα", truncation=False).input_ids, skip_special_tokens=True)
        == "zebra 🦓 ωμέγα"
    )


def test_training_is_deterministic_and_blind_to_order(trained):
    for captions in (CAPTIONS, CAPTIONS[::-1]):
        other = train_tokenizer(captions, vocab_size=400, context_length=16)
        assert (
            json.loads(other.backend_tokenizer.to_str())["model"]
            == json.loads(trained.backend_tokenizer.to_str())["model"]
        )
        assert other.known_words == trained.known_words


def test_unknown_words(trained, clip, monkeypatch):
    assert trained.known_words == sorted(
        "a red circle left of two blue squares the dog bone dogs and 25 cats नीला कुत्ता".split()
    )
    texts = ["The dog’s RED house, 7 cats?", "a moon over a house & 25 कुत्ता"]
    assert trained.unknown_words(texts) == ["house", "7", "moon", "over"]
    assert trained.unknown_words(CAPTIONS) == trained.unknown_words("") == []
    assert clip.known_words is None and clip.unknown_words(texts) == []
    monkeypatch.setattr(tokenization_dinotxt, "MAX_KNOWN_WORDS", 2)
    assert train_tokenizer(["b c a", "c b", "c"]).known_words == ["b", "c"]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda t: t([]), "text: got [], accepted: a str or a list of at least one str"),
        (lambda t: t(3), "text: got 3, accepted: a str or a list of at least one str"),
        (lambda t: t(["a", None]), "text[1]: got None, accepted: str"),
        (lambda t: t.unknown_words(["a", 3]), "text[1]: got 3, accepted: str"),
        (lambda t: t("a", "b"), "text: got a pair or a pre-split text, accepted: a str or a list of str"),
        (lambda t: t("a", max_length=2), "max_length: got 2, accepted: at least 3"),
        (lambda t: DinoTxtTokenizer(clean="html"), "clean: got 'html', accepted: 'clip' or 'basic'"),
        (lambda t: train_tokenizer([]), "captions: got no words, accepted: at least one caption with a word"),
        (lambda t: train_tokenizer(["", " "]), "captions: got no words, accepted: at least one caption with a word"),
        (lambda t: train_tokenizer("a dog"), "captions: got the str 'a dog', accepted: an iterable of str"),
        (lambda t: train_tokenizer(["a", 3]), "captions[1]: got 3, accepted: str"),
        (lambda t: train_tokenizer(["a"], vocab_size=258), "vocab_size: got 258, accepted: at least 259"),
        (lambda t: train_tokenizer(["a"], context_length=2), "context_length: got 2, accepted: at least 3"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, line, trained):
    with pytest.raises(ValueError) as error:
        call(trained)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_missing_vocabulary_names_the_extra(monkeypatch):
    monkeypatch.setattr(tokenization_dinotxt, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'dinov3-hf\[text\]'$"):
        clip_tokenizer()
