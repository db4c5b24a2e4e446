"""The helper under all distributed tests: results by rank, the first failure, and no leftovers."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.helpers.distributed import RankFailure, run_distributed


def _report(rank: int, world_size: int, value: torch.Tensor) -> tuple[torch.Tensor, int, str, int]:
    total = value + rank
    dist.all_reduce(total)
    return total, torch.get_num_threads(), os.environ["WORLD_SIZE"], os.getpid()


@pytest.mark.distributed
def test_results_come_back_by_rank_from_real_processes() -> None:
    found = run_distributed(_report, 2, torch.ones(3))
    for total, threads, world_size, _ in found:
        assert torch.equal(total, torch.full((3,), 3.0))
        assert (threads, world_size) == (1, "2")
    assert len({os.getpid(), *(process for *_, process in found)}) == 3


def _fail_on_last(rank: int, world_size: int) -> None:
    if rank == world_size - 1:
        raise ValueError(f"broken on rank {rank}")
    dist.barrier()


@pytest.mark.distributed
def test_the_failing_rank_is_named_with_its_traceback() -> None:
    with pytest.raises(
        RankFailure, match=r"(?s)rank 1 failed:.*in _fail_on_last.*broken on rank 1"
    ):
        run_distributed(_fail_on_last, 2)


def _die(rank: int, world_size: int) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


@pytest.mark.distributed
def test_a_killed_rank_is_noticed_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(RankFailure, match="rank 0 died without a word"):
        run_distributed(_die, 2, timeout_seconds=100)
    assert time.monotonic() - started < 50


def _hang_on_first(rank: int, world_size: int) -> int:
    if rank == 0:
        signal.pause()
    return os.getpid()


@pytest.mark.distributed
def test_ranks_that_do_not_end_are_killed() -> None:
    with pytest.raises(RankFailure, match=r"ranks \[0, 1\] did not end within 3 s"):
        run_distributed(_hang_on_first, 2, timeout_seconds=3)
