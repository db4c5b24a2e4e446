"""Files of pairs to two datasets of equal document counts, PREFIX.source and PREFIX.target.

Document i of the one belongs to document i of the other; each ends with the end-of-document token.
Sources begin as every text that a model reads; targets are written behind `data.begin_token`.
Both are plain indexed datasets, readable by Megatron-core. Work and order are those of
`preprocess`: the result does not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from roots.data.description import TokensDescription
from roots.data.indexed import IndexedWriter, Int64s, Tokens, paths_of
from roots.data.prefixes import refuse_endings
from roots.data.preprocessing.file_lists import find_pair_files
from roots.data.preprocessing.pair_files import (
    PairBatch,
    PairColumns,
    parse_pairs,
    read_pair_batches,
)
from roots.data.preprocessing.readers import OnError
from roots.data.preprocessing.streams import DEFAULT_LINE_LIMIT
from roots.data.preprocessing.texts import Progress, SkippedLines, unwritable
from roots.data.preprocessing.workers import default_workers, worker_pool
from roots.errors import RootsError, problem
from roots.tokenizer.special_tokens import DocumentTokens
from roots.tokenizer.tokenizer import Tokenizer, load_tokenizer

SIDES = ("source", "target")


@dataclass(frozen=True)
class TokenPairs:
    """A tokenized batch: for each side the tokens of all its documents and their lengths."""

    tokens: tuple[Tokens, Tokens]
    lengths: tuple[Int64s, Int64s]
    errors: tuple[str, ...]
    read_bytes: int


@dataclass(frozen=True)
class PairSummary:
    """What a run did, with what PREFIX.source.json and PREFIX.target.json hold."""

    source: TokensDescription
    target: TokensDescription
    files: int
    num_skipped: int


def side_prefix(prefix: str | Path, side: str) -> str:
    """Return the prefix of one of the two datasets."""
    return f"{prefix}.{side}"


def preprocess_pairs(
    paths: Sequence[str | Path],
    prefix: str | Path,
    tokenizer: str,
    *,
    columns: PairColumns | None = None,
    on_error: OnError = "stop",
    num_workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    begin_token: str | None = None,
    end_token: str | None = None,
    line_limit: int = DEFAULT_LINE_LIMIT,
) -> PairSummary:
    """Write the pairs of `paths`; arguments as for `preprocess`.

    Raises RootsError for anything wrong with the input, an empty text included
    (`on_error="skip"` leaves such pairs out and reports them).
    """
    refuse_endings("--out", prefix)
    loaded = load_tokenizer(tokenizer, begin_token=begin_token, end_token=end_token)
    around = loaded.special.documents
    files = find_pair_files(paths)
    total_bytes = sum(files.sizes)
    if num_workers is None:
        num_workers = default_workers(total_bytes)
    skipped = SkippedLines(on_error)
    with ExitStack() as stack:
        source, target = (
            stack.enter_context(IndexedWriter(side_prefix(prefix, side), loaded.vocab_size))
            for side in SIDES
        )
        work = partial(tokenize_pairs, around=around)
        run = stack.enter_context(worker_pool(num_workers, tokenizer, work))
        done_bytes = 0
        for path, size in zip(files.paths, files.sizes, strict=True):
            for result in run(read_pair_batches(path, columns or PairColumns(), line_limit)):
                skipped.account(result.errors)
                _write((source, target), result, prefix)
                if on_progress is not None:
                    read = done_bytes + result.read_bytes
                    tokens = source.num_tokens + target.num_tokens
                    on_progress(Progress(read, total_bytes, source.num_documents, tokens))
            done_bytes += size
        if source.num_documents == 0:
            rule = f"no pairs in it ({skipped.count} broken ones)"
            fix = "name files with pairs, or check --source-key and --target-key"
            raise RootsError(problem("FILES", str(files.paths[0]), rule, fix))
        # Never a new side beside an old one.
        paths_of(side_prefix(prefix, SIDES[1]))[1].unlink(missing_ok=True)
        finish = partial(_finish, prefix=prefix, tokenizer=loaded)
        descriptions = (finish(source, around.begin), finish(target, ()))
        return PairSummary(*descriptions, len(files.paths), skipped.count)


def tokenize_pairs(batch: PairBatch, tokenizer: Tokenizer, *, around: DocumentTokens) -> TokenPairs:
    """Parse and tokenize one batch; a pure function, run by the workers."""
    parsed = list(parse_pairs(batch))
    whole = [pair for pair in parsed if pair.error is None]
    sides = ([pair.source for pair in whole], [pair.target for pair in whole])
    both = (around, DocumentTokens((), around.end))
    (source, source_lengths), (target, target_lengths) = (
        _tokenize(texts, tokenizer, each) for texts, each in zip(sides, both, strict=True)
    )
    errors = tuple(pair.error for pair in parsed if pair.error is not None)
    return TokenPairs(
        (source, target), (source_lengths, target_lengths), errors, batch.lines.read_bytes
    )


def _tokenize(
    texts: list[str], tokenizer: Tokenizer, around: DocumentTokens
) -> tuple[Tokens, Int64s]:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    documents = [
        np.array([*around.begin, *ids, around.end], dtype=dtype)
        for ids in tokenizer.encode_batch(texts)
    ]
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    return np.concatenate(documents) if documents else np.empty(0, dtype=dtype), lengths


def _write(
    writers: tuple[IndexedWriter, IndexedWriter], result: TokenPairs, prefix: str | Path
) -> None:
    try:
        for writer, tokens, lengths in zip(writers, result.tokens, result.lengths, strict=True):
            writer.add(tokens, lengths)
    except OSError as error:
        raise unwritable(prefix, error) from None


def _finish(
    writer: IndexedWriter, begin: tuple[int, ...], *, prefix: str | Path, tokenizer: Tokenizer
) -> TokensDescription:
    try:
        return writer.finish(tokenizer.fingerprint, tokenizer.end_of_document, begin)
    except OSError as error:
        raise unwritable(prefix, error) from None
