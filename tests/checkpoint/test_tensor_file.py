"""Files of boxes: they read back in any part, by reading little more, and damage is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from roots.checkpoint import tensor_file
from roots.checkpoint.boxes import Box
from roots.checkpoint.manifest import describe_files
from roots.checkpoint.tensor_file import (
    Entry,
    StoredBox,
    block_for_reading,
    read_boxes,
    read_part,
    write_entries,
)
from roots.errors import RootsError

MEBIBYTE = 1 << 20


def entry(name: str, data: Tensor, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Entry:
    return Entry(name, shape, Box(offsets, tuple(data.shape)), data)


def read(stored: StoredBox, part: Box, out: Tensor) -> Tensor:
    descriptor = os.open(stored.file, os.O_RDONLY)
    try:
        read_part(descriptor, stored, part, out, block_for_reading())
    finally:
        os.close(descriptor)
    return out


def test_entries_read_back_and_are_plain_safetensors(tmp_path: Path) -> None:
    """Strided ones too, in any dtype, and several boxes of one tensor; with length and digest."""
    path = tmp_path / "a.safetensors"
    first = torch.arange(12.0).view(3, 4).t()
    second = torch.arange(6).view(2, 3).to(torch.bfloat16)
    scalar = torch.tensor(7.0, dtype=torch.float16)
    entries = [
        entry("x", first, (1, 0), (5, 9)),
        entry("y", second, (0, 0), (2, 3)),
        entry("x", first[:, :0], (0, 3), (5, 9)),
        entry("z", scalar, (), ()),
        entry("x", first[1:2], (0, 5), (5, 9)),
    ]
    record = write_entries(path, entries)
    assert {path.name: record} == describe_files(tmp_path, [path.name])
    found = {(each.tensor, each.box): each for each in read_boxes(path)}
    assert found.keys() == {(each.tensor, each.box) for each in entries}
    for each in entries:
        stored = found[each.tensor, each.box]
        assert (stored.shape, stored.dtype) == (each.shape, each.data.dtype)
        whole = Box((0,) * each.data.ndim, each.box.sizes)
        assert torch.equal(read(stored, whole, torch.empty_like(each.data)), each.data)
    assert set(load_file(path)) == {"x", "x#1", "x#2", "y", "z"}


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, ...], Box]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    offsets = tuple(draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(
        draw(st.integers(1, size - offset)) for size, offset in zip(shape, offsets, strict=True)
    )
    return shape, Box(offsets, sizes)


@given(case=parts(), small=st.booleans(), cast=st.booleans(), strided=st.booleans())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_reads_whatever_takes_it(
    case: tuple[tuple[int, ...], Box],
    small: bool,
    cast: bool,
    strided: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Into views, of another dtype; row by row, or with what lies between, some rows at a time."""
    shape, part = case
    monkeypatch.setattr(tensor_file, "_SHORT_RUN_BYTES", 8 if small else 64)
    monkeypatch.setattr(tensor_file, "_BLOCK_BYTES", 40)
    data = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    path = tmp_path / "a.safetensors"
    write_entries(path, [entry("x", data, (0,) * len(shape), shape)])
    (stored,) = read_boxes(path)
    dtype = torch.bfloat16 if cast else torch.float32
    out = torch.zeros([2 * size for size in part.sizes] if strided else part.sizes, dtype=dtype)
    view = out[tuple(slice(None, None, 2) for _ in part.sizes)] if strided else out
    read(stored, part, view)
    cut = tuple(slice(a, a + b) for a, b in zip(part.offsets, part.sizes, strict=True))
    assert torch.equal(view, data[cut].to(dtype))
    if strided:
        assert torch.count_nonzero(out) <= view.numel()


