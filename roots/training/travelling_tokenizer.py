"""The tokenizer of a run, which lies in each of its checkpoints.

So a checkpoint is whole: it generates, evaluates and exports wherever it is taken, and begins and
ends texts as its training did, whatever the tokenizer's own files say of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from roots.config.run import RunConfig
from roots.data.description import TokensDescription, read_description
from roots.data.preprocessing.pairs import SIDES, side_prefix
from roots.exchange.hf.tokenizer_files import (
    MODEL_NAMES,
    TOKENIZER_FOLDER,
    TOKENIZER_NAME,
    TOKENIZER_NAMES,
)
from roots.tokenizer.special_tokens import DOCUMENTS_NAME, documents_text
from roots.tokenizer.tokenizer import Tokenizer, load_tokenizer, tokenizer_file


def tokenizer_files(config: RunConfig) -> dict[str, bytes]:
    """Names and content of the files in the folder `tokenizer` of every checkpoint of a run.

    `bytes` need none. Read once, at the start: what lies in a checkpoint does not depend on what
    becomes of the folder meanwhile. Raises RootsError for a tokenizer that is not there.
    """
    where = config.data.tokenizer
    if where == "bytes":
        return {}
    files: dict[str, bytes] = {}
    if where is not None:
        source = tokenizer_file(Path(where))
        for name in (*TOKENIZER_NAMES, *MODEL_NAMES):
            path = source.with_name(name)
            if path.is_file():
                files[name] = path.read_bytes()
        files[TOKENIZER_NAME] = source.read_bytes()
    made = _description(config)
    if made is not None:
        files[DOCUMENTS_NAME] = documents_text(made.around, made.tokenizer).encode()
    return files


def tokenizer_of_run(config: RunConfig) -> Tokenizer:
    """The tokenizer of the data, which begins and ends texts as they do.

    Raises RootsError for a tokenizer that is not there.
    """
    made = _description(config)
    where = config.data.tokenizer
    assert where is not None, "a rule of the config asks for it"
    return load_tokenizer(where, fed=None if made is None else made.around)


def write_tokenizer_files(checkpoint: Path, files: Mapping[str, bytes]) -> None:
    """Write what `tokenizer_files` has read into a checkpoint that is being saved."""
    for name, content in files.items():
        (checkpoint / TOKENIZER_FOLDER).mkdir(exist_ok=True)
        (checkpoint / TOKENIZER_FOLDER / name).write_bytes(content)


def _description(config: RunConfig) -> TokensDescription | None:
    """How the data of the run were made, by the first dataset that says it; they agree."""
    for source in config.data.train:
        pairs = config.objective == "pairs"
        made = read_description(side_prefix(source.prefix, SIDES[0]) if pairs else source.prefix)
        if made is not None:
            return made
    return None
