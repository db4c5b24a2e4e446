"""What was measured, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from roots.doctor.judge import amount
from roots.doctor.survey import HostRates, Survey
from roots.launching.gather import Answer

_HEAD = ("host", "devices", "disk", "matmul", "all-reduce", "network", "clock")
_NOTHING = "-"


def text_lines(survey: Survey) -> list[str]:
    """A row for each host, then what is of all of them; nothing where no host has told anything.

    `matmul` is of the slowest device, `all-reduce` over the GPUs of the host, `network` with the
    best of its peers, `clock` against the one here.
    """
    if all(answer.facts is None for answer in survey.answers):
        return []
    rows = [_HEAD, *(_row(survey, answer) for answer in survey.answers)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows
    ]
    return [*lines, *_last(survey)]


def _row(survey: Survey, answer: Answer) -> tuple[str, ...]:
    rates = survey.rates.get(answer.name)
    if answer.facts is None or rates is None:
        return (answer.name, *[_NOTHING] * (len(_HEAD) - 1))
    network = [
        pair.rate for pair in survey.pairs if answer.name in pair.hosts and pair.rate is not None
    ]
    products = [device.matmul for device in rates.devices if device.matmul is not None]
    return (
        answer.name,
        _devices(rates),
        _shown(rates.disk, "B/s"),
        _shown(min(products, default=None), "FLOP/s"),
        _shown(rates.reduce, "B/s"),
        _shown(max(network, default=None), "B/s"),
        f"{answer.clock_ahead:+.2f} s",
    )


def _devices(rates: HostRates) -> str:
    names = [device.name for device in rates.devices]
    kinds = dict.fromkeys(names)
    return ", ".join(f"{names.count(name)} x {name}" for name in kinds) or _NOTHING


def _shown(rate: float | None, unit: str) -> str:
    return _NOTHING if rate is None else amount(rate, unit)


def _last(survey: Survey) -> Iterator[str]:
    if survey.reduce is not None:
        yield f"all-reduce over all hosts: {amount(survey.reduce, 'B/s')}"
    if survey.rounds < survey.all_rounds:
        yield f"pairs: {survey.rounds} of {survey.all_rounds} rounds, for want of time"
    count = len(survey.answers)
    yield f"measured {count} host{'s' if count > 1 else ''} in {survey.seconds:.1f} s"
