"""Text files to a dataset of tokens: parallel, in bounded memory, all or nothing.

One process reads and writes, the others parse and tokenize (see workers.py). Batches are written
in the order in which they were read: the dataset is the same for any number of workers.
Only the tokens of a text file that is cut into batches are held until it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from roots.data.canaries import Canaries
from roots.data.description import TokensDescription
from roots.data.indexed import IndexedWriter, Int64s, Tokens
from roots.data.preprocessing.file_lists import find_files
from roots.data.preprocessing.planting import Planter
from roots.data.preprocessing.readers import (
    OnError,
    RawBatch,
    parse_batch,
    read_batches,
)
from roots.data.preprocessing.streams import DEFAULT_LINE_LIMIT
from roots.data.preprocessing.workers import default_workers, worker_pool
from roots.errors import RootsError, cure_of, problem
from roots.log import get_logger
from roots.tokenizer.special_tokens import DocumentTokens
from roots.tokenizer.tokenizer import Tokenizer, load_tokenizer

_REPORTED_ERRORS = 20


@dataclass(frozen=True)
class TokenBatch:
    """A tokenized batch: tokens of all its documents, the length of each, and what went wrong.

    `goes_on` says that the next batch continues the document of this one.
    """

    tokens: Tokens
    lengths: Int64s
    errors: tuple[str, ...]
    num_empty: int
    read_bytes: int
    goes_on: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a run is; sizes in bytes of the files as they are on disk."""

    read_bytes: int
    total_bytes: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Summary:
    """What a run did.

    `description` is what PREFIX.json holds, `documents` says in words what stands around each;
    `files` gave documents, `num_bare_files` none; `left_out` counts what folders hold besides, by
    ending or why.
    """

    description: TokensDescription
    files: int
    num_empty: int
    num_skipped: int
    documents: str
    num_bare_files: int
    left_out: dict[str, int]


class SkippedLines:
    """Counts broken lines and reports the first of them; with "stop" the first one ends the run."""

    def __init__(self, on_error: OnError) -> None:
        self._on_error = on_error
        self.count = 0

    def account(self, errors: Sequence[str]) -> None:
        """Take the errors of one batch. Raises RootsError with the first where none may be."""
        if errors and self._on_error == "stop":
            raise RootsError(errors[0])
        logger = get_logger("preprocess")
        for line in errors:
            self.count += 1
            if self.count <= _REPORTED_ERRORS:
                logger.warning("skipped: %s", line)


@dataclass
class _Counts:
    """What becomes the summary, while it is counted."""

    skipped: SkippedLines
    empty: int = 0
    files: int = 0
    bare_files: int = 0

    def end_file(self, path: Path, documents: int) -> None:
        if documents:
            self.files += 1
            return
        self.bare_files += 1
        if self.bare_files <= _REPORTED_ERRORS:
            get_logger("preprocess").warning("%s: gives no document", path)

    def summary(
        self, description: TokensDescription, documents: str, left_out: dict[str, int]
    ) -> Summary:
        counts = (self.files, self.empty, self.skipped.count)
        return Summary(description, *counts, documents, self.bare_files, left_out)


