"""What a rank tells torchrun, which starts again whatever does not end with 0; who started it."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.sources import ROOT


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """launch/rank.py as torchrun starts it, without the thread that watches torchrun."""
    spec = importlib.util.spec_from_file_location("rank", ROOT / "launch" / "rank.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_end_with", lambda starters: None)
    for name, value in (
        ("RANK", "1"),
        ("OMP_NUM_THREADS", "1"),
        ("TORCHELASTIC_RUN_ID", "run"),
        ("ROOTS_RANK_RECORDS", str(tmp_path)),
        ("ROOTS_RANK_RECORD", ""),
    ):
        monkeypatch.setenv(name, value)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = {number: signal.getsignal(number) for number in module.STOP_SIGNALS}
    yield module
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.alarm(0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_rank_that_is_not_to_start_again_ends_well_for_torchrun(
    rank: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    for code in rank.FINAL_CODES:
        monkeypatch.setattr(rank, "_run", lambda words, code=code: starts.append(code) or code)
        assert rank.main([]) == 0
        assert (tmp_path / "1.code").read_text("ascii").split()[1] == str(code)
        # Another rank may not have ended so; torchrun then starts all again, but not this run.
        assert rank.main([]) == 0
        (tmp_path / "1.code").unlink()
    assert starts == list(rank.FINAL_CODES)


def test_rank_that_has_crashed_starts_again(
    rank: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (7, 1, 0):
        monkeypatch.setattr(rank, "_run", lambda words, code=code: code)
        assert rank.main([]) == code
        assert (tmp_path / "1.code").read_text("ascii").split()[1] == str(code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_rank_that_is_told_to_stop_after_it_has_saved_records_its_code(
    rank: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """DeepSpeed's launcher sends SIGTERM to all others as soon as one rank has ended with 3."""
    from roots.training.signals import StopSignals

    def saves(words: list[str]) -> int:
        with StopSignals():
            pass
        os.kill(os.getpid(), number)
        return 3

    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setattr(rank, "_run", saves)
    assert rank.main([]) == 3
    assert (tmp_path / "1.code").read_text("ascii").split()[1] == "3"
    # It has not for ever.
    assert 0 < signal.alarm(0) <= 30


def test_script_looks_for_the_same_codes(rank: ModuleType) -> None:
    codes = "|".join(map(str, rank.FINAL_CODES))
    assert f'final="{codes}"' in (ROOT / "launch" / "torchrun.sh").read_text("ascii")


# The parents of a rank: of each process its own. The script is the first process in a container.
LINE = {7: 5, 5: 3, 3: 1}


@pytest.mark.parametrize(
    "script, expected",
    [
        ("5", {7: "at 7", 5: "at 5"}),
        ("1", {7: "at 7", 5: "at 5", 3: "at 3"}),
        ("9", {7: "at 7", 5: "at 5", 3: "at 3", 9: ""}),
        ("", {7: "at 7"}),
    ],
    ids=["here", "first in a container", "gone", "none"],
)
def test_rank_ends_with_those_between_it_and_its_script(
    rank: ModuleType, monkeypatch: pytest.MonkeyPatch, script: str, expected: dict[int, str]
) -> None:
    monkeypatch.setenv("ROOTS_LAUNCHER", script)
    monkeypatch.setattr(rank.os, "getppid", lambda: 7)
    monkeypatch.setattr(rank, "_look_at", lambda pid: ("name", LINE[pid], f"at {pid}"))
    assert rank._starters() == expected
