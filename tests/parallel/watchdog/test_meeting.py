"""Real ranks of which one does not come, or dies before all have met: the others say which."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from roots.config.training import WatchdogConfig
from roots.device import LaunchEnvironment
from roots.errors import ExitCode
from roots.parallel.watchdog.link import Hub
from roots.parallel.watchdog.meeting import Meeting
from roots.parallel.watchdog.record import Marks
from roots.training.signals import StopSignals
from tests.helpers.faults import Ended, be_watched, run_ranks

pytestmark = [pytest.mark.distributed]

SECONDS = 1.5
SOON = WatchdogConfig(timeout_seconds=SECONDS, start_seconds=SECONDS)
LATE = WatchdogConfig(timeout_seconds=SECONDS, start_seconds=30.0)
HOST = os.uname().nodename
FIX = "see whether these ranks were started and what they say, then start again"


def _meet(
    place: LaunchEnvironment, folder: Path, section: WatchdogConfig, deaths: dict[int, str]
) -> None:
    """A rank that joins the others, or dies: at once, or at one of the moments named below."""

    def die(*_: Any, **named: Any) -> None:
        (folder / "fault").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    let_in = Hub.let_in

    def die_after_rank_2(hub: Hub) -> int | None:
        rank = let_in(hub)
        if rank == 2:
            die()
        return rank

    def die_at_the_door() -> None:
        """As the store's server, of which both threads of the other rank want something."""
        held = list[socket.socket]()
        with socket.create_server((place.master_addr, place.master_port)) as door:
            while sum(len(each.recv(1, socket.MSG_PEEK)) for each in held) < 2:
                held.append(door.accept()[0])
            die()

    moment = deaths.get(place.rank)
    with pytest.MonkeyPatch.context() as patch:
        if moment == "at once":
            die()
        if moment == "at the door":
            die_at_the_door()
        if moment == "having come":
            patch.setattr(Meeting, "_hear", die)
        if moment == "after rank 2":
            patch.setattr(Hub, "let_in", die_after_rank_2)
        if moment == "in the group":
            patch.setattr(dist, "all_gather_object", die)
        marks = Marks()
        marks.cut_off = lambda code: _note(folder / f"ended_{place.rank}", str(code))
        marks.outlived = lambda code, cause: _note(folder / "outlived", f"{code}, {cause}")
        be_watched(place, folder, section, _never, (), marks=marks)


def _note(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def _meet_and_be_told(place: LaunchEnvironment, folder: Path, seconds: float) -> None:
    """Rank 1 is killed before it comes; the launcher tells rank 0 to stop, and waits for it.

    `seconds`: after which it does; 0 for a rank 0 that has not come either.
    """
    with StopSignals() as signals:
        if place.rank == 0:
            (folder / "fault").touch()
            if seconds:
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        if place.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        be_watched(place, folder, LATE, _never, (), signals.stop_requested)


def _never(rank: int, marks: Marks) -> None:
    raise AssertionError("they have not all met")


def meet(
    folder: Path, section: WatchdogConfig, deaths: dict[int, str], size: int = 4
) -> tuple[str, float]:
    """The one line of `size` ranks; how long after the fault the last one ended."""
    ended: list[Ended] = run_ranks(_meet, size, folder, folder, section, deaths)
    said = "".join(each.stderr for each in ended)
    lines = [line for line in said.splitlines() if line.startswith("roots: error: ")]
    codes = [-signal.SIGKILL if rank in deaths else ExitCode.LOST for rank in range(size)]
    assert [each.code for each in ended] == codes, said
    assert len(lines) == 1, said
    return lines[0].removeprefix("roots: error: "), max(each.seconds for each in ended)


def test_ranks_that_do_not_come_are_named_with_those_that_have(tmp_path: Path) -> None:
    line, seconds = meet(tmp_path, SOON, {1: "at once", 3: "at once"})
    assert line == (
        "ranks 1,3 of 4: have not come to rank 0 within 1.5 s (watchdog.start_seconds); "
        f"ranks 0,2 on host {HOST} have; {FIX}"
    )
    assert SECONDS / 2 < seconds < SECONDS + 3


def test_rank_that_dies_before_all_have_come_is_named_at_once(tmp_path: Path) -> None:
    line, seconds = meet(tmp_path, LATE, {2: "having come", 3: "at once"})
    assert re.fullmatch(
        f"rank 2 on host {HOST}: has died before all ranks had met; ranks? 0(,1)? on host {HOST} "
        f"ha(s|ve) come, ranks? (1,)?3 not; {FIX}",
        line,
    )
    assert seconds < 10


def test_rank_that_dies_while_the_group_forms_is_named_at_once(tmp_path: Path) -> None:
    line, seconds = meet(tmp_path, LATE, {2: "in the group"})
    assert line.startswith(f"rank 2 on host {HOST}: has died before all ranks had met; ")
    assert seconds < 10
    # Its main thread, in a call of torch, cannot tell the ledger.
    assert (tmp_path / "ended_0").read_text() == "7\n"
    assert not (tmp_path / "outlived").exists()


def test_another_rank_speaks_where_rank_0_does_not_come(tmp_path: Path) -> None:
    """And rank 1, the next, does neither."""
    line, seconds = meet(tmp_path, SOON, {0: "at once", 1: "at once"})
    assert re.fullmatch(
        r"rank 0: has not come to 127.0.0.1:\d+ within 1.5 s \(watchdog.start_seconds\); "
        f"ranks 2,3 on host {HOST} wait for it, of rank 1 nothing is known; {FIX}",
        line,
    )
    assert SECONDS / 2 < seconds < SECONDS + 4


def test_another_rank_speaks_where_rank_0_dies(tmp_path: Path) -> None:
    line, seconds = meet(tmp_path, LATE, {0: "after rank 2", 1: "at once"})
    assert re.fullmatch(
        f"rank 0 on host {HOST}: has died before all ranks had met; ranks? 2(,3)? on host {HOST} "
        f"waits? for it, of ranks? 1(,3)? nothing is known; {FIX}",
        line,
    )
    assert seconds < 10
    assert (tmp_path / "outlived").read_text() == "7, rank 0 died\n"


def test_rank_0_that_dies_while_another_opens_its_store_holds_it_up_no_longer(
    tmp_path: Path,
) -> None:
    line, seconds = meet(tmp_path, SOON, {0: "at the door"}, size=2)
    assert re.fullmatch(
        r"rank 0: has not come to 127.0.0.1:\d+ within 1.5 s \(watchdog.start_seconds\); "
        f"rank 1 on host {HOST} waits for it; {FIX}",
        line,
    )
    assert seconds < SECONDS + 6


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_rank_that_is_told_to_stop_while_another_is_missing_ends_with_all_others(
    tmp_path: Path, seconds: float
) -> None:
    """Of rank 1 only the launcher knows; nobody takes rank 0 for the one that has died."""
    ended = run_ranks(_meet_and_be_told, 4, tmp_path, tmp_path, seconds)
    said = "".join(each.stderr for each in ended)
    lines = [line for line in said.splitlines() if line.startswith("roots: ")]
    assert lines == ["roots: stopped before all ranks had met, nothing to save"], said
    codes = [each.code for each in ended]
    assert codes[:2] == [ExitCode.INTERRUPTED, -signal.SIGKILL]
    assert {*codes[2:]} <= {ExitCode.INTERRUPTED, ExitCode.LOST}
    assert max(each.seconds for each in ended) < 15
