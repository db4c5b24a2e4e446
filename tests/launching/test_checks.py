"""What is wrong with hosts is told in one line each, with the host, all at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from roots.launching.checks import Needs, judge, named_twice
from roots.launching.gather import Answer
from roots.launching.host_facts import UNLIMITED, HostFacts

GIB = 1 << 30
VERSIONS = {"roots": "0.1.0 (sources aa)", "torch": "2.13.0", "deepspeed": "0.19.8"}
GOOD = HostFacts(
    host="h",
    versions=VERSIONS,
    gpus=(),
    processors=8,
    memory=64 * GIB,
    shared_memory=8 * GIB,
    shared_memory_free=8 * GIB,
    limits={"nofile": 65536, "nproc": 100_000, "memlock": UNLIMITED},
    files={"run.yaml": "sha256 11", "data.bin": "4096 bytes"},
    taken=(),
    free_port=23456,
    address="10.0.0.1",
    addresses=("10.0.0.1",),
    interfaces={"lo": ("127.0.0.1",), "eth0": ("10.0.0.1",), "eth1": ()},
    meet=(),
    infiniband=(),
    refusal="",
)
NAMES = ("a", "b", "c")
NEEDS = Needs(dict.fromkeys(NAMES, 2), "runs/x")


def answers(**changes: dict[str, Any]) -> list[Answer]:
    """Three good hosts, with other facts where `changes` says so by the host's name."""
    return [
        Answer(name, replace(GOOD, **changes.get(name, {})), sees=frozenset(NAMES))
        for name in NAMES
    ]


def test_nothing_is_wrong_with_good_hosts() -> None:
    assert judge(answers(), NEEDS) == []
    assert judge(answers()[:1], Needs({"a": 4}, "runs/x")) == []


@pytest.mark.parametrize(
    "changes, line",
    [
        (
            {"b": {"versions": {**VERSIONS, "torch": "2.12.0"}}},
            "host b: torch='2.12.0': must be 2.13.0 as on a, c; "
            "make the environments equal, as launch/quickstart.sh does, or share one",
        ),
        (
            {"c": {"versions": {**VERSIONS, "cuda kernels": "sources ab, torch 2.13.0"}}},
            "host c: cuda kernels='sources ab, torch 2.13.0': must be absent as on a, b; "
            "make the environments equal, as launch/quickstart.sh does, or share one",
        ),
        (
            {"b": {"files": {**GOOD.files, "data.bin": "missing"}}},
            "host b: data.bin: no such file, but on a, c; "
            "copy it there, or keep it where all hosts see it",
        ),
        (
            {name: {"files": {**GOOD.files, "data.bin": "missing"}} for name in NAMES},
            "hosts a, b, c: data.bin: no such file; "
            "copy it there, or keep it where all hosts see it",
        ),
        (
            {"c": {"files": {**GOOD.files, "data.bin": "unreadable: Permission denied"}}},
            "host c: data.bin: unreadable: Permission denied; make it readable there",
        ),
        (
            {"c": {"files": {**GOOD.files, "run.yaml": "sha256 22"}}},
            "host c: run.yaml: is sha256 22, but sha256 11 on a, b; "
            "copy it again, so that all are the same",
        ),
        (
            {name: {"gpus": ("H100",) * (1 if name == "b" else 2)} for name in NAMES},
            "host b: GPUs=1: 2 ranks need a GPU each; "
            "start fewer ranks there, or see what nvidia-smi says",
        ),
        (
            {"a": {"taken": (29500,)}},
            "host a: port=29500: another program has this port; "
            "end it, or set MASTER_PORT to a free one",
        ),
        (
            {"b": {"refusal": "Permission denied in /runs"}},
            "host b: runs/x: cannot be written to (Permission denied in /runs); "
            "give this user the right to, or set run.directory",
        ),
        (
            {"b": {"shared_memory": 1 << 24, "shared_memory_free": 1 << 24}},
            "host b: /dev/shm='16 MiB free': 2 ranks need 32 MiB free there; "
            "start the container with --shm-size=1g, or run `mount -o remount,size=1g /dev/shm`",
        ),
        (
            {"b": {"shared_memory_free": 0}},
            "host b: /dev/shm='0 MiB free': 2 ranks need 32 MiB free there; "
            "remove what dead programs have left in /dev/shm",
        ),
        (
            {"c": {"limits": {**GOOD.limits, "nofile": 256}}},
            "host c: ulimit nofile=256: a run of 6 ranks needs 304; "
            "raise it in /etc/security/limits.conf there (`ulimit -n` shows it)",
        ),
        (
            {"c": {"infiniband": ("mlx5_0",), "limits": {**GOOD.limits, "memlock": 65536}}},
            "host c: ulimit memlock=65536: InfiniBand needs memory that stays where it is, "
            "without a limit; set `* - memlock unlimited` in /etc/security/limits.conf there",
        ),
        (
            {"b": {"address": "127.0.1.1"}},
            "host b: its own name h means 127.0.1.1 there, where no other host reaches it; "
            "correct its /etc/hosts, or set ROOTS_INTERFACE to the interface (as eth0)",
        ),
    ],
)
def test_each_problem_names_its_host(changes: dict[str, dict[str, Any]], line: str) -> None:
    assert judge(answers(**changes), NEEDS) == [line]