def bytes_read(path: Path, part: Box, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Of reading `part`: all bytes, and the most at once."""
    (stored,) = read_boxes(path)
    sizes: list[int] = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        sizes.append(sum(map(len, buffers)))
        return preadv(descriptor, buffers, offset)

    with monkeypatch.context() as patched:
        patched.setattr("os.preadv", counted)
        read(stored, part, torch.empty(part.sizes))
    return sum(sizes), max(sizes)


def test_a_part_is_read_with_little_more_than_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows exactly; of columns the short ones with what lies between, but 16 MiB at a time."""
    path = tmp_path / "a.safetensors"
    shape = (16, 1 << 20)
    write_entries(path, [entry("x", torch.zeros(shape), (0, 0), shape)])
    rows = Box((3, 0), (2, 1 << 20))
    assert bytes_read(path, rows, monkeypatch) == (8 * MEBIBYTE, 8 * MEBIBYTE)
    half = Box((0, 1 << 19), (16, 1 << 19))
    assert bytes_read(path, half, monkeypatch) == (32 * MEBIBYTE, 2 * MEBIBYTE)
    narrow = Box((0, 5), (16, 7))
    total, most = bytes_read(path, narrow, monkeypatch)
    assert total <= 64 * MEBIBYTE
    assert most <= 16 * MEBIBYTE


def header_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    tree: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tree


def with_header(path: Path, header: dict[str, Any]) -> None:
    content = path.read_bytes()
    old = int.from_bytes(content[:8], "little")
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + old :])


def boxes_changed(**fields: Any) -> Any:
    def change(header: dict[str, Any]) -> None:
        records = json.loads(header["__metadata__"]["boxes"])
        records["x"].update(fields)
        header["__metadata__"]["boxes"] = json.dumps(records)

    return change


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (boxes_changed(offsets=[4, 0]), "x reaches out of its tensor"),
        (boxes_changed(offsets=[0]), "x is not of the dimensions of its tensor"),
        (boxes_changed(shape=[6, -4]), "are no sizes"),
        (boxes_changed(offsets=[True, 0]), "are no sizes"),
        (lambda tree: tree["x"].update(shape=[3, 5]), "is not that of its shape"),
        (lambda tree: tree["x"].update(data_offsets=[400, 448]), "is not that of its shape"),
        (lambda tree: tree["x"].update(dtype="F31"), "KeyError: 'F31'"),
        (lambda tree: tree.pop("__metadata__"), "KeyError: '__metadata__'"),
        (lambda tree: tree.pop("x"), "KeyError: 'x'"),
        (lambda tree: tree.update(__metadata__={"boxes": "["}), "JSONDecodeError"),
        (lambda tree: tree.update(__metadata__={}), "KeyError: 'shards'"),
    ],
)
def test_header_that_describes_no_boxes_is_refused(change: Any, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_entries(path, [entry("x", torch.zeros(3, 4), (3, 0), (6, 4))])
    header = header_of(path)
    change(header)
    with_header(path, header)
    with pytest.raises(RootsError) as caught:
        read_boxes(path)
    (line,) = caught.value.lines
    assert line.startswith(f"checkpoint file={str(path)!r}: holds no weights of ROOTS (")
    assert rule in line
    assert line.endswith("; use another checkpoint of the run")


@pytest.mark.parametrize("length", [0, 7, 9, 60])
def test_file_that_ends_in_its_header_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_entries(path, [entry("x", torch.zeros(3, 4), (0, 0), (3, 4))])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(RootsError, match="holds no weights of ROOTS"):
        read_boxes(path)


def test_file_that_shrinks_after_its_header_was_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_entries(path, [entry("x", torch.zeros(3, 4), (0, 0), (3, 4))])
    (stored,) = read_boxes(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RootsError) as caught:
        read(stored, Box((0, 0), (3, 4)), torch.empty(3, 4))
    assert caught.value.lines == (
        f"checkpoint file={str(path)!r}: is cut short; use another checkpoint of the run",
    )


def test_files_of_the_first_format_hold_fused_parts_one_after_the_other(tmp_path: Path) -> None:
    """An entry of version 1 is a box for each interval of its rank's rows."""
    path = tmp_path / "a.safetensors"
    whole = torch.arange(24.0).view(12, 2)
    held = torch.cat([whole[2:4], whole[6:8], whole[10:12]])
    shards = {
        "qkv": {"shape": [12, 2], "dim": 0, "intervals": [[2, 4], [6, 8], [10, 12]]},
        "norm": {"shape": [3], "dim": None, "intervals": []},
    }
    save_file({"qkv": held, "norm": torch.ones(3)}, path, {"shards": json.dumps(shards)})
    found = {(each.tensor, each.box.offsets): each for each in read_boxes(path)}
    assert found.keys() == {("qkv", (2, 0)), ("qkv", (6, 0)), ("qkv", (10, 0)), ("norm", (0,))}
    for start in (2, 6, 10):
        out = read(found["qkv", (start, 0)], Box((1, 0), (1, 2)), torch.empty(1, 2))
        assert torch.equal(out, whole[start + 1 : start + 2])
