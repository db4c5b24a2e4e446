"""Damaged files of every reader of data: one line for the user, never a traceback."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roots.data.gpt import GPTDataset
from roots.data.indexed import IndexedDataset, IndexedWriter
from roots.data.preprocessing.file_lists import find_files
from roots.data.preprocessing.pair_files import read_pairs
from roots.data.preprocessing.readers import read_texts
from roots.errors import RootsError
from roots.tokenizer.tokenizer import load_tokenizer
from roots.tokenizer.train import save_tokenizer, train_bpe

# Of each of fifteen kinds of file; with 500 of each, by hand, no traceback was left either.
EXAMPLES = 25


@st.composite
def damage(draw):
    """A function of bytes: cut, changed, doubled or other bytes put in, at drawn places."""
    kind = draw(st.sampled_from(["cut", "change", "insert", "number", "replace"]))
    place = draw(st.floats(0, 1, exclude_max=True))
    content = draw(st.binary(min_size=1, max_size=9))
    number = draw(st.sampled_from([0, 1, -1, 2**31, 2**62, -(2**63)]))

    def apply(data: bytes) -> bytes:
        at = int(place * len(data))
        if kind == "cut":
            return data[:at]
        if kind == "change":
            return data[:at] + content + data[at + len(content) :]
        if kind == "insert":
            return data[:at] + content + data[at:]
        if kind == "number":
            return data[:at] + number.to_bytes(8, "little", signed=True) + data[at + 8 :]
        return content

    return apply


def survives(action):
    """Run `action`; a RootsError of one line each is what a user may see."""
    lines = [""]
    try:
        action()
    except RootsError as error:
        lines = list(error.lines)
    assert lines
    assert not any("\n" in line for line in lines), lines


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with one good file of every kind."""
    folder = tmp_path_factory.mktemp("good")
    with IndexedWriter(folder / "data", 300) as writer:
        for length in (5, 1, 9, 3, 7, 4, 4):
            writer.add(np.arange(length))
        writer.finish("bytes", 0)
    lines = "".join(json.dumps({"text": f"one {n}", "n": n}) + "\n" for n in range(30)).encode()
    array = json.dumps([{"text": f"one {n}"} for n in range(30)], indent=1).encode()
    for name, content in {
        "a.jsonl": lines,
        "b.json": array,
        "c.jsonl.gz": gzip.compress(lines),
        "d.jsonl.bz2": bz2.compress(lines),
        "e.jsonl.xz": lzma.compress(lines),
        "f.txt": b"some text\nof lines\n",
        "pairs.tsv": b"source\ttarget\n" + b"a b\tc d\n" * 9,
    }.items():
        (folder / name).write_bytes(content)
    with suppress(ImportError):
        import zstandard

        (folder / "g.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    with suppress(ImportError):
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table({"text": ["a", "b", "c"] * 9})
        parquet.write_table(table, folder / "h.parquet")
    save_tokenizer(train_bpe(["a cat sat on a mat"] * 9, 262), folder / "tokenizer")
    return folder


@pytest.mark.parametrize("ending", [".idx", ".json", ".bin"])
@settings(max_examples=EXAMPLES, deadline=None)
@given(apply=damage())
def test_datasets(good, tmp_path_factory, ending, apply):
    folder = tmp_path_factory.mktemp("damaged")
    for name in (".idx", ".bin", ".json"):
        shutil.copy(f"{good}/data{name}", folder)
    path = folder / f"data{ending}"
    path.write_bytes(apply(path.read_bytes()))

    def read():
        indexed = IndexedDataset(folder / "data")
        documents = range(indexed.num_documents)
        samples = GPTDataset(indexed, documents, sequence_length=4, num_samples=9, seed=1)
        assert all(len(samples[number].tokens) == 5 for number in range(9))

    survives(read)


@settings(max_examples=EXAMPLES, deadline=None)
@given(apply=damage(), which=st.integers(0, 3))
def test_cached_indices(good, tmp_path_factory, apply, which):
    folder = tmp_path_factory.mktemp("cache")

    def read():
        samples = GPTDataset(
            IndexedDataset(good / "data"),
            range(7),
            sequence_length=4,
            num_samples=9,
            seed=1,
            cache_directory=folder,
        )
        assert all(len(samples[number].tokens) == 5 for number in range(9))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("roots.data.index.BLOCK_ENTRIES", 1)
        read()
        name = (".ends.npy", ".order.npy", ".shuffle.npy", ".json")[which]
        for path in folder.glob(f"*{name}"):
            path.write_bytes(apply(path.read_bytes()))
        survives(read)


def read_all(path, policy):
    return list(read_texts(find_files([path]).paths, "text", policy, lambda line: None))


@pytest.mark.parametrize("letter", "abcdefghp")
@settings(max_examples=EXAMPLES, deadline=None)
@given(apply=damage())
def test_texts_and_pairs(good, tmp_path_factory, letter, apply):
    found = list(good.glob(f"{letter}*.*"))
    if not found:
        return
    path = tmp_path_factory.mktemp("text") / found[0].name
    path.write_bytes(apply(found[0].read_bytes()))
    if letter == "p":
        survives(lambda: read_pairs(path))
        return
    for policy in ("stop", "skip"):
        survives(lambda policy=policy: read_all(path, policy))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@settings(max_examples=EXAMPLES, deadline=None)
@given(apply=damage())
def test_tokenizers(good, tmp_path_factory, name, apply):
    folder = tmp_path_factory.mktemp("tokenizer")
    for path in (good / "tokenizer").iterdir():
        shutil.copy(path, folder)
    (folder / name).write_bytes(apply((folder / name).read_bytes()))
    survives(lambda: load_tokenizer(folder).encode("a cat"))
