"""What was measured on hosts and between them; all of it goes to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from roots.launching.checks import Needs
from roots.launching.gather import Answer
from roots.launching.host_facts import HostFacts

# Of counters of GPUs (roots.doctor.counters).
Counters = Mapping[str, int]


@dataclass(frozen=True)
class DeviceRate:
    """A device of a host: `matmul` in floating-point operations a second, None where unknown.

    `error` is why; `differs`: the same product came out differently when it was computed again.
    """

    name: str
    kind: str
    matmul: float | None = None
    differs: bool = False
    error: str = ""


@dataclass(frozen=True)
class HostRates:
    """What was measured on a host, by itself; rates in bytes a second, None where unknown.

    `silence` is why it stopped to answer. `no_folder` is the folder whose disk was to be measured,
    where there is no such folder. `before` and `after` are counters of each GPU. `reduce`
    is of an all-reduce over its GPUs.
    """

    silence: str = ""
    disk: float | None = None
    no_folder: str = ""
    devices: tuple[DeviceRate, ...] = ()
    before: tuple[Counters, ...] = ()
    after: tuple[Counters, ...] = ()
    reduce: float | None = None
    reduce_error: str = ""


@dataclass(frozen=True)
class PairRate:
    """Bytes a second between device `device` of two hosts; None where that failed: `error`."""

    hosts: tuple[str, str]
    device: int
    rate: float | None
    error: str = ""


@dataclass(frozen=True)
class Survey:
    """All that is known. `answers` are in the order of hosts; `rates` has those that answered.

    `rounds` is how many of `all_rounds` of pairs there was time for. `reduce` is the rate of an
    all-reduce over all devices in bytes a second, None where unknown.
    """

    needs: Needs
    answers: tuple[Answer, ...]
    rates: Mapping[str, HostRates] = field(default_factory=dict)
    pairs: tuple[PairRate, ...] = ()
    rounds: int = 0
    all_rounds: int = 0
    reduce: float | None = None
    reduce_error: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """A tree for json.dumps."""
        tree = asdict(self)
        for answer in tree["answers"]:
            answer["sees"] = sorted(answer["sees"])
        return tree

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> Survey:
        """What `to_json` made, back."""
        return Survey(
            **{
                **tree,
                "needs": Needs(**{**tree["needs"], "programs": tuple(tree["needs"]["programs"])}),
                "answers": tuple(_answer(each) for each in tree["answers"]),
                "rates": {name: rates_of(each) for name, each in tree["rates"].items()},
                "pairs": tuple(
                    PairRate(**{**each, "hosts": tuple(each["hosts"])}) for each in tree["pairs"]
                ),
            }
        )


def rates_of(tree: Mapping[str, Any]) -> HostRates:
    """The rates of a host from JSON."""
    devices = tuple(DeviceRate(**each) for each in tree["devices"])
    counters = {name: tuple(tree[name]) for name in ("before", "after")}
    return HostRates(**{**tree, "devices": devices, **counters})


def _answer(tree: Mapping[str, Any]) -> Answer:
    facts = None if tree["facts"] is None else HostFacts.from_json(tree["facts"])
    return Answer(**{**tree, "facts": facts, "sees": frozenset(tree["sees"])})


def better(first: Survey, second: Survey) -> Survey:
    """The higher of each rate of two surveys of the same hosts; all else is the second's.

    What only happened to be slow once was slow by chance.
    """
    before = {(pair.hosts, pair.device): pair for pair in first.pairs}
    pairs = {**before, **{(pair.hosts, pair.device): pair for pair in second.pairs}}
    return replace(
        second,
        rates={
            name: _better_rates(first.rates.get(name, rates), rates)
            for name, rates in second.rates.items()
        },
        pairs=tuple(
            replace(pair, rate=_higher(before[key].rate, pair.rate)) if key in before else pair
            for key, pair in pairs.items()
        ),
        reduce=_higher(first.reduce, second.reduce),
    )


def _better_rates(first: HostRates, second: HostRates) -> HostRates:
    earlier = dict(enumerate(first.devices))
    devices = tuple(
        replace(
            device,
            matmul=_higher(earlier.get(number, device).matmul, device.matmul),
            differs=device.differs or earlier.get(number, device).differs,
        )
        for number, device in enumerate(second.devices)
    )
    return replace(
        second,
        devices=devices,
        disk=_higher(first.disk, second.disk),
        reduce=_higher(first.reduce, second.reduce),
        before=first.before,
    )


def _higher(first: float | None, second: float | None) -> float | None:
    """The higher of two rates; where one could not be measured, the later word counts."""
    if first is None or second is None:
        return second
    return max(first, second)
