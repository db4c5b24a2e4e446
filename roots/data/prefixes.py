"""What a user may have meant by a prefix under which there is no dataset, or none can be."""

from __future__ import annotations

import glob
from pathlib import Path

from roots.errors import RootsError, problem

_ENDINGS = (".bin", ".idx", ".canaries.json", ".json")
_SIDES = (".source", ".target")
_SHOWN = 5


def refuse_endings(option: str, prefix: str | Path) -> None:
    """Raise RootsError for a prefix to write to that ends like a file of a dataset."""
    stem = _without(str(prefix), _ENDINGS)
    if stem is not None:
        rule = "is a prefix, to which .bin, .idx and .json are added"
        raise RootsError(problem(option, str(prefix), rule, f"give {stem!r}"))


def missing_dataset(prefix: str, path: Path) -> RootsError:
    """The error for a prefix whose file `path` is not there, with what is there instead."""
    stem = _without(prefix, _ENDINGS)
    if stem is not None:
        rule = "is a file of a dataset or ends like one, and datasets are named by their prefix"
        return RootsError(problem(prefix, None, rule, f"give {stem!r}"))
    if Path(f"{prefix}.source.idx").is_file():
        rule = "is a dataset of pairs, with two sides"
        fix = "set data.objective=pairs to train on pairs, or give the prefix of one side"
        return RootsError(problem(prefix, None, rule, f"{fix}, {prefix + '.source'!r}"))
    side = _without(prefix, _SIDES)
    if side is not None and Path(f"{side}.idx").is_file():
        rule = f"there are no pairs there, but a dataset of texts, {side!r}"
        return RootsError(problem(prefix, None, rule, "run `roots preprocess --pairs`"))
    is_folder = Path(prefix).is_dir()
    pattern = glob.escape(prefix) + ("/*.idx" if is_folder else "*.idx")
    near = [repr(name.removesuffix(".idx")) for name in sorted(glob.glob(pattern))[:_SHOWN]]
    if is_folder:
        rule = "is a folder, and a dataset is named by the prefix of its files"
        fix = f"give {' or '.join(near)}" if near else "run `roots preprocess`; it holds no dataset"
        return RootsError(problem(prefix, None, rule, fix))
    if Path(prefix).is_file():
        rule = "is a file and no dataset of tokens, which a prefix names"
        fix = f"run `roots preprocess --tokenizer DIR --out PREFIX {prefix}` and give PREFIX"
        return RootsError(problem(prefix, None, rule, fix))
    fix = "check data.train and data.valid, or run `roots preprocess`"
    if near:
        fix = f"give {' or '.join(near)}, or run `roots preprocess`"
    return RootsError(problem(str(path), None, "no such file", fix))


def _without(text: str, endings: tuple[str, ...]) -> str | None:
    """The text before one of the endings, in any letter case; None where there is none."""
    for ending in endings:
        if text.lower().endswith(ending):
            return text[: -len(ending)]
    return None
