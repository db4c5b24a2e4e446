"""Which tokenizers llama.cpp computes alike, by the whole of their tokenizer.json.

GGUF names the rule by which text is split before merging instead of spelling its pattern, and says
nothing of a normaliser; a tokenizer whose steps are not all known would give other ids in silence.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from roots.tokenizer.patterns import GPT2, LLAMA3, QWEN2, steps_of

# What becomes bytes: split by GPT-2's pattern at the same time, or as it comes.
_SPLITTING = ("ByteLevel", True)
_PLAIN = ("ByteLevel", False)
# The normaliser and the pre-tokenizers one behind the other, and llama.cpp's name of them. It does
# not compose characters (NFC) for Qwen2, whose published files ask for it; text is composed mostly.
_KNOWN: dict[tuple[tuple[str, ...], tuple[tuple[str, Any], ...]], str] = {
    ((), (_SPLITTING,)): "gpt-2",
    ((), (("Split", GPT2), _PLAIN)): "gpt-2",
    ((), (("Digits", True), _SPLITTING)): "smollm",
    ((), (("Split", LLAMA3), _PLAIN)): "llama-bpe",
    ((), (("Split", QWEN2), _PLAIN)): "qwen2",
    (("NFC",), (("Split", QWEN2), _PLAIN)): "qwen2",
}
_NAMELESS = "for which llama.cpp has no name"
# Whether llama.cpp takes a piece of text that is a token whole, whatever the merges say.
_WHOLE_TOKENS = frozenset({"llama-bpe"})


class UnknownStep(Exception):
    """What of a tokenizer has no form in GGUF, as the end of a sentence that begins with it."""


def split_name(tree: dict[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer.json `tree` splits text. Raises UnknownStep."""
    _check_model(tree["model"])
    _check_added(tree.get("added_tokens") or [])
    normalisers = tuple(_shown(step) for step in steps_of(tree.get("normalizer"), "normalizers"))
    steps = list(steps_of(tree.get("pre_tokenizer"), "pretokenizers"))
    name = _KNOWN.get((normalisers, tuple(map(_essence, steps))))
    if name is None:
        parts = [f"normaliser {each}" for each in normalisers] + [_shown(step) for step in steps]
        raise UnknownStep(f"splits text by {' + '.join(parts) or 'nothing'}, {_NAMELESS}")
    decoders = [step["type"] for step in steps_of(tree.get("decoder"), "decoders")]
    if decoders not in ([], ["ByteLevel"]):
        raise UnknownStep(f"decodes by {' + '.join(decoders)}, {_NAMELESS}")
    whole = bool(tree["model"].get("ignore_merges"))
    if whole != (name in _WHOLE_TOKENS) and not _merges_make_all(tree):
        raise UnknownStep(f"has ignore_merges={str(whole).lower()}, unlike llama.cpp's {name}")
    return name


def _check_model(model: dict[str, Any]) -> None:
    if model["type"] != "BPE":
        raise UnknownStep(f"is {model['type']} and no byte-level BPE, which --format gguf asks for")
    if not model["merges"]:
        raise UnknownStep("has no merges, without which llama.cpp refuses the file")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnknownStep(f"has {key}={model[key]!r}, which llama.cpp does not know")
    missing = len(set(pre_tokenizers.ByteLevel.alphabet()) - model["vocab"].keys())
    if missing and (model.get("unk_token") is not None or model.get("byte_fallback")):
        raise UnknownStep(f"lacks {missing} of the 256 bytes, which llama.cpp leaves out of texts")


def _check_added(tokens: list[dict[str, Any]]) -> None:
    """Special ones are not looked for in plain text; the others are, as they are."""
    for token in tokens:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag) and not token["special"]:
                content = token["content"]
                raise UnknownStep(f"has {flag} for {content!r}, which llama.cpp does not know")


def _essence(step: dict[str, Any]) -> tuple[str, Any]:
    """Kind and what decides of a pre-tokenizer; without a second part that is known for others."""
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return kind, step.get("use_regex", True)
    if kind == "Digits":
        return kind, step["individual_digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return kind, step["pattern"].get("Regex")
    return kind, None


def _shown(step: dict[str, Any]) -> str:
    """A step as messages spell it: its kind, and what it was told."""
    told = [
        f"{key}={next(iter(value.values()))}" if key == "pattern" else f"{key}={value!r}"
        for key, value in step.items()
        if key not in ("type", "trim_offsets")
    ]
    return f"{step['type']}({', '.join(told)})" if told else str(step["type"])


def _merges_make_all(tree: dict[str, Any]) -> bool:
    """Whether the merges alone make every token out of its text, so that both ways agree."""
    plain = {**tree, "model": {**tree["model"], "ignore_merges": False, "dropout": None}}
    model = Tokenizer.from_str(json.dumps(plain)).model
    added = {token["id"] for token in tree.get("added_tokens") or []}
    return all(
        [made.id for made in model.tokenize(token)] == [index]
        for token, index in tree["model"]["vocab"].items()
        if index not in added
    )
