"""Training of a byte-level BPE vocabulary (Sennrich et al. 2016; byte-level as in GPT-2, 2019)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from roots.errors import RootsError, problem
from roots.files import write_atomically
from roots.lock import Place, lock_beside, owned
from roots.tokenizer.special_tokens import END_OF_DOCUMENT
from roots.tokenizer.tokenizer import JsonTokenizer

NUM_BYTES = 256
# What a trained tokenizer is, in its folder.
FILES = ("tokenizer.json", "tokenizer_config.json")


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = (),
    min_frequency: int = 2,
    show_progress: bool = False,
) -> tokenizers.Tokenizer:
    """Learn a byte-level BPE of `vocab_size` ids from `texts`.

    Ids: the special tokens (END_OF_DOCUMENT first), the 256 bytes, then merges by frequency. Every
    text has ids, whatever the corpus. A small corpus may support fewer merges than asked for.
    `show_progress` draws bars on stderr if that is a terminal.
    Raises RootsError for a vocabulary smaller than 256 + special tokens, and without any text.
    """
    specials = list(dict.fromkeys([END_OF_DOCUMENT, *special_tokens]))
    smallest = NUM_BYTES + len(specials)
    if vocab_size < smallest:
        rule = f"must be at least {smallest} (256 bytes and {len(specials)} special tokens)"
        raise RootsError(problem("--vocab-size", vocab_size, rule, "ask for a larger vocabulary"))
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        min_frequency=min_frequency,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        # Anywhere else the bars would leave blank lines.
        show_progress=show_progress and sys.stderr.isatty(),
    )
    counted = _CountingIterator(texts)
    tokenizer.train_from_iterator(counted, trainer)
    if counted.characters == 0:
        rule = "the files hold no text"
        raise RootsError(problem("tokenizer train", None, rule, "name files that are not empty"))
    return tokenizer


@contextmanager
def reserved_folder(folder: Path) -> Iterator[None]:
    """Be the only one that trains a tokenizer into `folder`, which is made if it is not there.

    Raises RootsError, before any work, where another process does, where the folder cannot be
    written, and for the name of a file.
    """
    if folder.suffix == ".json":
        rule = "names a folder, in which tokenizer.json is written"
        raise RootsError(problem("--out", str(folder), rule, f"give {str(folder.parent)!r}"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    place = Place("--out", "the tokenizer is", "wait for it, or end it", str(folder))
    with owned(lock_beside(folder), place):
        yield


def _unwritable(folder: Path, error: OSError) -> RootsError:
    rule = f"cannot be written ({error.strerror})"
    return RootsError(problem("--out", str(folder), rule, "name a folder that can be written"))


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> JsonTokenizer:
    """Write tokenizer.json, and the tokenizer_config.json that transformers' AutoTokenizer reads.

    Each file appears whole or not at all. Returns the tokenizer as loaded from the folder.
    Raises RootsError where the folder cannot be written.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_DOCUMENT,
        "eos_token": END_OF_DOCUMENT,
        "unk_token": END_OF_DOCUMENT,
        "clean_up_tokenization_spaces": False,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        words, settings = (folder / name for name in FILES)
        write_atomically(settings, json.dumps(config, indent=2) + "\n")
        write_atomically(words, tokenizer.to_str(pretty=True))
    except OSError as error:
        raise _unwritable(folder, error) from None
    return JsonTokenizer(folder)


class _CountingIterator:
    """Counts what passes, since the trainer does not say whether it saw any text."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)
        self.characters = 0

    def __iter__(self) -> _CountingIterator:
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self.characters += len(text)
        return text
