"""Tokenizers that llama.cpp computes alike are named as it does, and all others are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from roots.exchange.gguf.known_splits import UnknownStep, split_name
from roots.tokenizer.train import train_bpe

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
NAMELESS = "for which llama.cpp has no name"
SPLITTING = "ByteLevel(add_prefix_space=False, use_regex=True)"


def plain() -> Tokenizer:
    return Tokenizer.from_str(train_bpe(["the quick brown fox, 1234 times"] * 5, 290).to_str())


def tree_of(tokenizer: Tokenizer, **model: Any) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(tokenizer.to_str())
    return {**tree, "model": {**tree["model"], **model}}


def level(use_regex: bool = True, prefix: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def split(pattern: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior)


def chain(*steps: Any) -> Any:
    return pre_tokenizers.Sequence(list(steps))


KNOWN = {
    "gpt-2": (None, level()),
    "gpt-2 alone in a sequence": (None, chain(level())),
    "gpt-2 spelled": (None, chain(split(GPT2), level(False))),
    "smollm": (None, chain(pre_tokenizers.Digits(individual_digits=True), level())),
    "llama-bpe": (None, chain(split(LLAMA3), level(False))),
    "qwen2": (None, chain(split(QWEN2), level(False))),
    "qwen2 composed": (normalizers.NFC(), chain(split(QWEN2), level(False))),
    "qwen2 in sequences": (
        normalizers.Sequence([normalizers.NFC()]),
        chain(chain(split(QWEN2)), level(False)),
    ),
}
UNKNOWN = {
    "no regex": (None, level(False), "ByteLevel(add_prefix_space=False, use_regex=False)"),
    "space in front": (None, level(True, True), "ByteLevel(add_prefix_space=True, use_regex=True)"),
    "lowercase": (normalizers.Lowercase(), level(), f"normaliser Lowercase + {SPLITTING}"),
    "NFKC": (normalizers.NFKC(), level(), f"normaliser NFKC + {SPLITTING}"),
    "NFC and gpt-2": (normalizers.NFC(), level(), f"normaliser NFC + {SPLITTING}"),
    "replaced": (
        normalizers.Replace("a", "b"),
        level(),
        f"normaliser Replace(pattern=a, content='b') + {SPLITTING}",
    ),
    "whitespace": (
        None,
        chain(pre_tokenizers.WhitespaceSplit(), level()),
        f"WhitespaceSplit + {SPLITTING}",
    ),
    "digits together": (
        None,
        chain(pre_tokenizers.Digits(individual_digits=False), level()),
        f"Digits(individual_digits=False) + {SPLITTING}",
    ),
    "another pattern": (
        None,
        chain(split(r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), level(False)),
        r"Split(pattern=\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+, behavior='Isolated', "
        "invert=False) + ByteLevel(add_prefix_space=False, use_regex=False)",
    ),
    "another behaviour": (
        None,
        chain(split(QWEN2, "removed"), level(False)),
        f"Split(pattern={QWEN2}, behavior='Removed', invert=False) + "
        "ByteLevel(add_prefix_space=False, use_regex=False)",
    ),
    "twice": (
        None,
        chain(split(QWEN2), level()),
        f"Split(pattern={QWEN2}, behavior='Isolated', invert=False) + {SPLITTING}",
    ),
    "none": (None, None, "nothing"),
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_known_tree_has_its_name(case: str) -> None:
    words = plain()
    normalizer, steps = KNOWN[case]
    if normalizer is not None:
        words.normalizer = normalizer
    words.pre_tokenizer = steps
    assert split_name(tree_of(words)) == case.split()[0]


@pytest.mark.parametrize("case", UNKNOWN)
def test_any_other_tree_is_refused_with_its_steps(case: str) -> None:
    normalizer, steps, shown = UNKNOWN[case]
    words = plain()
    if normalizer is not None:
        words.normalizer = normalizer
    if steps is not None:
        words.pre_tokenizer = steps
    tree = tree_of(words)
    if steps is None:
        tree["pre_tokenizer"] = None
    with pytest.raises(UnknownStep) as caught:
        split_name(tree)
    assert str(caught.value) == f"splits text by {shown}, {NAMELESS}"


def test_what_a_model_of_merges_may_not_have_is_refused() -> None:
    words = plain()
    vocabulary = tree_of(words)["model"]["vocab"]
    lacking = {token: index for token, index in vocabulary.items() if token != "!"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"merges": []}, "has no merges, without which llama.cpp refuses the file"),
        (
            {"type": "WordPiece"},
            "is WordPiece and no byte-level BPE, which --format gguf asks for",
        ),
        (
            {"end_of_word_suffix": "</w>"},
            "has end_of_word_suffix='</w>', which llama.cpp does not know",
        ),
        (
            {"vocab": lacking, "unk_token": "<|endoftext|>"},
            "lacks 1 of the 256 bytes, which llama.cpp leaves out of texts",
        ),
    ]
    for model, rule in cases:
        with pytest.raises(UnknownStep) as caught:
            split_name(tree_of(words, **model))
        assert str(caught.value) == rule
    assert split_name(tree_of(words, vocab=lacking, unk_token=None)) == "gpt-2"


def test_whole_tokens_and_merges_must_agree_where_llama_cpp_decides_otherwise() -> None:
    words = plain()
    assert split_name(tree_of(words, ignore_merges=True)) == "gpt-2"
    vocabulary = tree_of(words)["model"]["vocab"]
    unmade = {**vocabulary, "xyzzy": max(vocabulary.values()) + 1}
    assert split_name(tree_of(words, vocab=unmade)) == "gpt-2"
    with pytest.raises(UnknownStep) as caught:
        split_name(tree_of(words, vocab=unmade, ignore_merges=True))
    assert str(caught.value) == "has ignore_merges=true, unlike llama.cpp's gpt-2"


def test_decoders_and_added_tokens_that_do_otherwise_are_refused() -> None:
    words = plain()
    words.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    with pytest.raises(UnknownStep) as caught:
        split_name(tree_of(words))
    assert str(caught.value) == f"decodes by ByteLevel + Strip, {NAMELESS}"
    words = plain()
    words.add_tokens([AddedToken("<tool>", lstrip=True)])
    with pytest.raises(UnknownStep) as caught:
        split_name(tree_of(words))
    assert str(caught.value) == "has lstrip for '<tool>', which llama.cpp does not know"
    words = plain()
    words.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    assert split_name(tree_of(words)) == "gpt-2"
