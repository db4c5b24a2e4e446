"""Ids of a long text in parts are those of the whole."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from roots.tokenizer import parts as parts_module
from roots.tokenizer import tokenizer as tokenizer_module
from roots.tokenizer.parts import Parts
from roots.tokenizer.tokenizer import load_tokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WHOLE = pre_tokenizers.ByteLevel(add_prefix_space=False)
PIECES = [
    *["the", " cat", " sat", "'s", "'LL", "d\u00e9j\u00e0", " \u0441\u043b\u043e\u0432\u043e", "x"],
    *[" ", "  ", "    ", "\n", "\r\n", "\n\n ", "\t", "\u00a0", "\u2003", "\u3000", "\x1c", "\x85"],
    *["7", " 42", "2024", "\u0663", "\u00b2", "\u216b", ".", "...", "!\n", " -", "_", "'", "=="],
    *[
        "\u4f60\u597d",
        "\uff0c",
        "\u3002",
        "\u304c",
        "\uac00",
        "\u11a8",
        "e\u0301",
        "\u0301",
        "\u0338",
    ],
    *["\U0001f600", "\u200d", "\u0915\u093c", "\u0958", "\u212b", "\U0001d7ce"],
    *["<|end|>", "<|", "|>", "end", "<pad>", " <mask> ", "a b", "b c", "word", "A\u030a"],
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
ADDED = [
    AddedToken("<|end|>", special=True),
    AddedToken("<mask>", special=True, lstrip=True, rstrip=True),
    AddedToken("a b", special=False, normalized=False),
    AddedToken("    ", special=False, normalized=True),
    AddedToken("word", special=False, single_word=True),
    AddedToken("\u00c5 x", special=False, normalized=True),
]


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


KNOWN = {
    "gpt2": (None, WHOLE),
    "neox": (normalizers.NFC(), WHOLE),
    "split-gpt2": (None, pre_tokenizers.Sequence([split(GPT2), BYTES])),
    "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), WHOLE])),
    "digits-together": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(False), WHOLE])),
    "llama3": (None, pre_tokenizers.Sequence([split(LLAMA3), BYTES])),
    "qwen2": (
        normalizers.Sequence([normalizers.NFC()]),
        pre_tokenizers.Sequence([pre_tokenizers.Sequence([split(QWEN2)]), BYTES]),
    ),
}
OTHERS = {
    "metaspace": (None, pre_tokenizers.Metaspace()),
    "prefix": (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "nothing": (None, None),
    "no-pattern": (None, BYTES),
    "lookahead": (None, pre_tokenizers.Sequence([split(r"a(?=.*b)"), WHOLE])),
    "removed": (
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT2), "removed"), BYTES]),
    ),
    "lower": (normalizers.Lowercase(), WHOLE),
    "strip": (normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]), WHOLE),
}


def made(normalizer, pre_tokenizer, added=ADDED):
    """A BPE with merges across what the pre-tokenizer separates, were it not there."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = BYTES
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [first + second for first in PIECES for second in PIECES]
    bpe.train_from_iterator(texts, trainer)
    bpe.normalizer = normalizer
    bpe.pre_tokenizer = pre_tokenizer
    bpe.add_tokens(list(added))
    return bpe


MADE = {name: made(*steps) for name, steps in KNOWN.items()}


def ids_of(bpe, text):
    return bpe.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", KNOWN)
def test_ids_of_parts_are_those_of_the_whole(name, plain):
    bpe = MADE[name]

    @settings(max_examples=250, deadline=None, derandomize=True, database=None)
    @given(TEXTS, st.integers(1, 12))
    def check(text, characters):
        bpe.encode_special_tokens = plain
        pieces = list(Parts(bpe, characters).of(text))
        assert "".join(pieces) == text
        assert [i for piece in pieces for i in ids_of(bpe, piece)] == ids_of(bpe, text)

    check()


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize(
    "text", ["one two three four ", "one, two. 42\nthree", "\u4f60\u597d\uff0c\u597d"]
)
def test_known_tokenizers_cut_words_and_marks(name, text):
    pieces = list(Parts(MADE[name], 2).of(text * 20))
    assert len(pieces) > 20
    assert max(map(len, pieces)) <= 9


@pytest.mark.parametrize("name", OTHERS)
def test_other_tokenizers_take_a_text_whole(name):
    text = "one two three four " * 20
    assert list(Parts(made(*OTHERS[name]), 4).of(text)) == [text]


def test_other_models_take_a_text_whole():
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = WHOLE
    assert list(Parts(words, 4).of("a b c d e f g")) == ["a b c d e f g"]


def test_no_cut_inside_or_beside_an_added_token():
    bpe = made(*KNOWN["gpt2"], added=[AddedToken("b c", special=False), AddedToken("d")])
    assert list(Parts(bpe, 1).of("a b c d e f g")) == ["a", " b c d e", " f", " g"]
    assert list(Parts(bpe, 1).of("x y")) == ["x", " y"]
    assert list(Parts(bpe, 1).of("")) == [""]


def test_long_texts_are_encoded_in_parts(tmp_path, monkeypatch):
    bpe = made(*KNOWN["gpt2"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, end_token="<|end|>")
    texts = ["the cat sat<|end|> 42 \n\n" * 50, "short", ""]
    whole = [tokenizer.encode_batch(texts, special) for special in (False, True)]
    asked = []

    class Watched(Parts):
        def of(self, text):
            for part in super().of(text):
                asked.append(part)
                yield part

    monkeypatch.setattr(tokenizer_module, "PART_CHARACTERS", 64)
    monkeypatch.setattr(tokenizer_module, "Parts", lambda model: Watched(model, 64))
    assert [tokenizer.encode_batch(texts, special) for special in (False, True)] == whole
    assert max(map(len, asked)) < 100
    assert whole[0] != whole[1]
    assert parts_module.PART_CHARACTERS == 1 << 20
