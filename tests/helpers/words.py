"""Tokenizers as users bring them: with begin tokens of their own, and files that say more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import processors

from roots.tokenizer.train import train_bpe

CORPUS = ["the cat sat on the mat, the cat sat", "def cat(mat):\n    return mat"] * 5
# Their ids in this order: the end of a document is 0, as `roots tokenizer train` has it.
BOS, EOS, TURN = 1, 2, 3
_NAMES = ("<bos>", "<eos>", "<turn>")
FILES = {"tokenizer_config.json": {"bos_token": "<bos>", "eos_token": "<eos>"}}


def write_words(
    folder: Path,
    *,
    front: str | None = "<bos>",
    files: Mapping[str, Mapping[str, Any]] = FILES,
    left_over: Mapping[str, Any] | None = None,
    vocab_size: int = 280,
) -> Path:
    """Write a byte-level BPE whose post-processor puts `front` before a text, and other files.

    `left_over` are keys of tokenizer.json that its last use has set.
    """
    trained = train_bpe(CORPUS, vocab_size, special_tokens=_NAMES)
    if front is not None:
        trained.post_processor = processors.TemplateProcessing(
            single=f"{front} $A", special_tokens=[(front, trained.token_to_id(front))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    trained.save(str(folder / "tokenizer.json"))
    if left_over is not None:
        edit_json(folder / "tokenizer.json", **left_over)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def edit_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
