"""What is wrong with the hosts of a run, from what they told, all at once.

Pure: the facts come from roots.launching.gather.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roots.launching.finding import Finding
from roots.launching.gather import Answer
from roots.launching.host_facts import (
    MISSING,
    SHARED_MEMORY,
    UNLIMITED,
    UNREADABLE,
    HostFacts,
)

MOST_SKEW_SECONDS = 1.0
# Of /dev/shm: what GPUs of one host pass each other goes through buffers of NCCL there (a container
# has 64 MiB unless told otherwise); Gloo has none, but locks and queues of Python lie there, too.
SHARED_BYTES_A_GPU, SHARED_BYTES_A_RANK = 128 << 20, 16 << 20
# A rank holds connections to every other for each group that it is in, and its own files.
_FILES_A_RANK, _FILES_BESIDES = 8, 256
_THREADS_A_RANK = 128
_MIB, _GIB = 1 << 20, 1 << 30
_COPY = "copy it there, or keep it where all hosts see it"


@dataclass(frozen=True)
class Needs:
    """What a run asks of its hosts.

    `ranks` is how many start on each host, by its name, the host of rank 0 first. `interfaces` are
    the variables by which the user names network interfaces. `programs` are those of the files that
    are installed, not copied; `fields` says which field of the config names a file; `folder` is the
    one from which relative paths count. `address` is the one at which the user wants ranks to meet,
    "" for none.
    """

    ranks: Mapping[str, int]
    run_directory: str = ""
    interfaces: Mapping[str, str] = field(default_factory=dict)
    programs: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    folder: str = ""

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return sum(self.ranks.values())


@dataclass(frozen=True)
class _Known:
    """The hosts that answered, in their order, and what the run needs of them."""

    answers: Sequence[Answer]
    facts: Mapping[str, HostFacts]
    needs: Needs

    def grouped(self, value: Callable[[HostFacts], str]) -> Iterator[tuple[list[str], str]]:
        """Names of the hosts that have the same value, and it; the one that most have first."""
        values = {name: value(facts) for name, facts in self.facts.items()}
        for each, _ in Counter(values.values()).most_common():
            yield [name for name in values if values[name] == each], each


def judge(answers: Sequence[Answer], needs: Needs) -> list[str]:
    """A line for everything that would stop the run on these hosts; each names its hosts."""
    return [finding.line for finding in findings(answers, needs)]


def findings(answers: Sequence[Answer], needs: Needs) -> list[Finding]:
    """What `judge` tells."""
    found = [silence(answer) for answer in answers if answer.facts is None]
    told = [answer for answer in answers if answer.facts is not None]
    facts = {answer.name: answer.facts for answer in told if answer.facts is not None}
    known = _Known(told, facts, needs)
    for check in CHECKS:
        found += check(known)
    return found


def named_twice(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Machines that answer to several names: by their own name and all of their addresses."""
    names = defaultdict[tuple[str, tuple[str, ...]], list[str]](list)
    for answer in answers:
        # Without addresses, two machines may both be called localhost.
        if answer.facts is not None and answer.facts.addresses:
            names[answer.facts.host, answer.facts.addresses].append(answer.name)
    for (host, _), same in names.items():
        if len(same) > 1:
            rule = f"are one machine, which calls itself {host}"
            fix = "give it one line of the hostfile, with all its slots"
            yield Finding(tuple(same), "", None, rule, fix)


def silence(answer: Answer) -> Finding:
    """That a host did not answer."""
    rule = f"does not tell about itself ({answer.silence})"
    return Finding((answer.name,), "", None, rule, answer.advice)


def _files(known: _Known) -> Iterator[Finding]:
    """Config and data are on every host, and the same."""
    paths = dict.fromkeys(path for facts in known.facts.values() for path in facts.files)
    folder, relative = known.needs.folder, [path for path in paths if not Path(path).is_absolute()]
    bare = list[str]()
    if folder and len(relative) > 1:
        lacks = {
            name: {facts.files[path] for path in relative} for name, facts in known.facts.items()
        }
        bare = [name for name, marks in lacks.items() if marks == {MISSING}]
    if bare:
        rule = f"has none of the run's {len(relative)} files there, as {relative[0]}"
        yield Finding(tuple(bare), folder, None, rule, _COPY)
    for path in paths:
        marks = list(known.grouped(lambda facts, path=path: facts.files[path]))  # type: ignore[misc]
        good = [(names, mark) for names, mark in marks if _is_good(mark)]
        reference = good[0] if good else ([], "")
        is_program = path in known.needs.programs
        named = known.needs.fields.get(path)
        subject: tuple[str, str | None] = (path, None) if named is None else (named, path)
        for names, mark in marks:
            if mark == MISSING:
                where = f", but on {', '.join(reference[0])}" if good else ""
                fix = "install it there" if is_program else _COPY
                untold = [name for name in names if path not in relative or name not in bare]
                if untold:
                    yield Finding(tuple(untold), *subject, f"no such file{where}", fix)
            elif not _is_good(mark):
                yield Finding(tuple(names), *subject, mark, "make it readable there")
            elif mark != reference[1]:
                rule = f"is {mark}, but {reference[1]} on {', '.join(reference[0])}"
                fix = "copy it again, so that all are the same"
                if is_program:
                    fix = "install the same version there"
                yield Finding(tuple(names), *subject, rule, fix)


