"""Tokens on disk in Megatron-core's format: PREFIX.bin, read in place, and PREFIX.idx, mapped.

PREFIX.bin is the tokens of all sequences one after the other, without header or padding.
PREFIX.idx, little-endian:
    9 bytes    magic "MMIDIDX\\0\\0"
    uint64     version, 1
    uint8      code of the token type: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16
    uint64     S, the number of sequences
    uint64     D + 1, one more than the number of documents
    int32[S]   tokens of each sequence
    int64[S]   byte offset of each sequence in PREFIX.bin
    int64[D+1] the sequences before each document, ending with S
and, in multimodal datasets of Megatron only, int8[S] modes, which are ignored here.
Sequences stand in the order of their offsets and without gaps, so a document is one slice.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from roots.data.canaries import Canaries, canaries_path, write_canaries
from roots.data.description import (
    TokensDescription,
    description_path,
    read_description,
    write_description,
)
from roots.data.open_files import TokenFile, UnreadableFile, check_mapped
from roots.data.prefixes import missing_dataset, refuse_endings
from roots.errors import RootsError, problem
from roots.files import sync_file, sync_folder
from roots.lock import Place, lock_beside, owned

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_TOKEN_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_UINT16_CODE = 8
_INT32_CODE = 4
_LONGEST_SEQUENCE = 2**31 - 1
_BLOCK = 1 << 20  # sequences at a time, where a pass over all of them must not hold them all
_REBUILD = "run `roots preprocess` again, or copy both files again"

Tokens = NDArray[np.integer[Any]]
Int64s = NDArray[np.int64]


def paths_of(prefix: str | Path) -> tuple[Path, Path]:
    """Return the paths of PREFIX.bin and PREFIX.idx."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx")