def test_gpus_need_more_shared_memory() -> None:
    small = {"gpus": ("H100",) * 2, "shared_memory": 64 << 20, "shared_memory_free": 64 << 20}
    lines = judge(answers(**dict.fromkeys(NAMES, small)), NEEDS)
    assert len(lines) == 3
    assert "host a: /dev/shm='64 MiB free': 2 ranks need 256 MiB free there; " in lines[0]


def test_port_matters_on_the_first_host_alone() -> None:
    assert judge(answers(b={"taken": (29500,)}), NEEDS) == []


def test_address_is_no_matter_with_an_interface_or_on_one_host() -> None:
    changed = answers(b={"address": ""})
    assert judge(changed, replace(NEEDS, interfaces={"ROOTS_INTERFACE": "eth0"})) == []
    assert judge(changed[1:2], Needs({"b": 2})) == []
    assert "means no address there" in judge(changed, NEEDS)[0]
    on_gpus = {name: {"gpus": ("H100",) * 2, "address": "127.0.1.1"} for name in NAMES}
    assert judge(answers(**on_gpus), NEEDS) == []


@pytest.mark.parametrize(
    "variable, value, rule",
    [
        ("ROOTS_INTERFACE", "eth0", ""),
        ("GLOO_SOCKET_IFNAME", "eth0,eth0", ""),
        ("ROOTS_INTERFACE", "eth9", "no such interface (there are lo, eth0)"),
        ("GLOO_SOCKET_IFNAME", "eth0,ib0", "no such interface (there are lo, eth0)"),
        ("ROOTS_INTERFACE", "eth1", "this interface has no address (there are lo, eth0)"),
        ("ROOTS_INTERFACE", "lo", "is the loopback, which no other host reaches"),
        # Without GPUs it is nothing to anybody.
        ("NCCL_SOCKET_IFNAME", "ib", ""),
    ],
)
def test_interface_that_a_variable_names_is_there(variable: str, value: str, rule: str) -> None:
    fix = "name one that every host has, as `ip -brief address` shows them there, or unset it"
    lines = judge(answers(), replace(NEEDS, interfaces={variable: value}))
    assert lines == ([f"hosts a, b, c: {variable}={value!r}: {rule}; {fix}"] if rule else [])


def test_interface_is_of_the_hosts_that_get_ranks() -> None:
    named = {"ROOTS_INTERFACE": "eth9"}
    assert judge(answers()[:1], Needs({"a": 0}, "runs/x", named)) == []
    loopback = {"ROOTS_INTERFACE": "lo"}
    assert judge(answers()[:1], Needs({"a": 2}, "runs/x", loopback)) == []
    other = answers(b={"interfaces": {"lo": ("127.0.0.1",), "ens5": ("10.0.0.2",)}})
    (line,) = judge(other, replace(NEEDS, interfaces={"ROOTS_INTERFACE": "eth0"}))
    assert line.startswith(
        "host b: ROOTS_INTERFACE='eth0': no such interface (there are lo, ens5); name one that"
    )


@pytest.mark.parametrize(
    "value, fits",
    [("eth", True), ("=eth0", True), ("=eth", False), ("^eth,lo", False), ("^docker", True)],
)
def test_interface_of_nccl_may_be_a_beginning_or_all_others(value: str, fits: bool) -> None:
    gpus = {name: {"gpus": ("H100",) * 2} for name in NAMES}
    lines = judge(answers(**gpus), replace(NEEDS, interfaces={"NCCL_SOCKET_IFNAME": value}))
    rule = "fits no interface with an address (there are lo, eth0)"
    start = f"hosts a, b, c: NCCL_SOCKET_IFNAME={value!r}: {rule}; "
    assert [line.startswith(start) for line in lines] == [] if fits else [True]


FIX = "unset it to have an address of a taken, or set it to one"


