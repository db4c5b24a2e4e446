"""Each planted fault is named with its host, nothing else is, and healthy hosts have none."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from roots.doctor.judge import amount, excluded, judge, measured_part
from roots.doctor.survey import Survey
from tests.doctor.surveys import (
    WELL,
    survey_of,
    with_answer,
    with_device,
    with_facts,
    with_pairs,
    with_rates,
)

NAMES = ("a", "b", "c", "d")
CPUS, GPUS = survey_of(NAMES), survey_of(NAMES, 8)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


# Of ten repeats on three simulated hosts (tests/cluster) of one busy machine: shares of the median
# of each repeat.
DISK = _numbers(
    "0.59 0.69 0.74 0.82 0.84 0.84 0.88 0.91 0.92 0.92 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 "
    "1.01 1.03 1.07 1.14 1.15 1.27 1.35 1.36 1.62 1.7"
)
MATMUL = _numbers(
    "0.94 0.95 0.96 0.97 0.99 0.99 0.99 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 "
    "1.0 1.0 1.0 1.0 1.01 1.02 1.06 1.07 1.1"
)
PAIR = _numbers(
    "0.72 0.79 0.84 0.9 0.92 0.93 0.94 0.94 0.95 0.96 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.01 "
    "1.01 1.01 1.03 1.06 1.06 1.08 1.09 1.27 1.7"
)
SLOW = "see its cable and card (`ethtool`, `ibstat`), and what else uses them"
RESET = "reset the GPU (`nvidia-smi --gpu-reset`); if it comes again, have it replaced"


def told(survey: Survey) -> list[str]:
    """The lines about it, as it comes out of JSON."""
    return [each.line for each in judge(Survey.from_json(json.loads(json.dumps(survey.to_json()))))]


def out(survey: Survey) -> list[str]:
    return excluded(survey, judge(survey))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_hosts_that_are_well(count: int, gpus: int) -> None:
    assert told(survey_of(NAMES[:count], gpus)) == []


@pytest.mark.parametrize(
    "survey, line",
    [
        (
            with_rates(CPUS, "c", disk=0.1e9),
            "host c: disk='100 MB/s': is 5% of the median of its peers; "
            "see what else writes there, and the disk's own health (`smartctl -a`)",
        ),
        (
            with_rates(CPUS, "c", disk=None),
            "host c: disk: nothing could be written there, but on other hosts; "
            "see whether it is full, or mounted for reading only",
        ),
        (
            with_answer(CPUS, "c", clock_ahead=-5.0),
            "host c: clock: is 5.0 s behind the others; "
            "run `timedatectl set-ntp true` or chronyd there",
        ),
        (
            with_pairs(CPUS, "c", rate=1e9),
            f"host c: network='1 GB/s': is 2% of the median of its peers; {SLOW}",
        ),
        (
            with_pairs(CPUS, "c", rate=None, error="timed out"),
            "host c: network: no other host works with it (timed out); "
            "see its cable, its firewall, and ROOTS_INTERFACE",
        ),
        (
            with_facts(CPUS, "c", versions={"roots": "0.1.0 (sources aa)", "torch": "2.0.0"}),
            "host c: torch='2.0.0': must be 2.13.0 as on a, b, d; "
            "make the environments equal, as launch/quickstart.sh does, or share one",
        ),
        (
            with_answer(CPUS, "c", facts=None, silence="Permission denied", advice="see ssh"),
            "host c: does not tell about itself (Permission denied); see ssh",
        ),
        (
            with_rates(CPUS, "c", no_folder="/scratch", disk=None),
            "host c: --disk='/scratch': no such folder there; "
            "mount it, or name a folder that is there on every host",
        ),
        (
            with_rates(CPUS, "c", silence="did not answer in 30 s", disk=None),
            "host c: stopped to answer while it was measured (did not answer in 30 s); "
            "see what runs there, and its kernel's log",
        ),
        (
            with_facts(CPUS, "c", limits={"nofile": 100, "nproc": -1, "memlock": -1}),
            "host c: ulimit nofile=100: a run of 4 ranks needs 288; "
            "raise it in /etc/security/limits.conf there (`ulimit -n` shows it)",
        ),
        (
            with_device(CPUS, "c", 0, matmul=30e9),
            "host c: matmul='30 GFLOP/s': is 30% of the median of its peers; "
            "see the clock of its processors and what holds it down (heat, power)",
        ),
        (
            with_facts(GPUS, "c", gpus=("NVIDIA H100 80GB HBM3",) * 7),
            "host c: GPUs=7: 8 ranks need a GPU each; "
            "start fewer ranks there, or see what nvidia-smi says",
        ),
        (
            with_facts(GPUS, "c", shared_memory=64 << 20, shared_memory_free=64 << 20),
            "host c: /dev/shm='64 MiB free': 8 ranks need 1024 MiB free there; "
            "start the container with --shm-size=2g, or run `mount -o remount,size=2g /dev/shm`",
        ),
        (
            with_device(GPUS, "c", 5, matmul=500e12),
            "host c: matmul of GPU 5='500 TFLOP/s': is 71% of the median of its peers; "
            "see `nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER` there",
        ),
        (
            with_device(GPUS, "c", 5, differs=True),
            "host c: computes wrongly of GPU 5: the same product came out differently when it was "
            "computed again; take the machine out, and have it repaired",
        ),
        (
            with_device(GPUS, "c", 5, matmul=None, error="CUDA error: no device"),
            "host c: device of GPU 5: fails (CUDA error: no device); "
            "see what `roots info` says there",
        ),
        (
            with_rates(GPUS, "c", after=(WELL, {**WELL, "uncorrected ECC errors": 1}, *[WELL] * 6)),
            f"host c: uncorrected ECC errors of GPU 1=1: memory of the GPU fails; {RESET}",
        ),
        (
            with_rates(GPUS, "c", after=(WELL, {**WELL, "corrected ECC errors": 5}, *[WELL] * 6)),
            "host c: corrected ECC errors of GPU 1='2 more in this minute': "
            f"memory of the GPU begins to fail; {RESET}",
        ),
        (
            with_rates(GPUS, "c", after=(*[WELL] * 7, {**WELL, "NVLink errors": 13})),
            "host c: NVLink errors of GPU 7='1 more in this minute': "
            f"a link between GPUs loses data; {RESET}",
        ),
        (
            with_rates(GPUS, "c", reduce=100e9),
            "host c: all-reduce over its GPUs='100 GB/s': is 25% of the median of its peers; "
            "see `nvidia-smi topo -m` and `nvidia-smi nvlink -s` there",
        ),
    ],
)
def test_planted_fault_is_named_alone(survey: Survey, line: str) -> None:
    assert told(survey) == [line]
    assert out(survey) == ["c"]


def test_slow_card_of_one_gpu_is_named() -> None:
    pairs = [
        replace(pair, rate=5e9) if "c" in pair.hosts and pair.device == 3 else pair
        for pair in GPUS.pairs
    ]
    survey = replace(GPUS, pairs=tuple(pairs))
    line = f"host c: network of GPU 3='5 GB/s': is 12% of the median of its peers; {SLOW}"
    assert told(survey) == [line]
    assert out(survey) == ["c"]


@pytest.mark.parametrize(
    "changes, rule",
    [
        ({"rate": 1e9}, "='1 GB/s': is 2% of the median of its peers"),
        ({"rate": None}, ": fails ()"),
    ],
)
def test_link_between_two_is_nobodys_fault(changes: dict[str, Any], rule: str) -> None:
    survey = with_pairs(CPUS, ["b", "c"], **changes)
    assert told(survey) == [f"network between b and c{rule}; see the switches between them"]
    assert out(survey) == []


def test_pair_that_fails_is_laid_to_none_of_the_two() -> None:
    survey = with_pairs(survey_of("ab"), "ab", rate=None, error="timed out")
    assert told(survey) == [
        "network between a and b: fails (timed out); see the switches between them"
    ]
    assert out(survey) == []


def test_all_reduce_that_fails_where_all_pairs_work_is_told() -> None:
    survey = replace(CPUS, reduce=None, reduce_error="timed out")
    assert told(survey) == [
        "all-reduce over all hosts: fails (timed out), though every pair of hosts alone works; "
        "run it again"
    ]
    assert told(with_pairs(survey, "c", rate=None, error="x"))[0].startswith("host c: network: ")


def test_what_most_hosts_have_is_no_reason_to_leave_them_out() -> None:
    survey = CPUS
    for name in "abc":
        survey = with_facts(survey, name, limits={"nofile": 100, "nproc": -1, "memlock": -1})
    assert len(told(survey)) == 3
    assert out(survey) == []
    assert out(with_rates(survey, "d", disk=1e6)) == ["d"]


def test_only_rates_are_measured_again() -> None:
    slow = judge(with_rates(CPUS, "c", disk=1e6)) + judge(with_pairs(CPUS, "c", rate=1e6))
    slow += judge(with_pairs(CPUS, "bc", rate=1e6)) + judge(with_rates(GPUS, "c", reduce=1e6))
    slow += judge(with_device(GPUS, "c", 5, matmul=1e6))
    parts = ["disk", "network", "network", "all-reduce over its GPUs", "matmul"]
    assert list(map(measured_part, slow)) == parts
    assert measured_part(judge(with_answer(CPUS, "c", clock_ahead=9.0))[0]) == ""


@pytest.mark.parametrize("count", [3, 4, 16, 64])
def test_noise_of_healthy_hosts_is_nothing(count: int) -> None:
    """Rates that vary as those of real repeats on one busy machine did, with a planted fault."""
    names = [f"n{number}" for number in range(count)]
    calm = survey_of(names, 0)
    chance = random.Random(count)
    for _ in range(10):
        survey = calm
        for name in names:
            rate = 100e9 * chance.choice(MATMUL)
            survey = with_rates(survey, name, disk=2e9 * chance.choice(DISK))
            survey = with_device(survey, name, 0, matmul=rate)
        pairs = [replace(pair, rate=4e9 * chance.choice(PAIR)) for pair in survey.pairs]
        survey = replace(survey, pairs=tuple(pairs))
        assert judge(survey) == []
        assert out(with_rates(survey, names[-1], disk=0.1e9)) == [names[-1]]
        slow = [
            replace(pair, rate=0.2e9) if names[0] in pair.hosts else pair for pair in survey.pairs
        ]
        assert out(replace(survey, pairs=tuple(slow))) == [names[0]]


@pytest.mark.parametrize(
    "rate, text",
    [(1.5, "1.5 B/s"), (123456.0, "123 kB/s"), (2.5e9, "2.5 GB/s"), (7e14, "700 TB/s")],
)
def test_amounts_have_three_digits(rate: float, text: str) -> None:
    assert amount(rate, "B/s") == text


def test_what_fails_with_a_host_that_is_named_is_no_news() -> None:
    survey = with_rates(survey_of("abc"), "c", silence="gone", disk=None, devices=())
    (line,) = told(with_pairs(survey, "c", rate=None, error="timed out"))
    assert line.startswith("host c: stopped to answer")
    survey = with_device(GPUS, "c", 5, kind="", matmul=None, error="torch sees 5 GPUs")
    survey = with_rates(survey, "c", reduce=None, reduce_error="no answer")
    pairs = [
        replace(pair, rate=None, error="no answer")
        if "c" in pair.hosts and pair.device == 5
        else pair
        for pair in survey.pairs
    ]
    (line,) = told(replace(survey, pairs=tuple(pairs)))
    assert line.startswith("host c: device of GPU 5: fails (torch sees 5 GPUs)")


def test_only_host_whose_disk_takes_nothing_is_told() -> None:
    assert told(with_rates(survey_of("c"), "c", disk=None)) == [
        "host c: disk: nothing could be written there; "
        "see whether it is full, or mounted for reading only"
    ]