class IndexedDataset:
    """Documents of token ids; nothing is read before it is asked for.

    `num_documents`, `num_tokens`, `dtype` (of a token), `description` (PREFIX.json or None).
    """

    def __init__(self, prefix: str | Path) -> None:
        """Open a dataset and check that both files are whole.

        Raises RootsError for a missing file or one that cannot be read, a wrong magic, another
        version, an unknown token type, a file whose length does not fit the counts, and a side file
        of another dataset; for damaged offsets as check_index, which a large dataset leaves to its
        user.
        """
        self.prefix = str(prefix)
        self.bin_path, self.idx_path = paths_of(prefix)
        try:
            self._open()
        except OSError as error:
            raise UnreadableFile.because_of(self.prefix, error) from None

    def _open(self) -> None:
        for path in (self.idx_path, self.bin_path):
            if not path.is_file():
                raise missing_dataset(self.prefix, path)
        self.dtype, num_sequences, num_bounds = _read_header(self.idx_path)
        self._map_index(num_sequences, num_bounds)
        self.num_documents = num_bounds - 1
        if num_sequences + num_bounds <= _BLOCK:
            self.check_index()
        self.num_tokens = self._map_tokens()
        self.description = self._read_description()

    def _map_index(self, num_sequences: int, num_bounds: int) -> None:
        index = self._index = np.memmap(self.idx_path, dtype=np.uint8, mode="r")
        first = _HEADER.size
        second = first + 4 * num_sequences
        third = second + 8 * num_sequences
        self.sequence_lengths = index[first:second].view("<i4")
        self.sequence_pointers = index[second:third].view("<i8")
        self.document_bounds = index[third : third + 8 * num_bounds].view("<i8")
        if self.document_bounds[0] != 0 or self.document_bounds[-1] != num_sequences:
            rule = f"the documents must span all {num_sequences} sequences"
            raise RootsError(problem(str(self.idx_path), None, rule, _REBUILD))

    def _map_tokens(self) -> int:
        expected = int(self.sequence_pointers[-1]) + self.dtype.itemsize * int(
            self.sequence_lengths[-1]
        )
        actual = self.bin_path.stat().st_size
        if actual != expected:
            rule = f"{self.idx_path.name} describes {expected} bytes of tokens"
            raise RootsError(problem(f"{self.bin_path} size", actual, rule, _REBUILD))
        if actual == 0:
            raise RootsError(problem(str(self.bin_path), None, "holds no tokens", _REBUILD))
        if actual % self.dtype.itemsize:
            rule = f"must be a multiple of {self.dtype.itemsize}, the bytes of a token"
            raise RootsError(problem(f"{self.bin_path} size", actual, rule, _REBUILD))
        self.tokens = TokenFile(self.bin_path, self.dtype)
        return len(self.tokens)

    def _read_description(self) -> TokensDescription | None:
        description = read_description(self.prefix)
        actual = (self.num_documents, self.num_tokens)
        if description and (description.documents, description.tokens) != actual:
            rule = (
                f"describes {description.documents} documents of {description.tokens} tokens, "
                f"{self.idx_path.name} {actual[0]} of {actual[1]}"
            )
            fix = "run `roots preprocess` again, or remove the file (it is optional)"
            raise RootsError(problem(str(description_path(self.prefix)), None, rule, fix))
        return description

    def __len__(self) -> int:
        """Return the number of documents."""
        return self.num_documents

    def __getitem__(self, document: int) -> Tokens:
        """Read all tokens of a document. Raises UnreadableFile where they are no longer there."""
        start, stop = self.document_span(document)
        return self.tokens[start:stop]

    def document_span(self, document: int) -> tuple[int, int]:
        """Return [start, stop) of a document in `tokens`."""
        first, last = self.document_bounds[document : document + 2]
        return self._token_at(int(first)), self._token_at(int(last))

    def document_starts(self, documents: range) -> Int64s:
        """Return where each document of the range starts in `tokens`, and where the last ends."""
        bounds = self.document_bounds[documents.start : documents.stop + 1]
        pointers = self.sequence_pointers[np.minimum(bounds, len(self.sequence_pointers) - 1)]
        starts: Int64s = (pointers // self.dtype.itemsize).astype(np.int64)
        starts[bounds == len(self.sequence_pointers)] = self.num_tokens
        return starts

    def check_mapped(self) -> None:
        """Raise UnreadableFile if PREFIX.idx was cut short since it was opened."""
        check_mapped(self._index)

    def check_index(self) -> None:
        """Check every offset and bound; a pass over PREFIX.idx, done once per cached index.

        Raises RootsError where sequences overlap, leave gaps or documents are out of order.
        """
        expected = 0
        for block in _blocks(len(self.sequence_lengths)):
            lengths = self.sequence_lengths[block].astype(np.int64) * self.dtype.itemsize
            ends = expected + np.cumsum(lengths)
            bad = (self.sequence_pointers[block] != ends - lengths) | (lengths < 0)
            if bad.any():
                sequence = block.start + int(np.argmax(bad))
                rule = "must start where the sequence before it ends"
                raise RootsError(
                    problem(f"{self.idx_path} sequence {sequence}", None, rule, _REBUILD)
                )
            expected = int(ends[-1])
        for block in _blocks(self.num_documents):
            bounds = self.document_bounds[block.start : block.stop + 1]
            # No difference: that of damaged bounds may overflow.
            bad = bounds[1:] < bounds[:-1]
            if bad.any():
                document = block.start + int(np.argmax(bad))
                rule = "must not end before it starts"
                raise RootsError(
                    problem(f"{self.idx_path} document {document}", None, rule, _REBUILD)
                )

    def _token_at(self, sequence: int) -> int:
        if sequence == len(self.sequence_pointers):
            return self.num_tokens
        return int(self.sequence_pointers[sequence]) // self.dtype.itemsize


class IndexedWriter:
    """Writes a dataset, all or nothing: until `finish`, only PREFIX.*.partial exist.

    Use as a context manager; leaving it with an exception removes the temporaries. Those of a
    killed run are replaced by the next one; a second process is refused while this one writes.
    Keeps 4 bytes of memory per document.
    """

    def __init__(self, prefix: str | Path, vocab_size: int) -> None:
        """Start PREFIX.bin.partial; tokens are uint16 where the vocabulary fits, else int32.

        Raises RootsError where the folder cannot be written, where another process writes this
        dataset, and for a prefix that ends like one of its files.
        """
        refuse_endings("--out", prefix)
        self.bin_path, self.idx_path = paths_of(prefix)
        self._json_path, self._canaries_path = description_path(prefix), canaries_path(prefix)
        self._vocab_size = vocab_size
        self._code = _UINT16_CODE if vocab_size <= 2**16 else _INT32_CODE
        self.dtype = np.dtype(_TOKEN_TYPES[self._code])
        self._lengths = array("i")
        self.num_tokens = 0
        self.max_token_id = -1
        fix = "name a prefix in a folder that can be written"
        with ExitStack() as stack:
            try:
                self.bin_path.parent.mkdir(parents=True, exist_ok=True)
                place = Place("--out", "the dataset is", "wait for it, or end it", str(prefix))
                self._owned = stack.enter_context(owned(lock_beside(Path(prefix)), place))
                self._file: BinaryIO = _partial(self.bin_path).open("wb")
            except OSError as error:
                rule = f"cannot be written ({error.strerror})"
                raise RootsError(problem("--out", str(prefix), rule, fix)) from None
            self._stack = stack.pop_all()

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    def add(self, tokens: Tokens, lengths: Int64s | None = None) -> None:
        """Append documents: their tokens one after the other, and the length of each.

        Without `lengths` the tokens are one document. Raises RootsError for a token id outside
        the vocabulary and for a document of 2^31 tokens or more.
        """
        if lengths is None:
            lengths = np.array([len(tokens)], dtype=np.int64)
        assert int(lengths.sum()) == len(tokens), "lengths do not add up"
        if len(tokens):
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self._vocab_size:
                rule = f"the vocabulary has ids 0 to {self._vocab_size - 1}"
                raise RootsError(
                    problem("token id", low if low < 0 else high, rule, "use its tokenizer")
                )
            self.max_token_id = max(self.max_token_id, high)
        if len(lengths) and int(lengths.max()) > _LONGEST_SEQUENCE:
            rule = f"the format allows {_LONGEST_SEQUENCE} tokens in a document"
            raise RootsError(problem("document", int(lengths.max()), rule, "split it"))
        self._file.write(tokens.astype(self.dtype, copy=False).tobytes())
        self._lengths.frombytes(lengths.astype(np.int32).tobytes())
        self.num_tokens += len(tokens)

    def finish(
        self,
        tokenizer: str,
        end_of_document: int,
        begin_tokens: Sequence[int] = (),
        canaries: Canaries | None = None,
    ) -> TokensDescription:
        """Write the index and the side files, and give all their names, the index last.

        An older dataset of this prefix loses its index first, so that no moment shows new tokens
        under an old index, and its canaries. Raises RootsError when there are no tokens.
        """
        if self.num_tokens == 0:
            rule = "there are no documents to write"
            raise RootsError(problem(str(self.bin_path), None, rule, "name files with text"))
        description = TokensDescription(
            tokenizer=tokenizer,
            vocab_size=self._vocab_size,
            end_of_document=end_of_document,
            max_token_id=self.max_token_id,
            documents=self.num_documents,
            tokens=self.num_tokens,
            begin_tokens=tuple(begin_tokens),
        )
        self._owned.check()
        self._file.close()
        self._write_index(_partial(self.idx_path))
        write_description(_partial(self._json_path), description)
        finals = [self.bin_path, self._json_path, self.idx_path]
        if canaries is not None:
            write_canaries(_partial(self._canaries_path), canaries, description)
            finals.insert(0, self._canaries_path)
        for final in finals:
            sync_file(_partial(final))
        self.idx_path.unlink(missing_ok=True)
        self._canaries_path.unlink(missing_ok=True)
        for final in finals:
            os.replace(_partial(final), final)
        sync_folder(self.idx_path.parent)
        return description

    def _write_index(self, path: Path) -> None:
        count = len(self._lengths)
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        with open(path, "wb") as file:
            file.write(_HEADER.pack(MAGIC, VERSION, self._code, count, count + 1))
            file.write(lengths.astype("<i4", copy=False).tobytes())
            offset = 0
            for block in _blocks(count):
                sizes = lengths[block].astype("<i8") * self.dtype.itemsize
                ends = offset + np.cumsum(sizes)
                file.write((ends - sizes).astype("<i8", copy=False).tobytes())
                offset = int(ends[-1])
            for block in _blocks(count + 1):
                file.write(np.arange(block.start, block.stop, dtype="<i8").tobytes())

    def __enter__(self) -> IndexedWriter:
        """Return the writer."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close, and remove temporaries that `finish` has not renamed."""
        with self._stack:
            # What is in its buffer belongs to a file that goes, and a full disk may not take it.
            with suppress(OSError):
                self._file.close()
            for final in (self.bin_path, self._json_path, self._canaries_path, self.idx_path):
                _partial(final).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))


