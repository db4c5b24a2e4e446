"""Special tokens of a Hugging Face folder that training and writing go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from roots.exchange.hf.tokenizer_files import TOKENIZER_NAME
from roots.tokenizer.special_tokens import GENERATION_NAME, TOKENIZER_CONFIG_NAME, read_json


def data_tokens(source: Path, architecture: str, tree: dict[str, Any]) -> dict[str, int]:
    """The fields of `data` that name tokens, as far as the folder `source` tells.

    begin_token:    what an encoder-decoder writes after, by generation_config.json or `tree`, which
                    is config.json; T5 begins behind its padding
    sentinel_token: what hides the first of T5's spans, by the tokenizer, if the next is the id
                    below; released vocabularies have unused rows above it
    mask_token:     what hides a token from an encoder, by the tokenizer's files
    """
    if architecture == "encoder_decoder":
        settings = {**tree, **read_json(source / GENERATION_NAME)}
        begin = settings.get("decoder_start_token_id")
        begin = settings.get("pad_token_id") if begin is None else begin
        known = {"begin_token": begin, "sentinel_token": _first_sentinel(source)}
        return {name: int(token) for name, token in known.items() if token is not None}
    if architecture == "encoder" and (source / TOKENIZER_NAME).is_file():
        mask = read_json(source / TOKENIZER_CONFIG_NAME).get("mask_token")
        text = mask.get("content") if isinstance(mask, dict) else mask
        tokenizer = Tokenizer.from_file(str(source / TOKENIZER_NAME))
        found = None if text is None else tokenizer.token_to_id(text)
        return {} if found is None else {"mask_token": found}
    return {}


def _first_sentinel(source: Path) -> int | None:
    """The id of <extra_id_0>; None without one, or where the next one is not the id below."""
    if not (source / TOKENIZER_NAME).is_file():
        return None
    tokenizer = Tokenizer.from_file(str(source / TOKENIZER_NAME))
    first, second = (tokenizer.token_to_id(f"<extra_id_{number}>") for number in (0, 1))
    return first if first is not None and second == first - 1 else None
