r"""Cut a long text where its tokenizer cuts it anyway, so that encoding it takes bounded memory.

`tokenizers` holds some hundred bytes for every byte of a text while it encodes it. A byte-level BPE
merges inside the pieces of its pre-tokenizer alone: where that surely ends a piece, whatever stands
around, the ids of the two sides are those of the whole text.

The patterns in _PATTERNS have this in common: none of their alternatives goes from what is no white
space over to a space, none from a letter or digit over to what is neither, and none looks back or
further ahead than the first character that is no white space. So a piece ends before every space
that follows a character other than white space, and wherever a letter or digit is followed by
something else. Of these places _PLACES names those that no version of Unicode sees otherwise.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers

from roots.tokenizer.patterns import GPT2, LLAMA3, QWEN2, steps_of

PART_CHARACTERS = 1 << 20

_PATTERNS = frozenset({GPT2, LLAMA3, QWEN2})
# A place is the end of a match: between a letter or digit and a space; and between one of ASCII,
# kana, Chinese or Korean and a mark or white space of ASCII or a mark of theirs.
_PLACES = re.compile(
    r"[^\W_](?= )"
    r"|[0-9A-Za-z\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3]"
    r"(?=[\x00-/:-@\[-`{-\x7f\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"
)
# No character composed by NFC was longer.
_COMPOSED = 4


class Parts:
    """How one tokenizer lets texts be cut: not at all, or where _PLACES says.

    Never where the text of an added token, which is found before all else, stands or touches.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, characters: int = PART_CHARACTERS) -> None:
        """Parts have at least so many characters, and end at the first place after them."""
        self.characters = characters
        self._is_known = (
            isinstance(tokenizer.model, tokenizers.models.BPE)
            and all(step["type"] == "NFC" for step in _steps(tokenizer.normalizer, "normalizers"))
            and _is_known(list(_steps(tokenizer.pre_tokenizer, "pretokenizers")))
        )
        contents = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        contents |= {unicodedata.normalize("NFC", content) for content in contents}
        self._added = sorted(contents - {""})

    def of(self, text: str) -> Iterator[str]:
        """Yield the parts, in their order; together they are the text."""
        begin = 0
        while self._is_known and len(text) - begin > self.characters:
            end = self._place(text, begin + self.characters)
            yield text[begin:end]
            begin = end
        if begin < len(text) or not text:
            yield text[begin:]

    def _place(self, text: str, start: int) -> int:
        """The first place after `start`, or the end of the text."""
        for match in _PLACES.finditer(text, start - 1):
            if not self._touches_added(text, match.end()):
                return match.end()
        return len(text)

    def _touches_added(self, text: str, place: int) -> bool:
        """Whether an added token could be found across `place` or beside it, composed or not."""
        longest = max(map(len, self._added), default=0)
        reach = longest * _COMPOSED
        left, right = text[max(place - reach, 0) : place], text[place : place + reach]
        composed = (unicodedata.normalize("NFC", left), unicodedata.normalize("NFC", right))
        return any(
            content in before[-len(content) :] + after[: len(content)]
            for before, after in ((left, right), composed)
            for content in self._added
        )


def _is_known(steps: Sequence[dict[str, Any]]) -> bool:
    """Whether one of the pre-tokenizer's steps ends a piece at every place, and none looks on."""
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    splits = [step for step in steps[:-1] if step["type"] == "Split"]
    # Digits looks at each character by itself.
    others = [step for step in steps[:-1] if step["type"] not in ("Split", "Digits")]
    return (
        not others
        and all(
            step["behavior"] == "Isolated"
            and not step["invert"]
            and step["pattern"].get("Regex") in _PATTERNS
            for step in splits
        )
        and bool(splits or steps[-1].get("use_regex", True))
    )


def _steps(owner: Any, key: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be None."""
    return steps_of(None if owner is None else json.loads(owner.__getstate__()), key)