def _is_good(mark: str) -> bool:
    return mark != MISSING and not mark.startswith(UNREADABLE)


def _versions(known: _Known) -> Iterator[Finding]:
    """Every host runs the same ROOTS, torch, DeepSpeed and kernels."""
    packages = dict.fromkeys(name for facts in known.facts.values() for name in facts.versions)
    for package in packages:
        (most, reference), *others = known.grouped(
            lambda facts, package=package: facts.versions.get(package, "")  # type: ignore[misc]
        )
        for names, version in others:
            rule = f"must be {reference or 'absent'} as on {', '.join(most)}"
            fix = "make the environments equal, as launch/quickstart.sh does, or share one"
            yield Finding(tuple(names), package, version or "none", rule, fix)


def _gpus(known: _Known) -> Iterator[Finding]:
    """Where there are GPUs, there is one for each rank, and all hosts have some."""
    if not any(facts.gpus for facts in known.facts.values()):
        return
    for name, facts in known.facts.items():
        ranks = known.needs.ranks.get(name, 0)
        if len(facts.gpus) < ranks:
            rule = f"{ranks} ranks need a GPU each"
            fix = "start fewer ranks there, or see what nvidia-smi says"
            yield Finding((name,), "GPUs", len(facts.gpus), rule, fix)


def _ports(known: _Known) -> Iterator[Finding]:
    """The ports that the run meets at are free on the host of rank 0."""
    first = next(iter(known.needs.ranks), "")
    for port in known.facts[first].taken if first in known.facts else ():
        rule = "another program has this port"
        fix = "end it, or set MASTER_PORT to a free one"
        yield Finding((first,), "port", port, rule, fix)


def _run_directory(known: _Known) -> Iterator[Finding]:
    """The run's folder can be written to on every host, and is the same on all."""
    where = known.needs.run_directory
    refused = [name for name, facts in known.facts.items() if facts.refusal]
    for name in refused:
        rule = f"cannot be written to ({known.facts[name].refusal})"
        fix = "give this user the right to, or set run.directory"
        yield Finding((name,), where, None, rule, fix)
    writing = [answer for answer in known.answers if answer.name not in refused]
    if not where or len(writing) < 2:
        return
    # Hosts that share it see the same files; most of them decide what is meant, else the first.
    most = Counter(answer.sees for answer in writing).most_common(1)[0][0]
    apart = [answer.name for answer in writing if answer.sees != most]
    if apart:
        others = ", ".join(answer.name for answer in writing if answer.sees == most)
        rule = f"is not the folder of {others}: what is written there cannot be read here"
        fix = "set run.directory to a folder that all hosts share"
        yield Finding(tuple(apart), where, None, rule, fix)


def _clocks(known: _Known) -> Iterator[Finding]:
    """Clocks are within a second, as far as the network lets one see."""
    # The clock here is one of them: of two hosts alone, none could be told to be wrong.
    median = statistics.median([0.0, *(answer.clock_ahead for answer in known.answers)])
    for answer in known.answers:
        skew = answer.clock_ahead - median
        if abs(skew) - answer.clock_error > MOST_SKEW_SECONDS:
            rule = f"is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the others"
            fix = "run `timedatectl set-ntp true` or chronyd there"
            yield Finding((answer.name,), "clock", None, rule, fix)


def _shared_memory(known: _Known) -> Iterator[Finding]:
    """There is room in /dev/shm for what the ranks of a host tell each other."""
    for name, facts in known.facts.items():
        ranks = known.needs.ranks.get(name, 0)
        needed = ranks * (SHARED_BYTES_A_GPU if facts.gpus else SHARED_BYTES_A_RANK)
        if ranks > 1 and facts.shared_memory_free < needed:
            rule = f"{ranks} ranks need {needed // _MIB} MiB free there"
            if facts.shared_memory < needed:
                size = f"{-(-2 * needed // _GIB)}g"
                fix = f"start the container with --shm-size={size}, "
                fix += f"or run `mount -o remount,size={size} {SHARED_MEMORY}`"
            else:
                fix = f"remove what dead programs have left in {SHARED_MEMORY}"
            shown = f"{facts.shared_memory_free // _MIB} MiB free"
            yield Finding((name,), SHARED_MEMORY, shown, rule, fix)


