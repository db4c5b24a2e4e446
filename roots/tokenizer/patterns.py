"""The patterns by which released byte-level BPE tokenizers split text before they merge bytes."""

from __future__ import annotations

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Llama 3 keeps up to three digits together, Qwen2 each apart; the rest of the pattern is the same.
_NEWER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = _NEWER.replace("DIGITS", r"\p{N}{1,3}")
QWEN2 = _NEWER.replace("DIGITS", r"\p{N}")