def preprocess(
    paths: Sequence[str | Path],
    prefix: str | Path,
    tokenizer: str,
    *,
    text_key: str | None = None,
    on_error: OnError = "stop",
    num_workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    begin_token: str | None = None,
    end_token: str | None = None,
    line_limit: int = DEFAULT_LINE_LIMIT,
    canaries: Canaries | None = None,
) -> Summary:
    """Write every document of `paths` to `prefix`, between the tokens that begin and end one.

    `tokenizer` is a folder, a tokenizer.json or "bytes"; it says which tokens these are, unless
    `begin_token` (or "none") and `end_token` name others. Documents without text are left out.
    `text_key` None is "text"; `line_limit` is in bytes, of a line or JSON value.
    `num_workers` 0 works in this process; None takes the usable processors, one per MiB at most.
    `canaries` are planted among them, and told in a file beside the dataset.
    Raises RootsError for anything wrong with the input (`on_error="skip"` leaves broken lines out
    and reports them) and leaves an existing dataset as it was.
    """
    loaded = load_tokenizer(tokenizer, begin_token=begin_token, end_token=end_token)
    around = loaded.special.documents
    files = find_files(paths)
    key, total_bytes = files.text_key(text_key), sum(files.sizes)
    if num_workers is None:
        num_workers = default_workers(total_bytes)
    counts = _Counts(SkippedLines(on_error))
    with ExitStack() as stack:
        writer = stack.enter_context(IndexedWriter(prefix, loaded.vocab_size))
        work = partial(tokenize_batch, around=around, text_key=key, dtype=writer.dtype.str)
        run = stack.enter_context(worker_pool(num_workers, tokenizer, work))
        planter = Planter(canaries, loaded, total_bytes, writer.dtype)
        done_bytes = 0
        for path, size in zip(files.paths, files.sizes, strict=True):
            documents = 0
            for result in _whole_documents(run(read_batches(path, key, line_limit))):
                counts.skipped.account(result.errors)
                counts.empty += result.num_empty
                documents += len(result.lengths)
                read_bytes = done_bytes + result.read_bytes
                planted = planter.plant(result.tokens, result.lengths, read_bytes)
                _write(writer, planted, prefix)
                if on_progress is not None:
                    done = (writer.num_documents, writer.num_tokens)
                    on_progress(Progress(read_bytes, total_bytes, *done))
            counts.end_file(path, documents)
            done_bytes += size
        if counts.files == 0:
            raise RootsError(_empty_corpus(files.paths, counts))
        _write(writer, planter.rest(), prefix)
        try:
            description = writer.finish(loaded.fingerprint, around.end, around.begin, canaries)
        except OSError as error:
            raise unwritable(prefix, error) from None
    return counts.summary(description, shape_of_documents(loaded), dict(files.left_out))


def shape_of_documents(tokenizer: Tokenizer) -> str:
    """Say what every document of a dataset looks like, as `'<s>' (1), its text, '</s>' (2)`."""
    around = tokenizer.special.documents
    begin = [f"{tokenizer.name_of(token)!r} ({token})" for token in around.begin]
    return ", ".join([*begin, "its text", f"{tokenizer.name_of(around.end)!r} ({around.end})"])


def tokenize_batch(
    batch: RawBatch,
    tokenizer: Tokenizer,
    *,
    around: DocumentTokens,
    text_key: str,
    dtype: str,
) -> TokenBatch:
    """Parse and tokenize one batch; a pure function, run by the workers."""
    documents: list[Tokens] = []
    errors: list[str] = []
    num_empty = 0
    for parsed in parse_batch(batch, text_key):
        if parsed.error is not None:
            errors.append(parsed.error)
        elif not parsed.text:
            num_empty += 1
        else:
            ids = tokenizer.encode(parsed.text)
            if not batch.continues:
                ids[:0] = around.begin
            if not batch.goes_on:
                ids.append(around.end)
            documents.append(np.array(ids, dtype=dtype))
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    tokens = np.concatenate(documents) if documents else np.empty(0, dtype=dtype)
    counts = (num_empty, batch.read_bytes, batch.goes_on)
    return TokenBatch(tokens, lengths, tuple(errors), *counts)


def _whole_documents(results: Iterator[TokenBatch]) -> Iterator[TokenBatch]:
    """Move the tokens of a document in pieces into its last batch; one broken piece voids it."""
    pieces: list[Tokens] = []
    inside = broken = False
    for result in results:
        if not (inside or result.goes_on):
            yield result
            continue
        inside = result.goes_on
        errors = () if broken else result.errors
        broken = broken or bool(errors)
        pieces.append(result.tokens)
        if broken:
            pieces.clear()
        whole, lengths = result.tokens[:0], result.lengths[:0]
        if not inside:
            if not broken:
                whole = np.concatenate(pieces)
                lengths = np.array([len(whole)], dtype=np.int64)
            pieces.clear()
            broken = False
        yield TokenBatch(whole, lengths, errors, 0, result.read_bytes)


def _write(writer: IndexedWriter, documents: tuple[Tokens, Int64s], prefix: str | Path) -> None:
    try:
        writer.add(*documents)
    except OSError as error:
        raise unwritable(prefix, error) from None


def unwritable(prefix: str | Path, error: OSError) -> RootsError:
    """Say that the disk took no more of a dataset."""
    rule = f"cannot be written ({error.strerror})"
    fix = f"{cure_of(error)}, or name another place"
    return RootsError(problem("--out", str(prefix), rule, fix))


def _empty_corpus(paths: Sequence[Path], counts: _Counts) -> str:
    shown = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    rule = f"no text in it ({counts.empty} empty documents, {counts.skipped.count} broken ones)"
    return problem("FILES", shown, rule, "name files with text, or check --text-key")