def _limits(known: _Known) -> Iterator[Finding]:
    """ulimits leave room for connections, threads, and memory that a network card reads."""
    files = _FILES_BESIDES + _FILES_A_RANK * known.needs.world_size
    for name, facts in known.facts.items():
        ranks = known.needs.ranks.get(name, 0)
        wanted = {"nofile": (files, "-n"), "nproc": (_THREADS_A_RANK * ranks, "-u")}
        for limit, (needed, option) in wanted.items():
            has = facts.limits[limit]
            if has != UNLIMITED and has < needed:
                rule = f"a run of {known.needs.world_size} ranks needs {needed}"
                fix = f"raise it in /etc/security/limits.conf there (`ulimit {option}` shows it)"
                yield Finding((name,), f"ulimit {limit}", has, rule, fix)
        if facts.infiniband and len(known.needs.ranks) > 1:
            has = facts.limits["memlock"]
            if has != UNLIMITED:
                rule = "InfiniBand needs memory that stays where it is, without a limit"
                fix = "set `* - memlock unlimited` in /etc/security/limits.conf there"
                yield Finding((name,), "ulimit memlock", has, rule, fix)


def _interfaces(known: _Known) -> Iterator[Finding]:
    """Interfaces that the user names are on every host that gets ranks, with an address."""
    fix = "name one that every host has, as `ip -brief address` shows them there, or unset it"
    for variable, value in known.needs.interfaces.items():
        lacking = defaultdict[str, list[str]](list)
        for name, facts in known.facts.items():
            if known.needs.ranks.get(name, 0):
                lacking[_lack(known, facts, variable, value)].append(name)
        for rule, names in lacking.items():
            if rule:
                yield Finding(tuple(names), variable, value, rule, fix)


def _lack(known: _Known, facts: HostFacts, variable: str, value: str) -> str:
    """Why a host has nothing of what `variable` names; "" where it has."""
    usable = [name for name, addresses in facts.interfaces.items() if addresses]
    beyond = [name for name in usable if not all(map(_is_loopback, facts.interfaces[name]))]
    shown = f"there are {', '.join(usable)}" if usable else "there is none"
    if variable.startswith("NCCL"):
        taken = not facts.gpus or any(_nccl_takes(value, name) for name in usable)
        return "" if taken else f"fits no interface with an address ({shown})"
    for name in value.split(","):
        if name not in facts.interfaces:
            return f"no such interface ({shown})"
        if name not in usable:
            return f"this interface has no address ({shown})"
        if len(known.needs.ranks) > 1 and name not in beyond:
            return "is the loopback, which no other host reaches"
    return ""


def _nccl_takes(value: str, interface: str) -> bool:
    """Whether NCCL_SOCKET_IFNAME lets NCCL take it: beginnings of names; = whole ones, ^ others."""
    names = [each.partition(":")[0] for each in value.lstrip("^=").split(",")]
    whole = value.lstrip("^").startswith("=")
    named = interface in names if whole else interface.startswith(tuple(names))
    return named != value.startswith("^")


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _meeting(known: _Known) -> Iterator[Finding]:
    """Every host finds the host of rank 0 behind the address where the user wants ranks to meet."""
    address, first = known.needs.address, next(iter(known.needs.ranks), "")
    if not address or first not in known.facts:
        return
    host = known.facts[first]
    own = {*host.addresses, *(each for some in host.interfaces.values() for each in some)}
    fix = f"unset it to have an address of {first} taken, or set it to one"
    if not any(each in own or _is_loopback(each) for each in host.meet):
        rule = "stands for no address there"
        if host.meet:
            shown = ", ".join(host.addresses) or "it tells none"
            rule = f"is no address of this host, where rank 0 starts ({shown})"
        yield Finding((first,), "MASTER_ADDR", address, rule, fix)
        return
    reached = {each for each in own if not _is_loopback(each)}
    for names, found in known.grouped(lambda facts: ", ".join(facts.meet)):
        others = tuple(name for name in names if name != first)
        if others and not reached.intersection(found.split(", ")):
            rule = f"stands for {found or 'no address'} there, and not for host {first}"
            yield Finding(others, "MASTER_ADDR", address, rule, fix)


def _addresses(known: _Known) -> Iterator[Finding]:
    """A host's own name is an address that the others reach: Gloo tells it to them."""
    named = {"ROOTS_INTERFACE", "GLOO_SOCKET_IFNAME"}.intersection(known.needs.interfaces)
    if len(known.needs.ranks) < 2 or named:
        return
    for name, facts in known.facts.items():
        # NCCL, for ranks with GPUs, looks for an interface by itself.
        if not facts.gpus and (not facts.address or facts.address.startswith("127.")):
            shown = facts.address or "no address"
            rule = f"its own name {facts.host} means {shown} there, where no other host reaches it"
            fix = "correct its /etc/hosts, or set ROOTS_INTERFACE to the interface (as eth0)"
            yield Finding((name,), "", None, rule, fix)


CHECKS: tuple[Callable[[_Known], Iterator[Finding]], ...] = (
    _versions,
    _files,
    _gpus,
    _ports,
    _run_directory,
    _clocks,
    _shared_memory,
    _limits,
    _interfaces,
    _meeting,
    _addresses,
)
