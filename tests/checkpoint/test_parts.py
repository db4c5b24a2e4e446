"""What a rank adds to a checkpoint, and the records that whoever seals it joins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from roots.checkpoint.boxes import Box
from roots.checkpoint.manifest import describe_files
from roots.checkpoint.parts import RECORDS_FOLDER, join_records, write_part
from roots.checkpoint.store import TensorStore
from roots.checkpoint.tensor_file import Entry, read_boxes
from roots.errors import RootsError
from roots.parallel.shard import replicated


def entries(rank: int, *kinds: str) -> list[Entry]:
    box = Box((rank,), (1,))
    return [Entry(f"{kind}x", (4,), box, torch.tensor([float(rank)])) for kind in kinds]


def test_weights_and_optimizer_have_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "other.pt").write_bytes(b"123")
    record = write_part(tmp_path, 2, [entries(2, "", "master/", "exp_avg/")], ["other.pt"])
    names = ["optimizer/rank_00002.safetensors", "other.pt", "weights/rank_00002.safetensors"]
    assert sorted(record.files) == names
    assert record.files == describe_files(tmp_path, names)
    assert record.num_bytes == sum((tmp_path / name).stat().st_size for name in names)
    assert [each.tensor for each in read_boxes(tmp_path / names[2])] == ["x"]
    found = {each.tensor for each in read_boxes(tmp_path / names[0])}
    assert found == {"master/x", "exp_avg/x"}


def test_entry_is_checked_when_its_file_is_written(tmp_path: Path) -> None:
    """One after the other, so that the disk is busy from the first on; none after a bad one."""
    checked: list[str] = []

    def check(entry: Entry) -> None:
        checked.append(entry.tensor)
        if entry.tensor == "exp_avg/x":
            raise ValueError("bad")
        assert (tmp_path / "optimizer").exists() == ("/" in entry.tensor)

    group = entries(0, "master/", "exp_avg/", "exp_avg_sq/", "")
    with pytest.raises(ValueError, match="bad"):
        write_part(tmp_path, 0, [group], (), check)
    assert checked == ["x", "master/x", "exp_avg/x"]
    assert not (tmp_path / RECORDS_FOLDER).exists()


def test_groups_are_written_while_they_are_good(tmp_path: Path) -> None:
    """As those on NVMe, which are read back one after the other into the same memory."""
    shared = torch.zeros(1)

    def one_after_the_other() -> Iterator[list[Entry]]:
        for number in range(3):
            shared.fill_(number)
            kinds = ("", "exp_avg/") if number else ("exp_avg/",)
            yield [Entry(f"{kind}{number}", (1,), Box((0,), (1,)), shared) for kind in kinds]

    record = write_part(tmp_path, 2, one_after_the_other())
    names = ["rank_00002", "rank_00002_00001", "rank_00002_00002"]
    assert sorted(record.files) == [
        *(f"optimizer/{name}.safetensors" for name in names),
        *(f"weights/{name}.safetensors" for name in names[1:]),
    ]
    store = TensorStore(tmp_path, [tmp_path / name for name in record.files])
    for key in ("exp_avg/0", "1", "exp_avg/1", "2", "exp_avg/2"):
        assert store.read(replicated(key, (1,))).item() == int(key[-1])


def test_records_of_all_ranks_are_joined_and_removed(tmp_path: Path) -> None:
    """A rank may have written nothing, and has a record all the same."""
    written = [write_part(tmp_path, 0, [entries(0, "")]), write_part(tmp_path, 1, [[]])]
    assert written[1].files == {}
    assert join_records(tmp_path, 2) == written
    assert not (tmp_path / RECORDS_FOLDER).exists()


def test_missing_record_is_told(tmp_path: Path) -> None:
    write_part(tmp_path, 0, [entries(0, "")])
    path = tmp_path / RECORDS_FOLDER / "rank_00001.json"
    with pytest.raises(RootsError) as caught:
        join_records(tmp_path, 2)
    assert caught.value.lines == (
        f"checkpoint file={str(path)!r}: is missing, though its rank has written it; do all hosts "
        "see the same folder? put run.directory on a shared file system",
    )
