"""The kinds of faults: what each does to a run that trains, and how the run has to end by it.

Each function starts the run once, does its fault at a random moment, waits until no rank is left,
and says what has to be so at once. What has to be so in the end is the same for all: started again
the run comes to the same weights (tests/faults/scene.py, check_equal).
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable

from roots.checkpoint import folders
from roots.checkpoint.manifest import MANIFEST_NAME
from roots.errors import ExitCode
from tests.faults.arming import Armed
from tests.faults.ranks import Ranks
from tests.faults.scene import (
    PATIENCE,
    Scene,
    fill,
    flip_byte,
    no_process_left,
    small_disk,
    stop_all,
    truncate,
)

KILLED = -int(signal.SIGKILL)
# Milliseconds of a save are few.
_SAVE_SECONDS = 0.03
_STEP_SECONDS = 0.2
_START_SECONDS = 1.5
_LAUNCHER_SECONDS = 10.0


def _ends(scene: Scene, ranks: Ranks, dead: int | None = None) -> list[int]:
    """Wait until all ranks have ended by themselves; the others know of the dead one."""
    codes = ranks.wait(PATIENCE + scene.seconds_to_fault())
    assert no_process_left(ranks.pids())
    if dead is not None and set(codes) != {ExitCode.DONE}:
        assert codes[dead] == KILLED, ranks.said()
        assert all(code != ExitCode.DONE for code in codes), ranks.said()
    return codes


def _steps(scene: Scene) -> int:
    return scene.steps_to_fault(12)


def kill(scene: Scene) -> None:
    """SIGKILL a rank at any moment."""
    victim = scene.victim()
    with scene.ranks() as ranks:
        scene.until_fault(ranks, _steps(scene))
        scene.any_moment(ranks, _STEP_SECONDS)
        ranks.send(victim, signal.SIGKILL)
        _ends(scene, ranks, victim)


def kill_in_start(scene: Scene) -> None:
    """SIGKILL a rank before its first step.

    Ranks that have not met yet cannot know of each other: the launcher ends them, as all do.
    """
    victim = scene.victim()
    with scene.ranks() as ranks:
        scene.any_moment(ranks, _START_SECONDS)
        ranks.send(victim, signal.SIGKILL)
        ranks.until(lambda: not ranks.running(), _LAUNCHER_SECONDS, vain=True)
        stop_all(ranks, signal.SIGKILL)
        assert no_process_left(ranks.pids()) or ranks.wait(PATIENCE)


def _at_step(scene: Scene, place: str, victim: int, after: int = 0) -> Armed:
    return Armed(place, victim, after + _steps(scene), moment=scene.moment or 0.0)


def _armed(scene: Scene, place: str, *, rank: int | None = None) -> None:
    victim = scene.victim() if rank is None else rank
    delay = scene.random.uniform(0.0, _SAVE_SECONDS)
    with scene.ranks(Armed(place, victim, 0, delay, scene.moment or 0.0)) as ranks:
        _ends(scene, ranks, victim)


def kill_in_save(scene: Scene) -> None:
    """SIGKILL a rank while it writes its part of a checkpoint."""
    _armed(scene, "while it writes")


def kill_before_rename(scene: Scene) -> None:
    """SIGKILL the first rank when a checkpoint is whole, before it has its name."""
    _armed(scene, "before the rename", rank=0)
    whole = [each for each in scene.root.glob("*.partial") if (each / MANIFEST_NAME).is_file()]
    assert len(whole) == 1 or scene.done()


def kill_after_rename(scene: Scene) -> None:
    """SIGKILL the first rank when a checkpoint has its name, and `latest` names the one before."""
    _armed(scene, "after the rename", rank=0)
    latest = scene.root / folders.LATEST_NAME
    named = latest.read_text(encoding="utf-8") if latest.exists() else None
    assert named != scene.saved()[-1].name or scene.done()


def kill_in_local_copy(scene: Scene) -> None:
    """SIGKILL a rank while it copies its state on its own machine."""
    _armed(scene, "in a local copy")


def terminate(scene: Scene) -> None:
    """SIGTERM to all ranks, as a scheduler does."""
    with scene.ranks() as ranks:
        if not scene.until_fault(ranks, _steps(scene)):
            return
        stop_all(ranks, signal.SIGTERM)
        codes = set(_ends(scene, ranks))
        assert codes <= {ExitCode.INTERRUPTED, ExitCode.DONE}, f"{codes}\n{ranks.said()}"
    assert folders.step_of(scene.saved()[-1]) == scene.step()


def stop(scene: Scene) -> None:
    """SIGSTOP one rank: it neither dies nor goes on."""
    victim = scene.victim()
    with scene.ranks() as ranks:
        scene.until_fault(ranks, _steps(scene))
        ranks.send(victim, signal.SIGSTOP)
        if _ends(scene, ranks) != [ExitCode.DONE] * scene.world_size:
            assert f"rank {victim}" in ranks.said()


def sleep_in_data(scene: Scene) -> None:
    """One rank never comes back from reading its data."""
    victim = scene.victim()
    with scene.ranks(_at_step(scene, "sleeps in its data", victim, 2)) as ranks:
        if _ends(scene, ranks) != [ExitCode.DONE] * scene.world_size:
            assert f"rank {victim}" in ranks.said()


def nan_in_a_gradient(scene: Scene) -> None:
    """One gradient of one rank is not a number; the run is told to stop then."""
    with scene.ranks(_at_step(scene, "nan", scene.victim())) as ranks:
        codes = set(_ends(scene, ranks))
        assert codes <= {ExitCode.DIVERGED, ExitCode.DONE}, ranks.said()
        assert codes == {ExitCode.DONE} or "not finite" in ranks.said()


def wrong_bit_in_a_gradient(scene: Scene) -> None:
    """One rank computes one bit of a gradient otherwise than the second time."""
    victim = scene.victim()
    with scene.ranks(_at_step(scene, "one bit", victim)) as ranks:
        codes = set(_ends(scene, ranks))
        assert codes <= {ExitCode.FAULTY, ExitCode.DONE}, ranks.said()
        assert codes == {ExitCode.DONE} or f"rank {victim} (" in ranks.said()


def slow_rank(scene: Scene) -> None:
    """One rank takes its time in every step: it is named, and nothing else happens."""
    victim = scene.victim()
    fault = Armed("slow", victim, 0, _STEP_SECONDS, scene.moment or 0.0)
    with scene.ranks(fault) as ranks:
        scene.until_fault(ranks, 0)
        if not ranks.until(lambda: f"rank {victim} " in ranks.said(), PATIENCE):
            return
        stop_all(ranks, signal.SIGTERM)
        codes = set(_ends(scene, ranks))
        assert codes <= {ExitCode.INTERRUPTED, ExitCode.DONE}, f"{codes}\n{ranks.said()}"


def _damage_newest(scene: Scene, change: Callable[[Scene], str]) -> None:
    """Kill all ranks, then damage the newest checkpoint; what is started again names the file."""
    with scene.ranks() as ranks:
        scene.until_fault(ranks, 12)
        stop_all(ranks, signal.SIGKILL)
        _ends(scene, ranks)
    # Copies on the machine would do instead.
    shutil.rmtree(scene.config.checkpoint.local_directory, ignore_errors=True)
    if len(scene.saved()) < 2:
        return
    scene.owed.append((len(scene.told), change(scene)))


def _a_file(scene: Scene) -> str:
    files = sorted(path for path in scene.saved()[-1].rglob("*") if path.is_file())
    return str(scene.random.choice([path for path in files if path.stat().st_size]))


def flipped_byte(scene: Scene) -> None:
    """A byte of the newest checkpoint is not what was written."""

    def change(scene: Scene) -> str:
        name = _a_file(scene)
        flip_byte(scene.saved()[-1] / name, scene.random)
        return name

    _damage_newest(scene, change)


def truncated_file(scene: Scene) -> None:
    """A file of the newest checkpoint is cut short."""

    def change(scene: Scene) -> str:
        name = _a_file(scene)
        truncate(scene.saved()[-1] / name, scene.random.random())
        return name

    _damage_newest(scene, change)


def full_disk(scene: Scene) -> None:
    """The disk of the run has no room for a while: training goes on, and saves when it has."""
    with scene.ranks() as ranks:
        if not scene.until_fault(ranks, 2):
            return
        ballast = fill(scene.config.run_directory)

        def told() -> bool:
            # An old checkpoint that was just being removed leaves room for the next one.
            fill(scene.config.run_directory)
            return "not saved, training goes on" in ranks.said()

        ranks.until(told, PATIENCE)
        ballast.unlink()
        before = scene.saved()
        ranks.until(lambda: scene.saved() != before, PATIENCE)
        stop_all(ranks, signal.SIGTERM)
        codes = set(_ends(scene, ranks))
        assert codes <= {ExitCode.INTERRUPTED, ExitCode.DONE}, f"{codes}\n{ranks.said()}"


def unreadable_data(scene: Scene) -> None:
    """A file of data is cut short in the middle of a run."""
    kept = scene.data.with_suffix(".kept")
    shutil.copy2(scene.data, kept)
    try:
        with scene.ranks() as ranks:
            if not scene.until_fault(ranks, _steps(scene)):
                return
            truncate(scene.data, 0.0)
            codes = set(_ends(scene, ranks))
            assert codes == {ExitCode.BAD_INPUT}, ranks.said()
            assert str(scene.data) in ranks.said()
    finally:
        shutil.copy2(kept, scene.data)


KINDS: dict[str, Callable[[Scene], None]] = {
    "kill": kill,
    "kill_in_start": kill_in_start,
    "kill_in_save": kill_in_save,
    "kill_before_rename": kill_before_rename,
    "kill_after_rename": kill_after_rename,
    "kill_in_local_copy": kill_in_local_copy,
    "terminate": terminate,
    "stop": stop,
    "sleep_in_data": sleep_in_data,
    "flipped_byte": flipped_byte,
    "truncated_file": truncated_file,
    "nan_in_a_gradient": nan_in_a_gradient,
    "wrong_bit_in_a_gradient": wrong_bit_in_a_gradient,
    "slow_rank": slow_rank,
    "full_disk": full_disk,
    "unreadable_data": unreadable_data,
}
NEEDS_SMALL_DISK = frozenset({"full_disk"})
__all__ = ["KINDS", "NEEDS_SMALL_DISK", "small_disk"]
