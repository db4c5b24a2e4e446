"""Processes that tokenize, and the order in which their results come back.

One process reads and writes; each worker has loaded the tokenizer once. At most two pieces of work
per worker are under way, so that memory stays bounded however fast files are read.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from roots.errors import RootsError, problem
from roots.tokenizer.tokenizer import Tokenizer, load_tokenizer

_BYTES_WORTH_A_WORKER = 1 << 20
Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Item, Tokenizer], Result]
Run = Callable[[Iterator[Item]], Iterator[Result]]


@contextmanager
def worker_pool(
    num_workers: int, tokenizer: str, work: Work[Item, Result]
) -> Iterator[Run[Item, Result]]:
    """Give a function that maps items to results in their order, with or without processes.

    `work` is a pure function of an item and the tokenizer. Raises RootsError where a worker dies.
    """
    if num_workers == 0:
        loaded = load_tokenizer(tokenizer)
        yield lambda items: (work(item, loaded) for item in items)
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


def default_workers(total_bytes: int) -> int:
    """Return how many workers so much text is worth on the processors of this process."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    workers = min(usable, total_bytes // _BYTES_WORTH_A_WORKER)
    return workers if workers > 1 else 0


def _map_in_order(
    executor: ProcessPoolExecutor,
    work: Callable[[Item], Result],
    ahead: int,
    items: Iterator[Item],
) -> Iterator[Result]:
    """Yield results in the order of the items, with at most `ahead` of them under way."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(executor.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _tokenize_in_worker(work: Work[Item, Result], tokenizer: str, item: Item) -> Result:
    return work(item, _tokenizer_of_worker(tokenizer))


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