@pytest.mark.parametrize(
    "address, meet, lines",
    [
        ("10.0.0.1", {}, []),
        (
            "10.9.9.9",
            dict.fromkeys(NAMES, ("10.9.9.9",)),
            [
                "host a: MASTER_ADDR='10.9.9.9': is no address of this host, where rank 0 starts "
                f"(10.0.0.1); {FIX}"
            ],
        ),
        (
            "nobody",
            dict.fromkeys(NAMES, ()),
            [f"host a: MASTER_ADDR='nobody': stands for no address there; {FIX}"],
        ),
        # As /etc/hosts of Debian has its own name.
        ("a", {"a": ("127.0.1.1",)}, []),
        (
            "localhost",
            dict.fromkeys(NAMES, ("127.0.0.1", "::1")),
            [
                "hosts b, c: MASTER_ADDR='localhost': stands for 127.0.0.1, ::1 there, and not for "
                f"host a; {FIX}"
            ],
        ),
        (
            "a",
            {"c": ()},
            [
                f"host c: MASTER_ADDR='a': stands for no address there, and not for host a; {FIX}",
            ],
        ),
    ],
)
def test_ranks_meet_at_an_address_of_the_first_host(
    address: str, meet: dict[str, tuple[str, ...]], lines: list[str]
) -> None:
    told = {name: {"meet": meet.get(name, ("10.0.0.1",))} for name in NAMES}
    apart = answers(**told)
    apart[1:] = [
        replace(each, facts=replace(each.facts, interfaces={}, addresses=("10.0.0.2",)))
        for each in apart[1:]
        if each.facts is not None
    ]
    assert judge(apart, replace(NEEDS, address=address)) == lines
    assert judge(answers()[:1], Needs({"a": 2}, "runs/x", address="")) == []


def test_path_is_told_with_the_field_that_names_it() -> None:
    files = {"files": {**GOOD.files, "words": "missing"}}
    needs = replace(NEEDS, fields={"words": "data.tokenizer"})
    assert judge(answers(**dict.fromkeys(NAMES, files)), needs) == [
        "hosts a, b, c: data.tokenizer='words': no such file; "
        "copy it there, or keep it where all hosts see it"
    ]


def test_folder_without_any_file_of_the_run_is_one_line() -> None:
    missing = {"files": {**dict.fromkeys(GOOD.files, "missing"), "/there": "missing"}}
    copy = "copy it there, or keep it where all hosts see it"
    there = {"files": {**GOOD.files, "/there": "sha256 33"}}
    assert judge(answers(a=there, b=missing, c=missing), replace(NEEDS, folder="/work")) == [
        f"hosts b, c: /work: has none of the run's 2 files there, as run.yaml; {copy}",
        f"hosts b, c: /there: no such file, but on a; {copy}",
    ]


def test_folder_that_is_not_shared_is_that_of_the_fewest() -> None:
    apart = answers()
    apart[2] = replace(apart[2], sees=frozenset("c"))
    apart[0] = replace(apart[0], sees=frozenset("ab"))
    apart[1] = replace(apart[1], sees=frozenset("ab"))
    assert judge(apart, NEEDS) == [
        "host c: runs/x: is not the folder of a, b: what is written there cannot be read here; "
        "set run.directory to a folder that all hosts share"
    ]


@pytest.mark.parametrize("ahead, words", [(3.0, "3.0 s ahead of"), (-1.5, "1.5 s behind")])
def test_clock_is_compared_with_the_others(ahead: float, words: str) -> None:
    skewed = answers()
    skewed[1] = replace(skewed[1], clock_ahead=ahead, clock_error=0.01)
    fix = "run `timedatectl set-ntp true` or chronyd there"
    assert judge(skewed, NEEDS) == [f"host b: clock: is {words} the others; {fix}"]


def test_clock_of_two_hosts_is_compared_with_the_one_here() -> None:
    skewed = answers()[:2]
    skewed[1] = replace(skewed[1], clock_ahead=5.0)
    lines = judge(skewed, Needs({"a": 1, "b": 1}, "runs/x"))
    assert [line.partition(":")[0] for line in lines] == ["host b"]


def test_clock_within_what_the_network_lets_see_is_right() -> None:
    slow = answers()
    slow[1] = replace(slow[1], clock_ahead=1.8, clock_error=0.9)
    assert judge(slow, NEEDS) == []


def test_silent_host_is_named_and_the_others_are_judged() -> None:
    found = answers(c={"address": ""})
    advice = "give it your key"
    found[1] = Answer("b", silence="Permission denied (publickey).", advice=advice)
    lines = judge(found, NEEDS)
    assert lines[0] == (
        "host b: does not tell about itself (Permission denied (publickey).); give it your key"
    )
    assert [line.partition(":")[0] for line in lines] == ["host b", "host c"]


def test_machine_under_two_names_is_told_with_both() -> None:
    own = {name: {"host": name, "addresses": (f"10.0.0.{name}", "172.17.0.1")} for name in NAMES}
    assert list(named_twice(answers(**own))) == []
    assert [each.line for each in named_twice(answers(**{**own, "c": own["a"]}))] == [
        "hosts a, c: are one machine, which calls itself a; "
        "give it one line of the hostfile, with all its slots"
    ]
    unknown = {name: {"host": "localhost", "addresses": ()} for name in NAMES}
    assert list(named_twice(answers(**unknown))) == []
