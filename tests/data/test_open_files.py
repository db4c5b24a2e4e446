"""Files that are cut short, or fail, while a run reads them: one line, and never a signal."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from roots.data.blend import Blend, Source
from roots.data.indexed import IndexedDataset
from roots.data.objectives.pairs import PairDataset, PairShape
from roots.data.open_files import TokenFile, UnreadableFile, check_mapped
from roots.errors import ExitCode, RootsError


@pytest.fixture
def dataset(write_dataset) -> IndexedDataset:
    return IndexedDataset(write_dataset([list(range(1, 60))] * 40, "set", vocab_size=60))


def blend_of(*datasets: IndexedDataset) -> Blend:
    sources = [Source(each, range(each.num_documents)) for each in datasets]
    return Blend(sources, sequence_length=8, num_samples=600, seed=3, vocab_size=60)


def line_of(blend: Blend) -> str:
    """What the first sample that cannot be read says."""
    with pytest.raises(RootsError) as caught:
        read_all(blend)
    (line,) = caught.value.lines
    return line


def read_all(blend: Blend) -> list[list[int]]:
    return [blend[number].tokens.tolist() for number in range(len(blend))]


def test_tokens_are_those_of_an_array(tmp_path: Path) -> None:
    array = np.arange(1000, dtype="<u2")
    array.tofile(tmp_path / "x.bin")
    file = TokenFile(tmp_path / "x.bin", array.dtype)
    assert len(file) == 1000
    for span in (slice(0, 3), slice(990, 2000), slice(5, 5), slice(7, 2), slice(-2, None)):
        assert file[span].tolist() == array[span].tolist()
        assert file[span].dtype == array.dtype


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(100, dtype="<i4")
    array.tofile(tmp_path / "x.bin")
    file = TokenFile(tmp_path / "x.bin", array.dtype)
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda number, size, at: whole(number, min(size, 7), at))
    assert file[10:90].tolist() == array[10:90].tolist()


def test_descriptor_goes_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"1234")
    before = set(os.listdir("/proc/self/fd"))
    file = TokenFile(tmp_path / "x.bin", np.dtype("<u2"))
    assert len(file) == 2
    del file
    assert set(os.listdir("/proc/self/fd")) <= before


def test_tokens_that_were_cut_off_are_told_with_the_sample(dataset: IndexedDataset) -> None:
    blend = blend_of(dataset)
    size = dataset.bin_path.stat().st_size
    os.truncate(dataset.bin_path, size // 2)
    line = line_of(blend)
    assert line.startswith(f"{dataset.bin_path}, sample ")
    rule = f"has {size // 2:,} bytes left of the {size:,} it had when opened"
    assert line.endswith(f": {rule}; put a whole copy there and start again")


def test_disk_that_fails_is_told_with_the_sample(
    dataset: IndexedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    blend = blend_of(dataset)
    monkeypatch.setattr(os, "pread", fail)
    assert line_of(blend) == (
        f"{dataset.bin_path}, sample 0: cannot be read (Input/output error); put a whole copy "
        "there and start again"
    )


@pytest.mark.parametrize("which", ["idx", "epoch", "blend"])
def test_index_that_was_cut_off_is_told_and_kills_nobody(
    dataset: IndexedDataset, write_dataset, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading what is no longer behind a mapping would be a SIGBUS."""
    monkeypatch.setattr("roots.data.index.BLOCK_ENTRIES", 1)
    other = IndexedDataset(write_dataset([[1] * 40] * 30, "other", vocab_size=60))
    blend = blend_of(dataset, other)
    blend[0]
    cache = dataset.bin_path.parent / "index-cache"
    cut = {
        "idx": [dataset.idx_path],
        "epoch": list(cache.glob("*.order.npy")),
        "blend": list(cache.glob("*.sample.npy")),
    }[which]
    for path in cut:
        os.truncate(path, 100)
    path, _, rest = line_of(blend).partition(", sample ")
    assert Path(path) in cut
    assert "has 100 bytes left of the " in rest


def test_pairs_that_were_cut_off_are_told_with_the_document(write_dataset) -> None:
    sides = [IndexedDataset(write_dataset([[1, 2, 3]] * 4000, name, 60)) for name in ("s", "t")]
    source = Source(sides[0], range(4000), target=sides[1])
    pairs = PairDataset(source, shape=PairShape(8, 8), seed=1, vocab_size=60)
    os.truncate(sides[1].bin_path, 0)
    with pytest.raises(RootsError) as caught:
        pairs[0]
    assert str(caught.value).startswith(f"{sides[1].bin_path}, document ")
    os.truncate(sides[0].idx_path, 5000)
    with pytest.raises(UnreadableFile, match=r"s\.idx: has 5,000 bytes left of the "):
        pairs.lengths(0)


def test_arrays_in_memory_are_no_files(tmp_path: Path) -> None:
    check_mapped(np.arange(3))
    np.save(tmp_path / "x.npy", np.arange(3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    check_mapped(mapped)
    os.truncate(tmp_path / "x.npy", 130)
    with pytest.raises(UnreadableFile, match=r"x\.npy: has 130 bytes left of the 152 it had"):
        check_mapped(mapped)


def test_epoch_that_finds_no_room_in_the_cache_is_made_in_memory(
    dataset: IndexedDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one must, so that a run that cannot keep its index does not begin."""
    whole = read_all(blend_of(dataset))
    monkeypatch.setattr("roots.data.index.BLOCK_ENTRIES", 1)
    blend = blend_of(dataset)

    def full(*_: object) -> None:
        raise RootsError("index cache: cannot be written")

    monkeypatch.setattr("roots.data.cache._store", full)
    assert read_all(blend) == whole
    assert set(caplog.messages) == {"index cache: cannot be written; made in memory for now"}
    with pytest.raises(RootsError, match="index cache: cannot be written"):
        Blend([Source(dataset, range(5))], sequence_length=8, num_samples=9, seed=4, vocab_size=60)


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_file_without_the_right_to_read_it_says_what_helps(
    dataset: IndexedDataset, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = f"{dataset.prefix}{ending}"

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    if ending == ".bin":
        monkeypatch.setattr(os, "open", refuse)
    else:
        monkeypatch.setattr("roots.data.indexed._read_header", refuse)
    with pytest.raises(RootsError) as caught:
        IndexedDataset(dataset.prefix)
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert caught.value.lines == (
        f"{refused}: cannot be read (Permission denied); give its reader the rights to it and its "
        "folder, and start again",
    )
