"""One rank's error is everyone's error, told once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from roots.errors import ExitCode, RootsError
from roots.parallel.mesh import Mesh
from roots.parallel.shared_errors import together
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed


def collect(rank: int, world_size: int, failing: tuple[int, ...]) -> object:
    """What `together` did on this rank: its result, or (lines, code, speaks)."""
    mesh = Mesh.create(Topology(data=world_size))

    def action() -> int:
        if rank in failing:
            raise RootsError("shared line", f"line of {rank}", exit_code=ExitCode.DIVERGED)
        return 10 * rank

    try:
        return together(mesh.world, action)
    except RootsError as error:
        return error.lines, error.exit_code, error.speaks


def test_results_come_back_where_nobody_fails() -> None:
    assert run_distributed(collect, 3, ()) == [0, 10, 20]


def test_every_rank_raises_all_lines_once_and_only_the_first_speaks() -> None:
    lines = ("shared line", "line of 1", "line of 2")
    assert run_distributed(collect, 3, (1, 2)) == [
        (lines, ExitCode.DIVERGED, True),
        (lines, ExitCode.DIVERGED, False),
        (lines, ExitCode.DIVERGED, False),
    ]


def test_missing_permission_is_a_users_error(tmp_path: Path) -> None:
    def action() -> None:
        (tmp_path / "absent" / "file").write_text("x")

    with pytest.raises(RootsError) as caught:
        together(Mesh.single().world, action)
    assert caught.value.lines == (
        f"{tmp_path}/absent/file: cannot be used (No such file or directory); check the path and "
        "its disk",
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_full_disk_has_a_code_of_its_own(number: int) -> None:
    """It may have room again when the run is started again."""

    def action() -> None:
        raise OSError(number, os.strerror(number), "runs/a/config.yaml")

    with pytest.raises(RootsError) as caught:
        together(Mesh.single().world, action)
    passes = number != errno.EACCES
    assert caught.value.exit_code is (ExitCode.NOT_SAVED if passes else ExitCode.BAD_INPUT)


def test_a_bug_passes_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        together(Mesh.single().world, lambda: 1 // 0)
