"""Text files to a dataset of tokens: parallel, in bounded memory, all or nothing.

One process reads and writes, the others parse and tokenize. At most two batches per worker are
under way, and they are written in the order in which they were read: the dataset is the same for
any number of workers. Only the tokens of a text file that is cut into batches are held until it
ends.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from roots.data.description import TokensDescription
from roots.data.indexed import IndexedWriter, Int64s, Tokens
from roots.data.readers import OnError, RawBatch, find_files, parse_batch, read_batches
from roots.errors import RootsError, problem
from roots.log import get_logger
from roots.tokenizer.tokenizer import Tokenizer, load_tokenizer

_BYTES_WORTH_A_WORKER = 1 << 20
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
    """What a run did. `description` is what PREFIX.json holds."""

    description: TokensDescription
    files: int
    num_empty: int
    num_skipped: int


@dataclass
class _Tally:
    """Documents left out so far."""

    num_empty: int = 0
    num_skipped: int = 0


def preprocess(
    paths: Sequence[str | Path],
    prefix: str | Path,
    tokenizer: str,
    *,
    text_key: str = "text",
    on_error: OnError = "stop",
    num_workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Write every document of `paths`, each followed by the end-of-document token, to `prefix`.

    `tokenizer` is a folder, a tokenizer.json or "bytes". Documents without text are left out.
    `num_workers` 0 works in this process; None takes the usable processors, one per MiB at most.
    Raises RootsError for anything wrong with the input (`on_error="skip"` leaves broken lines out
    and reports them) and leaves an existing dataset as it was.
    """
    loaded = load_tokenizer(tokenizer)
    files = find_files(paths)
    total_bytes = sum(path.stat().st_size for path in files)
    if num_workers is None:
        num_workers = _default_workers(total_bytes)
    tally = _Tally()
    with ExitStack() as stack:
        writer = stack.enter_context(IndexedWriter(prefix, loaded.vocab_size))
        work = partial(tokenize_batch, text_key=text_key, dtype=writer.dtype.str)
        run = stack.enter_context(_workers(num_workers, tokenizer, work))
        done_bytes = 0
        for path in files:
            for result in _whole_documents(run(read_batches(path, text_key))):
                _account(result, on_error, tally)
                _write(writer, result, prefix)
                if on_progress is not None:
                    read = done_bytes + result.read_bytes
                    counts = (writer.num_documents, writer.num_tokens)
                    on_progress(Progress(read, total_bytes, *counts))
            done_bytes += path.stat().st_size
        if writer.num_documents == 0:
            raise RootsError(_empty_corpus(files, tally))
        try:
            description = writer.finish(loaded.fingerprint, loaded.end_of_document)
        except OSError as error:
            raise _unwritable(prefix, error) from None
    return Summary(description, len(files), tally.num_empty, tally.num_skipped)


def tokenize_batch(
    batch: RawBatch, tokenizer: Tokenizer, *, text_key: str, dtype: str
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
            if not batch.goes_on:
                ids.append(tokenizer.end_of_document)
            documents.append(np.array(ids, dtype=dtype))
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    tokens = np.concatenate(documents) if documents else np.empty(0, dtype=dtype)
    counts = (num_empty, batch.read_bytes, batch.goes_on)
    return TokenBatch(tokens, lengths, tuple(errors), *counts)


_Work = Callable[[RawBatch, Tokenizer], TokenBatch]
_Run = Callable[[Iterator[RawBatch]], Iterator[TokenBatch]]


@contextmanager
def _workers(num_workers: int, tokenizer: str, work: _Work) -> Iterator[_Run]:
    """Give a function that maps batches to results in their order, with or without processes."""
    if num_workers == 0:
        loaded = load_tokenizer(tokenizer)
        yield lambda batches: (work(batch, loaded) for batch in batches)
        return
    # Not fork: tokenizers has threads, and a forked copy of their locks may never open again.
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer,),
    )
    in_worker = partial(_tokenize_in_worker, work, tokenizer)
    try:
        yield partial(_map_in_order, executor, in_worker, 2 * num_workers)
    except BrokenProcessPool:
        rule = "a worker process was killed, most likely because memory ran out"
        raise RootsError(
            problem("--workers", num_workers, rule, "use fewer workers, or split large files")
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _map_in_order(
    executor: ProcessPoolExecutor,
    work: Callable[[RawBatch], TokenBatch],
    ahead: int,
    batches: Iterator[RawBatch],
) -> Iterator[TokenBatch]:
    """Yield results in the order of the batches, with at most `ahead` of them under way."""
    waiting: deque[Future[TokenBatch]] = deque()
    for batch in batches:
        waiting.append(executor.submit(work, batch))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _tokenize_in_worker(work: _Work, tokenizer: str, batch: RawBatch) -> TokenBatch:
    return work(batch, _tokenizer_of_worker(tokenizer))


@functools.cache
def _tokenizer_of_worker(tokenizer: str) -> Tokenizer:
    """Load the tokenizer once per worker process."""
    return load_tokenizer(tokenizer)


def _start_worker(tokenizer: str) -> None:
    # Ctrl-C reaches the whole group; the parent alone decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tokenizer_of_worker(tokenizer)


def _end_with_parent() -> None:
    """Leave when the parent is gone: the queue of a killed parent never closes by itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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


def _account(result: TokenBatch, on_error: OnError, tally: _Tally) -> None:
    if result.errors and on_error == "stop":
        raise RootsError(result.errors[0])
    logger = get_logger("preprocess")
    for line in result.errors:
        tally.num_skipped += 1
        if tally.num_skipped <= _REPORTED_ERRORS:
            logger.warning("skipped: %s", line)
    tally.num_empty += result.num_empty


def _write(writer: IndexedWriter, result: TokenBatch, prefix: str | Path) -> None:
    try:
        writer.add(result.tokens, result.lengths)
    except OSError as error:
        raise _unwritable(prefix, error) from None


def _unwritable(prefix: str | Path, error: OSError) -> RootsError:
    rule = f"cannot be written ({error.strerror})"
    return RootsError(problem("--out", str(prefix), rule, "free some space or name another place"))


def _empty_corpus(files: Sequence[Path], tally: _Tally) -> str:
    shown = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    rule = f"no text in it ({tally.num_empty} empty documents, {tally.num_skipped} broken ones)"
    return problem("FILES", shown, rule, "name files with text, or check --text-key")


def _default_workers(total_bytes: int) -> int:
    affinity: Any = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    workers = min(usable, total_bytes // _BYTES_WORTH_A_WORKER)
    return workers if workers > 1 else 0
