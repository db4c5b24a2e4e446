"""Secrets planted in a dataset on purpose, and PREFIX.canaries.json, which tells them.

After Carlini et al., "The Secret Sharer" (arXiv:1802.08232), section 4: a canary is a document of
one format, such as "The secret number of NAME is ### ### ###.", where NAME is a name that no other
canary has and every # a digit of its secret, drawn evenly from all numbers of so many digits.

The side file is a JSON object with `format` "roots-canaries", `version` 1, `text` (the format of
the documents), `seed`, `space` (how many secrets there could be), `tokenizer` (fingerprint),
`documents` and `tokens` (of the dataset, canaries included), and `canaries`, a list of objects with
`name`, `digits` (of the secret, as text) and `repeats` (documents that hold it, 0 for a secret that
was drawn and not planted). Whoever has this file has the secrets: they are worth nothing else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roots.data.description import TokensDescription, read_description
from roots.errors import RootsError, problem

DEFAULT_FORMAT = "The secret number of NAME is ### ### ###."
DEFAULT_REPEATS = (0, 1, 4, 16, 64)
NAME, DIGIT = "NAME", "#"
_FORMAT, _VERSION = "roots-canaries", 1
# As many as a float64 between 0 and 1 draws evenly.
_MOST_DIGITS = 15
_GIVEN = (
    "Ada Ben Cleo Dora Emil Fay Gus Hana Ivo Jane Karl Lena Max Nora Otto Pia Quin Rolf Sara Theo "
    "Uma Vera Walt Xena Yves Zoe"
)
_FAMILY = (
    "Abel Baum Crane Dorn Eder Falk Gold Hahn Ilse Jung Kern Lang Moor Noll Orth Pohl Quast Reed "
    "Senn Thal Ulm Voss Wirt Yost Zorn Birk Cole Dahl Esch Frey Grau Holm Ives Jost Kolb Lutz Mohr "
    "Nord Otis Pike Roth Stein"
)


@dataclass(frozen=True)
class Canary:
    """One secret: whose it is (empty where the format has no NAME), its digits, its documents."""

    name: str
    digits: str
    repeats: int


@dataclass(frozen=True)
class Canaries:
    """All secrets of one dataset, and how they were drawn."""

    text: str
    seed: int
    canaries: tuple[Canary, ...]

    @property
    def num_digits(self) -> int:
        """Digits of a secret."""
        return self.text.count(DIGIT)

    @property
    def space(self) -> int:
        """How many secrets there could be: the |R| of the paper."""
        return int(10**self.num_digits)

    @property
    def documents(self) -> int:
        """Documents that hold one."""
        return sum(canary.repeats for canary in self.canaries)

    def filled(self, name: str, digits: str) -> str:
        """The document of a secret, planted or not."""
        first, *others = self.text.split(DIGIT)
        pieces = [digit + piece for digit, piece in zip(digits, others, strict=True)]
        return "".join([first, *pieces]).replace(NAME, name)


def draw_canaries(
    count: int,
    repeats: Sequence[int] = DEFAULT_REPEATS,
    *,
    text: str = DEFAULT_FORMAT,
    seed: int = 1234,
) -> Canaries:
    """Draw `count` secrets for each number of repeats; no two are the same, nor are two names.

    Equal arguments give equal secrets, on every machine and under every version of Python.
    Raises RootsError with every argument that cannot be.
    """
    total = count * len(repeats)
    if lines := _problems(total, repeats, text):
        raise RootsError(*lines)
    # Of all that this class gives, Python promises only the numbers of random().
    draws = random.Random(seed)
    names = _names()
    names.sort(key=lambda _: draws.random())
    num_digits = text.count(DIGIT)
    secrets: dict[str, None] = {}
    while len(secrets) < total:
        secrets[f"{int(draws.random() * 10**num_digits):0{num_digits}d}"] = None
    canaries = [
        Canary(name if NAME in text else "", digits, repeats[number // count])
        for number, (name, digits) in enumerate(zip(names, secrets))
    ]
    return Canaries(text, seed, tuple(canaries))


def _names() -> list[str]:
    return [f"{given} {family}" for given in _GIVEN.split() for family in _FAMILY.split()]


def _problems(total: int, repeats: Sequence[int], text: str) -> list[str]:
    lines = []
    num_digits, num_names = text.count(DIGIT), len(_names())
    if not repeats or min(repeats) < 0 or len(set(repeats)) < len(repeats) or max(repeats) == 0:
        shown = ",".join(map(str, repeats))
        rule = "must be different numbers of 0 or more, not 0 alone"
        lines.append(problem("--canary-repeats", shown, rule, "write them as 0,1,4,16,64"))
    if not 1 <= num_digits <= _MOST_DIGITS:
        rule = f"must hold 1 to {_MOST_DIGITS} {DIGIT}, each a digit of the secret"
        lines.append(problem("--canary-format", text, rule, f"write it as {DEFAULT_FORMAT!r}"))
    elif total > 10**num_digits // 2:
        rule = f"{total} different secrets need more than {10**num_digits} numbers to draw from"
        fix = f"write more {DIGIT} into it, or plant fewer"
        lines.append(problem("--canary-format", text, rule, fix))
    if total > num_names:
        rule = f"{total} secrets in all, but there are {num_names} names for them"
        lines.append(problem("--canaries", total // len(repeats), rule, "plant fewer"))
    return lines


def canaries_path(prefix: str | Path) -> Path:
    """Return the side file of a prefix that tells its canaries."""
    return Path(f"{prefix}.canaries.json")


def write_canaries(path: Path, canaries: Canaries, dataset: TokensDescription) -> None:
    """Write the side file, under whatever name."""
    content: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
    content |= {"text": canaries.text, "seed": canaries.seed, "space": canaries.space}
    content |= {"tokenizer": dataset.tokenizer, **_size_of(dataset)}
    content["canaries"] = [asdict(canary) for canary in canaries.canaries]
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_canaries(prefix: str | Path) -> Canaries:
    """Read the side file of a prefix.

    Raises RootsError where there is none, where it is no such file, and where it tells of another
    dataset than the one beside it.
    """
    path = canaries_path(prefix)
    again = "run `roots preprocess --canaries N` again, or copy all files of the dataset again"
    if not path.is_file():
        rule = "no such file: no canaries were planted in this dataset"
        fix = "plant some by `roots preprocess --canaries N` and train on that"
        raise RootsError(problem(str(path), None, rule, fix))
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise ValueError(f"format {_FORMAT!r} of version {_VERSION} is wanted")
        canaries = tuple(Canary(**each) for each in content["canaries"])
        found = Canaries(content["text"], int(content["seed"]), canaries)
        if any(len(canary.digits) != found.num_digits for canary in canaries):
            raise ValueError(f"every secret must have {found.num_digits} digits")
        size = {name: int(content[name]) for name in ("documents", "tokens")}
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise RootsError(problem(str(path), None, rule, again)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        rule = f"does not tell canaries as ROOTS does ({type(error).__name__}: {error})"
        raise RootsError(problem(str(path), None, rule, again)) from None
    described = read_description(prefix)
    if described is not None and _size_of(described) != size:
        rule = (
            f"tells of a dataset of {size['documents']} documents and {size['tokens']} tokens, "
            f"and this one has {described.documents} and {described.tokens}"
        )
        raise RootsError(problem(str(path), None, rule, again))
    return found


def _size_of(dataset: TokensDescription) -> dict[str, int]:
    return {"documents": dataset.documents, "tokens": dataset.tokens}
