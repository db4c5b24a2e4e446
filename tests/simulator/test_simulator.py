"""What the simulator promises: CUDA's semantics, named errors, and bugs that show."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import numpy as np
import pytest

Call = Callable[..., str]
SEEDS = range(20)
POISON = 0xFFFFFFFF


def wrong_seeds(run: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of 20 schedules make `run` say False."""
    wrong = 0
    for seed in SEEDS:
        monkeypatch.setenv("ROOTS_SIMULATOR_SEED", str(seed))
        wrong += not run()
    return wrong


@pytest.mark.parametrize("threads", [1, 32, 33, 256, 1024])
def test_threads_see_what_others_wrote_before_a_barrier(
    call: Call, seed: int, threads: int
) -> None:
    x = np.arange(threads, dtype=np.float32)
    y = np.zeros_like(x)
    assert call("reverse", x, y, threads, 1) == ""
    np.testing.assert_array_equal(y, x[::-1])


def test_missing_barrier_shows_with_every_schedule(call: Call, seed: int) -> None:
    x = np.arange(128, dtype=np.float32)
    y = np.zeros_like(x)
    assert call("reverse", x, y, 128, 0) == ""
    assert not np.array_equal(y, x[::-1])


def test_missing_second_barrier_shows_with_some_schedules(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rotates(barrier: int) -> bool:
        x = np.arange(128, dtype=np.float32)
        assert call("rotate", x, 128, 3, barrier) == ""
        return np.array_equal(x, (np.arange(128) + 3) % 128)

    assert wrong_seeds(lambda: rotates(1), monkeypatch) == 0
    assert wrong_seeds(lambda: rotates(0), monkeypatch) >= 5


@pytest.mark.parametrize(
    "kind, expected",
    [
        (0, "threads wait for it at __syncthreads of barriers.cu|but .* threads have exited"),
        (1, "threads wait for it at __syncthreads of barriers.cu|but 32 of 64 threads have exited"),
        (2, r"meet at different places: __syncthreads of barriers.cu:\d+, __syncthreads of"),
    ],
)
def test_divergent_barrier_is_named(call: Call, seed: int, kind: int, expected: str) -> None:
    message = call("divergent", kind)
    assert re.search(expected, message), message
    assert re.search(r"block \(0, 0, 0\), thread \(\d+, 0, 0\)", message), message


def test_deadlock_is_named(call: Call, seed: int) -> None:
    message = call("crossed")
    assert re.search(
        r"deadlock of 64 threads: thread \(0, 0, 0\) waits at barrier_sync of barriers.cu:\d+, "
        r"thread \(32, 0, 0\) at barrier_sync of barriers.cu:\d+",
        message,
    ), message


def test_barriers_that_vote(call: Call, seed: int) -> None:
    for votes in (np.ones(70), np.zeros(70), np.arange(70) % 3 == 0):
        votes = votes.astype(np.int32)
        results = np.zeros((70, 3), dtype=np.int32)
        assert call("vote", votes, results, 70) == ""
        expected = [votes.sum(), votes.all(), votes.any()]
        np.testing.assert_array_equal(results, np.tile(expected, (70, 1)))


def test_named_barriers_hand_over(call: Call, seed: int) -> None:
    x = np.arange(5 * 32, dtype=np.float32).reshape(5, 32)
    y = np.zeros_like(x)
    assert call("hand_over", x, y, 5) == ""
    np.testing.assert_array_equal(y, x[:, ::-1])


def test_named_barrier_of_a_part_of_a_warp_is_refused(call: Call) -> None:
    assert "with id 1 and 40 threads; ids are 0 to 15, threads come in warps" in call("odd_barrier")


def source_lane(kind: int, lane: int, operand: int, width: int) -> int:
    """The lane that a shuffle reads, by the CUDA C++ programming guide, 'Warp shuffle'."""
    first, last = lane & ~(width - 1), lane | (width - 1)
    if kind == 0:
        return first | operand & (width - 1)
    if kind == 1:
        return lane - operand if lane - operand >= first else lane
    if kind == 2:
        return lane + operand if lane + operand <= last else lane
    return lane ^ operand if lane ^ operand <= last else lane


@pytest.mark.parametrize("width", [1, 2, 8, 32])
@pytest.mark.parametrize("kind", range(4), ids=["from", "up", "down", "xor"])
def test_shuffles_read_the_lane_of_the_guide(call: Call, seed: int, kind: int, width: int) -> None:
    for operand in (0, 1, 3, 9, 31):
        y = np.full(32, -1, dtype=np.int32)
        assert call("shuffle", kind, operand, width, y) == ""
        assert y.tolist() == [source_lane(kind, lane, operand, width) for lane in range(32)]


def test_halves_of_a_warp_reduce_by_themselves(call: Call, seed: int) -> None:
    x = np.arange(64, dtype=np.float32)
    y = np.zeros_like(x)
    assert call("halves", x, y) == ""
    np.testing.assert_array_equal(y, np.repeat(x.reshape(4, 16).sum(1), 16))


def test_votes(call: Call, seed: int) -> None:
    votes = (np.arange(32) % 5).astype(np.int32)
    results = np.zeros((32, 6), dtype=np.uint32)
    assert call("votes", votes, results) == ""
    ballot = sum(1 << lane for lane in range(32) if votes[lane] > 1)
    for lane in range(32):
        match = sum(1 << other for other in range(32) if votes[other] == votes[lane])
        assert results[lane].tolist() == [ballot, 1, 0, match, votes.sum(), 4]


@pytest.mark.parametrize(
    "kind, threads, expected",
    [
        (
            0,
            32,
            r"__shfl_sync of warps.cu:\d+ with mask 0xfffffffe, which lacks its own lane",
        ),
        (1, 40, "but lane 8 is absent: the block has 40 threads"),
        (2, 32, "but lane 31 has exited|exits while lanes of its warp wait for it at __shfl_sync"),
        (3, 32, r"but a lane that it meets is at __shfl_sync of warps.cu:\d+"),
        (4, 32, "with mask 0x7fffffff, |but a lane that it meets has mask 0x"),
        (5, 32, "reads lane 20, which mask 0xffff lacks"),
        (6, 32, "has width 12, no power of 2 up to 32"),
    ],
)
def test_misuse_of_a_shuffle_is_named(
    call: Call, seed: int, kind: int, threads: int, expected: str
) -> None:
    message = call("misuse", kind, threads, np.zeros(64, dtype=np.int32))
    assert re.search(expected, message), message


def test_missing_syncwarp_shows_with_some_schedules(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.arange(32, dtype=np.int32)

    def exchanges(barrier: int) -> bool:
        y = np.zeros_like(x)
        assert call("neighbour", x, y, barrier) == ""
        return np.array_equal(y, np.roll(x, -1))

    assert wrong_seeds(lambda: exchanges(1), monkeypatch) == 0
    assert wrong_seeds(lambda: exchanges(0), monkeypatch) >= 5


def test_shared_memory_is_poisoned_for_every_block(call: Call, seed: int) -> None:
    found = np.zeros((6, 32, 3), dtype=np.uint32)
    assert call("poison", found, 6) == ""
    assert (found == POISON).all()


def test_a_static_variable_is_one_for_the_block(call: Call, seed: int) -> None:
    y = np.zeros(64, dtype=np.int32)
    assert call("identity", y) == ""
    assert (y == 57).all()


def test_static_shared_memory_counts(call: Call) -> None:
    assert call("large", 16384) == ""
    assert "49168 bytes of static and dynamic shared memory are more than the 49152" in call(
        "large", 16400
    )


@pytest.mark.parametrize("x_shift, y_shift, name", [(1, 0, "load_pack"), (0, 2, "store_pack")])
def test_misaligned_access_is_named(call: Call, x_shift: int, y_shift: int, name: str) -> None:
    memory = np.zeros(64, dtype=np.float32)
    start = -memory.ctypes.data // 4 % 4
    x, y = memory[start : start + 8], memory[start + 16 : start + 24]
    assert call("copy", x, y) == ""
    message = call("copy", x[x_shift:], y[y_shift:])
    assert re.search(rf"{name} of 16 bytes at address 0x[0-9a-f]+, which is no multiple", message)


def test_atomics_across_blocks(call: Call, seed: int) -> None:
    x = np.random.default_rng(0).permutation(9 * 64).astype(np.float32)
    total = np.zeros(1, dtype=np.float32)
    largest = np.full(1, -1, dtype=np.int32)
    count = np.zeros(1, dtype=np.uint64)
    assert call("atomics", x, total, largest, count, 9) == ""
    assert (total[0], largest[0], count[0]) == (x.sum(), 575, 576)
    swapped = np.zeros(1, dtype=np.uint32)
    assert call("swaps", swapped, 5) == ""
    assert swapped[0] == 5 * sum(range(64))


def test_every_block_runs_once_in_an_order_that_the_seed_decides(call: Call, seed: int) -> None:
    order = np.zeros(3 * 5 * 7, dtype=np.uint32)
    assert call("block_order", np.zeros(1, dtype=np.uint32), order, 3, 5, 7) == ""
    assert sorted(order) == list(range(105))
    if os.environ.get("OMP_NUM_THREADS") == "1":
        assert (order.tolist() == sorted(order)) == (seed == 0)


ONE = (1, 1, 1)


@pytest.mark.parametrize(
    "grid, block, dynamic_bytes, allowed_bytes, expected",
    [
        (ONE, (1024, 1, 1), 0, 0, ""),
        (ONE, (1025, 1, 1), 0, 0, "refused: invalid configuration argument"),
        (ONE, (1, 1, 65), 0, 0, "refused: invalid configuration argument"),
        (ONE, (0, 1, 1), 0, 0, "refused: invalid configuration argument"),
        ((0, 1, 1), ONE, 0, 0, "refused: invalid configuration argument"),
        ((1, 65536, 1), ONE, 0, 0, "refused: invalid configuration argument"),
        (ONE, ONE, 48 << 10, 0, ""),
        (ONE, ONE, (48 << 10) + 1, 0, "refused: invalid argument"),
        (ONE, ONE, 227 << 10, 227 << 10, ""),
        (ONE, ONE, 0, (227 << 10) + 1, "refused: invalid argument"),
    ],
)
def test_limits_of_a_launch(
    call: Call,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    dynamic_bytes: int,
    allowed_bytes: int,
    expected: str,
) -> None:
    assert call("nothing", np.uint32(ONE), np.uint32(ONE), 0, 48 << 10) == ""
    assert call("nothing", np.uint32(grid), np.uint32(block), dynamic_bytes, allowed_bytes) == (
        expected
    )
