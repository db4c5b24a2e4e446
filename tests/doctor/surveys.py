"""Surveys of hosts that are well, for tests that plant a fault in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from roots.doctor.rounds import rounds
from roots.doctor.survey import Counters, DeviceRate, HostRates, PairRate, Survey
from roots.launching.checks import Needs
from roots.launching.gather import Answer
from roots.launching.host_facts import UNLIMITED, HostFacts

GIB = 1 << 30
GPU = "NVIDIA H100 80GB HBM3"
WELL: Counters = {
    "corrected ECC errors": 3,
    "uncorrected ECC errors": 0,
    "pending remaps": 0,
    "failed remaps": 0,
    "NVLink errors": 12,
}
FACTS = HostFacts(
    host="h",
    versions={"roots": "0.1.0 (sources aa)", "torch": "2.13.0"},
    gpus=(),
    processors=8,
    memory=64 * GIB,
    shared_memory=8 * GIB,
    shared_memory_free=8 * GIB,
    limits={"nofile": 65536, "nproc": 100_000, "memlock": UNLIMITED},
    files={},
    taken=(),
    free_port=23456,
    address="10.0.0.1",
    addresses=("10.0.0.1",),
    interfaces={"lo": ("127.0.0.1",), "eth0": ("10.0.0.1",), "eth1": ()},
    meet=(),
    infiniband=(),
    refusal="",
)


def survey_of(names: Sequence[str], gpus: int = 0) -> Survey:
    """Hosts of these names with equal rates, and with so many GPUs each."""
    devices = tuple(
        DeviceRate(GPU if gpus else "EPYC", "cuda" if gpus else "cpu", 700e12 if gpus else 100e9)
        for _ in range(max(1, gpus))
    )
    counters = (WELL,) * gpus
    rates = HostRates(
        disk=2e9,
        devices=devices,
        before=counters,
        after=counters,
        reduce=400e9 if gpus > 1 else None,
    )
    all_rounds = rounds(len(names)) if len(names) > 1 else []
    pairs = tuple(
        PairRate((names[a], names[b]), device, 40e9)
        for each in all_rounds
        for a, b in each
        for device in range(max(1, gpus))
    )
    return Survey(
        Needs(dict.fromkeys(names, max(1, gpus))),
        tuple(Answer(name, replace(FACTS, gpus=(GPU,) * gpus)) for name in names),
        dict.fromkeys(names, rates),
        pairs,
        len(all_rounds),
        len(all_rounds),
        30e9 if len(names) > 1 else None,
    )


def with_rates(survey: Survey, name: str, **changes: Any) -> Survey:
    """The survey with other rates of one host."""
    rates = {**survey.rates, name: replace(survey.rates[name], **changes)}
    return replace(survey, rates=rates)


def with_facts(survey: Survey, name: str, **changes: Any) -> Survey:
    """The survey with other facts of one host."""
    answers = tuple(
        replace(answer, facts=replace(answer.facts, **changes))
        if answer.name == name and answer.facts is not None
        else answer
        for answer in survey.answers
    )
    return replace(survey, answers=answers)


def with_answer(survey: Survey, name: str, **changes: Any) -> Survey:
    """The survey with another answer of one host."""
    answers = tuple(
        replace(answer, **changes) if answer.name == name else answer for answer in survey.answers
    )
    return replace(survey, answers=answers)


def with_pairs(survey: Survey, names: Sequence[str], **changes: Any) -> Survey:
    """The survey with other pairs: those that have all of `names` among their hosts."""
    pairs = tuple(
        replace(pair, **changes) if set(names) <= set(pair.hosts) else pair for pair in survey.pairs
    )
    return replace(survey, pairs=pairs)


def with_device(survey: Survey, name: str, number: int, **changes: Any) -> Survey:
    """The survey with another device of a host."""
    devices = list(survey.rates[name].devices)
    devices[number] = replace(devices[number], **changes)
    return with_rates(survey, name, devices=tuple(devices))
