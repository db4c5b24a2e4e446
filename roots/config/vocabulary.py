"""How many ids a model needs where `model.vocab_size` is not set: those of the data's tokenizer.

Read from the descriptions that `roots preprocess` writes beside the tokens (PREFIX.json, its format
in roots/data/description.py), else from the tokenizer that the config names. No dataset is opened
and no tokenizer is loaded, so that every command agrees before torch is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roots.config.spans import span_plan
from roots.errors import RootsError, problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig

# Pairs of texts are two datasets.
_SIDES = ("", ".source", ".target")
_BYTES_VOCABULARY = 257
# Rows beyond the tokenizer's that are worth a line: more than paddings to round numbers add.
_MANY_UNUSED = 1024


def with_vocabulary(config: RunConfig) -> RunConfig:
    """`config` with the ids of its data's tokenizer where `model.vocab_size` is not set.

    Tokens that an objective takes from the end of the vocabulary come on top. Without data, or
    where nothing says which tokenizer made them, the default of the field stays.
    """
    if "vocab_size" in config.model.model_fields_set:
        return config
    ids = tokenizer_ids(config)
    if ids is None:
        return config
    size = ids + _reserved_tokens(config)
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})


def vocabulary_notes(config: RunConfig) -> list[str]:
    """A line where the model has far more rows than the tokenizer has ids, or nobody can tell."""
    size, ids = config.model.vocab_size, tokenizer_ids(config)
    if ids is not None and size >= 2 * ids and size - ids > _MANY_UNUSED:
        rule = f"the tokenizer of the data has {ids} ids, so {size - ids} rows of the embedding "
        rule += "and of every logit are never used and cost time and memory"
        fix = "leave model.vocab_size out, or set it to the tokenizer's ids"
        return [problem("model.vocab_size", size, rule, fix)]
    unknown = [each.prefix for each in config.data.train if Path(f"{each.prefix}.idx").is_file()]
    if ids is None and "vocab_size" not in config.model.model_fields_set and unknown:
        rule = f"is the default, because nothing says which tokenizer made {unknown[0]}"
        fix = "set it to the tokenizer's ids, or data.tokenizer to its folder"
        return [problem("model.vocab_size", size, rule, fix)]
    return []


def tokenizer_ids(config: RunConfig) -> int | None:
    """The number of ids of the tokenizer that made the data; None where nothing says."""
    sources = (*config.data.train, *config.data.valid)
    described = [ids for source in sources for ids in _described_ids(source.prefix)]
    if described:
        return max(described)
    if config.data.tokenizer is None:
        return None
    if config.data.tokenizer == "bytes":
        return _BYTES_VOCABULARY
    return _ids_of_file(Path(config.data.tokenizer) / "tokenizer.json")


def _reserved_tokens(config: RunConfig) -> int:
    """Tokens at the end of the vocabulary that stand for something else than text."""
    if config.objective == "masked" and config.data.mask_token is None:
        return 1
    if config.objective == "span_corruption" and config.data.sentinel_token is None:
        try:
            return span_plan(config).spans
        except RootsError:
            # Lengths without room for spans, which a rule refuses.
            return 0
    return 0


def _described_ids(prefix: str) -> Iterator[int]:
    for side in _SIDES:
        content = _json_object(Path(f"{prefix}{side}.json"))
        size = content.get("vocab_size")
        if isinstance(size, int) and size > 0:
            yield size


def _ids_of_file(path: Path) -> int | None:
    """One more than the largest id in a tokenizer.json; None where there is none."""
    content = _json_object(path)
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: list[Any] = []
    if isinstance(vocabulary, dict):
        ids.extend(vocabulary.values())
    elif isinstance(vocabulary, list):
        ids.append(len(vocabulary) - 1)
    if isinstance(added, list):
        ids.extend(token.get("id") for token in added if isinstance(token, dict))
    return max((token + 1 for token in ids if isinstance(token, int)), default=None)


def _json_object(path: Path) -> dict[str, Any]:
    """The content of a file; empty where it is missing or damaged, which its reader tells."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