def _read_header(path: Path) -> tuple[np.dtype[Any], int, int]:
    """Return token type, number of sequences and of document bounds of an index file."""
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    if header[: len(MAGIC)] != MAGIC:
        rule = f"an index starts with {MAGIC!r}"
        fix = "give the prefix of a dataset that `roots preprocess` or Megatron wrote"
        raise RootsError(problem(f"{path} magic", header[: len(MAGIC)], rule, fix))
    size = path.stat().st_size
    if len(header) < _HEADER.size:
        rule = f"the header alone has {_HEADER.size} bytes"
        raise RootsError(problem(f"{path} size", size, rule, _REBUILD))
    _, version, code, num_sequences, num_bounds = _HEADER.unpack(header)
    if version != VERSION:
        rule = f"only version {VERSION} can be read"
        fix = "run `roots preprocess` again on the text"
        raise RootsError(problem(f"{path} version", version, rule, fix))
    if code not in _TOKEN_TYPES:
        rule = f"must be one of {sorted(_TOKEN_TYPES)}"
        raise RootsError(problem(f"{path} token type", code, rule, _REBUILD))
    if num_sequences < 1 or num_bounds < 2:
        raise RootsError(problem(str(path), None, "holds no documents", _REBUILD))
    # At least: Megatron appends one byte per sequence in multimodal datasets.
    needed = _HEADER.size + 12 * num_sequences + 8 * num_bounds
    if size not in (needed, needed + num_sequences):
        rule = f"{num_sequences} sequences and {num_bounds - 1} documents need {needed} bytes"
        raise RootsError(problem(f"{path} size", size, rule, _REBUILD))
    return np.dtype(_TOKEN_TYPES[code]), num_sequences, num_bounds
