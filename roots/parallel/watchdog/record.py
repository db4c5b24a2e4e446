"""How far a rank has come: its marks, the record it makes of them, and the line that travels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# What a rank is at, in the words of messages.
_PHASES = {
    "restart": "its start",
    "data": "its data",
    "compute": "a step",
    "communication": "a step",
    "evaluation": "an evaluation",
    "checkpoint": "a checkpoint",
}
_LONG_PHASES = ("restart", "checkpoint")


class Marks:
    """What the training loop says of itself: the phase it is in, and steps that are done."""

    def __init__(self) -> None:
        self.phase = "restart"
        self.step = 0
        self.begun = False  # whether a step of this process has ended
        self.count = 0
        # Called with the exit code where the watchdog's thread is about to end the process.
        self.cut_off: Callable[[int], None] = lambda code: None
        # Called with the exit code and why on one rank that outlives rank 0, which is gone.
        self.outlived: Callable[[int, str], None] = lambda code, cause: None

    def enter(self, phase: str) -> None:
        """Another phase begins (the same again changes nothing)."""
        if phase != self.phase:
            self.phase = phase
            self.count += 1

    def begin(self, step: int) -> None:
        """Training begins after `step` updates."""
        self.step = step
        self.count += 1

    def done(self, step: int) -> None:
        """Update number `step` has ended."""
        self.begun = True
        self.begin(step)


@dataclass(frozen=True)
class Call:
    """The `number`th call on a group of ranks, or with one peer (then `group` is "")."""

    group: str
    name: str
    number: int
    ranks: str

    def describe(self) -> str:
        """`all_reduce number 7 over ranks 0-3`, or `recv number 2 from rank 1`."""
        if self.group:
            return f"{self.name} number {self.number} over ranks {self.ranks}"
        way = "to" if self.name == "send" else "from"
        return f"{self.name} number {self.number} {way} rank {self.ranks}"


@dataclass(frozen=True)
class Record:
    """A rank at one moment.

    idle:   seconds since it came further or, on a CPU, computed
    still:  seconds since it came further: entered or left a collective, a phase or a step
    last:   the collective it entered last; inside: and has not left
    calls:  the last call on every group that it is in
    sent, received: messages by peer that it has asked for
    error:  the error of communication that ended its training, "" if none has
    """

    rank: int
    host: str
    step: int
    phase: str
    begun: bool
    idle: float = 0.0
    still: float = 0.0
    inside: bool = False
    error: str = ""
    last: Call | None = None
    calls: tuple[Call, ...] = ()
    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)

    @property
    def in_long_phase(self) -> bool:
        """Whether it may keep others waiting for long: until its first step, in a checkpoint."""
        return not self.begun or self.phase in _LONG_PHASES

    @property
    def at(self) -> str:
        """What it is at, in words."""
        return _PHASES.get(self.phase, "what stands between steps")

    def describe(self) -> str:
        """Where it is, in words: `all_reduce number 7 over ranks 0-3, in a step after step 2`."""
        call = "no collective" if self.last is None else self.last.describe()
        return f"{call}, in {self.at} after step {self.step}"

    def number(self, group: str) -> int:
        """How often it has called on `group`."""
        return next((call.number for call in self.calls if call.group == group), 0)


@dataclass(frozen=True)
class Goodbye:
    """A rank leaves by itself: with this exit code, for this reason."""

    rank: int
    code: int
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Who is at fault, in the line that says so; code: what all other ranks exit with.

    died: its process is gone; stopped: it does not answer; stalled: it answers and comes no
    further; elsewhere: it waits in another collective than the others; left: it ended by itself.
    """

    rank: int
    kind: Literal["died", "stopped", "stalled", "elsewhere", "left"]
    line: str
    code: int


@dataclass(frozen=True)
class Question:
    """Rank 0 asks for a record at once."""


Message = Record | Goodbye | Verdict | Question


def to_line(message: Message) -> bytes:
    """One line of JSON."""
    return json.dumps({type(message).__name__: asdict(message)}).encode() + b"\n"


def from_line(line: bytes) -> Message:
    """What `to_line` made. Raises ValueError or TypeError for anything else."""
    ((name, values),) = json.loads(line).items()
    if name == "Record":
        return _record(values)
    if name == "Goodbye":
        return Goodbye(**values)
    if name == "Verdict":
        return Verdict(**values)
    if name == "Question":
        return Question()
    raise ValueError(f"{name} is no message")


def _record(values: dict[str, Any]) -> Record:
    last = values.pop("last")
    calls = tuple(Call(**each) for each in values.pop("calls"))
    sent, received = (
        {int(peer): count for peer, count in values.pop(name).items()}
        for name in ("sent", "received")
    )
    named = None if last is None else Call(**last)
    return Record(**values, last=named, calls=calls, sent=sent, received=received)


def spell(ranks: Sequence[int]) -> str:
    """Ascending ranks in few characters: `0-3`, `0-6:2`, else `0,1,5`."""
    if len(ranks) > 2:
        step = ranks[1] - ranks[0]
        if all(after - before == step for before, after in zip(ranks, ranks[1:], strict=False)):
            return f"{ranks[0]}-{ranks[-1]}" + (f":{step}" if step != 1 else "")
    return ",".join(map(str, ranks))


def read_ranks(text: str) -> tuple[int, ...]:
    """What `spell` spelled."""
    if "-" not in text:
        return tuple(int(each) for each in text.split(","))
    first, _, rest = text.partition("-")
    last, _, step = rest.partition(":")
    return tuple(range(int(first), int(last) + 1, int(step or 1)))
