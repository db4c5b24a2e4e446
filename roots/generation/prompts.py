"""Between texts and the ids that a model reads and writes."""

from __future__ import annotations

from collections.abc import Sequence

from roots.tokenizer.tokenizer import Tokenizer


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], *, special_tokens: bool = True
) -> list[list[int]]:
    """The ids of every prompt, behind what the tokenizer puts in front of a text.

    A prompt of nothing is what a text starts with. `special_tokens`: names of them in a prompt are
    these tokens, as in transformers, and not the letters of their names.
    """
    begin, start = tokenizer.special.documents.begin, tokenizer.special.start
    encoded = tokenizer.encode_batch(prompts, special_tokens)
    return [[*begin, *ids] if ids else list(start) for ids in encoded]


def encode_sources(
    tokenizer: Tokenizer, sources: Sequence[str], *, special_tokens: bool = False
) -> list[list[int]]:
    """The ids of every source of an encoder-decoder, as `preprocess --pairs` writes them."""
    around = tokenizer.special.documents
    encoded = tokenizer.encode_batch(sources, special_tokens)
    return [[*around.begin, *ids, around.end] for ids in encoded]


def decode_new(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that `new` adds behind `prompt`.

    Ids are no pieces of text that could be spelled alone: a decoder may take a space from the front
    of what it is given, or need several ids for one character.
    """
    return tokenizer.decode([*prompt, *new])[len(tokenizer.decode(prompt)) :]
