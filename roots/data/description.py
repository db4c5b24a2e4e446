"""What .bin/.idx cannot say about a dataset: the side file PREFIX.json.

A JSON object with `format` "roots-tokens", `version` 1, `tokenizer` (fingerprint), `vocab_size`,
`end_of_document` (id), `max_token_id`, `documents`, `tokens`, `begin_tokens` (ids in front of every
document; older files do not say, and have none). Optional at reading: datasets of other programs
have none, and then token ids are checked as samples are read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from roots.errors import RootsError, problem
from roots.tokenizer.special_tokens import DocumentTokens

_FORMAT = "roots-tokens"
_VERSION = 1
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class TokensDescription:
    """How a dataset was made, and the largest token id in it."""

    tokenizer: str
    vocab_size: int
    end_of_document: int
    max_token_id: int
    documents: int
    tokens: int
    begin_tokens: tuple[int, ...] = ()

    @property
    def around(self) -> DocumentTokens:
        """What stands around every document."""
        return DocumentTokens(self.begin_tokens, self.end_of_document)


def description_path(prefix: str | Path) -> Path:
    """Return the side file of a prefix."""
    return Path(f"{prefix}.json")


def write_description(path: Path, description: TokensDescription) -> None:
    """Write the side file, under whatever name."""
    content = {"format": _FORMAT, "version": _VERSION, **asdict(description)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_description(prefix: str | Path) -> TokensDescription | None:
    """Read the side file of a prefix; None where there is none.

    Raises RootsError where it is there and is not a description of this version.
    """
    path = description_path(prefix)
    if not path.is_file():
        return None
    fix = "run `roots preprocess` again, or remove the file (it is optional)"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise RootsError(problem(str(path), None, rule, fix)) from None
    except (ValueError, RecursionError) as error:
        raise RootsError(problem(str(path), None, f"is not JSON ({error})", fix)) from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        rule = f"does not describe a dataset (format {_FORMAT!r})"
        raise RootsError(problem(str(path), None, rule, fix))
    if content.get("version") != _VERSION:
        rule = f"only version {_VERSION} is known"
        raise RootsError(problem(f"{path} version", content.get("version"), rule, fix))
    names = [field.name for field in fields(TokensDescription)]
    values: dict[str, Any] = {name: content.get(name) for name in names}
    if values["begin_tokens"] is None:
        values["begin_tokens"] = []
    for name, value in values.items():
        kind = {"tokenizer": str, "begin_tokens": list}.get(name, int)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RootsError(problem(f"{path} {name}", value, "has the wrong type", fix))
        for number in value if isinstance(value, list) else [value] if kind is int else []:
            if not isinstance(number, int) or isinstance(number, bool):
                raise RootsError(problem(f"{path} {name}", value, "has the wrong type", fix))
            is_id = name in ("begin_tokens", "end_of_document", "max_token_id")
            largest = values["vocab_size"] - 1 if is_id else _LARGEST
            if not 0 <= number <= largest:
                rule = f"must be 0 to {'vocab_size - 1' if is_id else largest}"
                raise RootsError(problem(f"{path} {name}", value, rule, fix))
    values["begin_tokens"] = tuple(values["begin_tokens"])
    return TokensDescription(**values)
