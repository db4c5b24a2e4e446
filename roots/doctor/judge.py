"""What is out of line on hosts and between them, from what was measured. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from roots.doctor.outliers import LEAST_PEERS, slow_ones
from roots.doctor.survey import PairRate, Survey
from roots.launching.checks import findings
from roots.launching.finding import Finding

DISK, MATMUL, NETWORK, REDUCE, COMPUTES = (
    "disk",
    "matmul",
    "network",
    "all-reduce over its GPUs",
    "computes wrongly",
)
NAME_A_FOLDER = "mount it, or name a folder that is there on every host"
# How far below the median of its peers a rate may be. GPUs of one kind are within a few percent of
# each other unless one is hot or short of power; all else is shared with others.
_ALLOWED = {DISK: 0.6, MATMUL: 0.6, NETWORK: 0.5, REDUCE: 0.3}
_ALLOWED_GPU = 0.15
# What may not be there at all, and what may not rise while all devices work.
_NEVER = {
    "uncorrected ECC errors": "memory of the GPU fails",
    "pending remaps": "a row of its memory waits to be replaced",
    "failed remaps": "a row of its memory cannot be replaced any more",
}
_RISING = {
    "corrected ECC errors": "memory of the GPU begins to fail",
    "NVLink errors": "a link between GPUs loses data",
}
MEASURED = (DISK, MATMUL, NETWORK, REDUCE)


def judge(survey: Survey) -> list[Finding]:
    """Everything that is out of line. A finding without hosts cannot be laid to one of them."""
    found = findings(survey.answers, survey.needs)
    for look in (_silences, _devices, _counters, _disks, _matmuls, _reduces, _networks):
        found += look(survey)
    return found


def measured_part(finding: Finding) -> str:
    """Which of MEASURED it rests on, whose rate chance may have made low; "" for none."""
    return next((part for part in MEASURED if finding.part.startswith(part)), "")


def excluded(survey: Survey, found: Sequence[Finding]) -> list[str]:
    """Hosts that a run should go without, in their order.

    What is wrong with more than half of all hosts is no reason to leave these out.
    """
    blamed = defaultdict[str, set[str]](set)
    for finding in found:
        blamed[finding.part.partition(" of GPU ")[0]].update(finding.hosts)
    names = [answer.name for answer in survey.answers]
    out = set().union(*(hosts for hosts in blamed.values() if 2 * len(hosts) <= len(names)))
    return [name for name in names if name in out]


def amount(rate: float, unit: str) -> str:
    """`3.4 GB/s`: three digits or so, with a prefix of powers of 1000."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= factor:
            return f"{rate / factor:.3g} {prefix}{unit}"
    return f"{rate:.3g} {unit}"


def _silences(survey: Survey) -> Iterator[Finding]:
    for name, rates in survey.rates.items():
        if rates.silence:
            rule = f"stopped to answer while it was measured ({rates.silence})"
            yield Finding((name,), "", None, rule, "see what runs there, and its kernel's log")


def _devices(survey: Survey) -> Iterator[Finding]:
    with_gpus = {each.name for each in survey.answers if each.facts and each.facts.gpus}
    for name, rates in survey.rates.items():
        for number, device in enumerate(rates.devices):
            where = _of(number, "cuda" if name in with_gpus else "cpu")
            if device.error:
                fix = "see what `roots info` says there"
                yield Finding((name,), f"device{where}", None, f"fails ({device.error})", fix)
            if device.differs:
                rule = "the same product came out differently when it was computed again"
                fix = "take the machine out, and have it repaired"
                yield Finding((name,), f"{COMPUTES}{where}", None, rule, fix)


def _counters(survey: Survey) -> Iterator[Finding]:
    fix = "reset the GPU (`nvidia-smi --gpu-reset`); if it comes again, have it replaced"
    for name, rates in survey.rates.items():
        for number, after in enumerate(rates.after):
            for counter, rule in _NEVER.items():
                if after.get(counter, 0) > 0:
                    yield Finding((name,), f"{counter} of GPU {number}", after[counter], rule, fix)
        for number, (before, after) in enumerate(zip(rates.before, rates.after)):
            for counter, rule in _RISING.items():
                more = after.get(counter, 0) - before.get(counter, after.get(counter, 0))
                if more > 0:
                    part, shown = f"{counter} of GPU {number}", f"{more} more in this minute"
                    yield Finding((name,), part, shown, rule, fix)


def _disks(survey: Survey) -> Iterator[Finding]:
    lacking = defaultdict[str, list[str]](list)
    for name, rates in survey.rates.items():
        if rates.no_folder:
            lacking[rates.no_folder].append(name)
    for folder, names in lacking.items():
        yield Finding(tuple(names), "--disk", folder, "no such folder there", NAME_A_FOLDER)
    disks = {name: rates.disk for name, rates in survey.rates.items() if rates.disk is not None}
    for name, share in slow_ones(disks, _ALLOWED[DISK]).items():
        fix = "see what else writes there, and the disk's own health (`smartctl -a`)"
        yield Finding((name,), DISK, amount(disks[name], "B/s"), _slow(share), fix)
    for name, rates in survey.rates.items():
        if rates.disk is None and not rates.silence and not rates.no_folder:
            rule = f"nothing could be written there{', but on other hosts' if disks else ''}"
            fix = "see whether it is full, or mounted for reading only"
            yield Finding((name,), DISK, None, rule, fix)


def _matmuls(survey: Survey) -> Iterator[Finding]:
    """Devices are peers of those with the same name."""
    peers = defaultdict[str, dict[tuple[str, int], float]](dict)
    for name, rates in survey.rates.items():
        for number, device in enumerate(rates.devices):
            if device.matmul is not None:
                peers[f"{device.kind} {device.name}"][name, number] = device.matmul
    for kind, devices in peers.items():
        on_gpus = kind.startswith("cuda")
        allowed = _ALLOWED_GPU if on_gpus else _ALLOWED[MATMUL]
        for (name, number), share in slow_ones(devices, allowed).items():
            fix = "see `nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER` there"
            if not on_gpus:
                fix = "see the clock of its processors and what holds it down (heat, power)"
            shown = amount(devices[name, number], "FLOP/s")
            part = f"{MATMUL}{_of(number, 'cuda' if on_gpus else 'cpu')}"
            yield Finding((name,), part, shown, _slow(share), fix)


def _reduces(survey: Survey) -> Iterator[Finding]:
    inside = {
        name: rates.reduce for name, rates in survey.rates.items() if rates.reduce is not None
    }
    for name, share in slow_ones(inside, _ALLOWED[REDUCE]).items():
        fix = "see `nvidia-smi topo -m` and `nvidia-smi nvlink -s` there"
        yield Finding((name,), REDUCE, amount(inside[name], "B/s"), _slow(share), fix)
    for name, rates in survey.rates.items():
        if rates.reduce_error and name not in _broken(survey):
            fix = "see what NCCL_DEBUG=INFO says there"
            yield Finding((name,), REDUCE, None, f"fails ({rates.reduce_error})", fix)
    if survey.reduce_error and all(pair.rate is not None for pair in survey.pairs):
        rule = f"fails ({survey.reduce_error}), though every pair of hosts alone works"
        yield Finding((), "all-reduce over all hosts", None, rule, "run it again")


def _networks(survey: Survey) -> Iterator[Finding]:
    """A host is slow where even its best pair is; what then is still slow is a link of two."""
    bad = _broken(survey)
    for name, reason in _cut_off(survey.pairs).items():
        if name in bad:
            continue
        bad.add(name)
        fix = "see its cable, its firewall, and ROOTS_INTERFACE"
        yield Finding((name,), NETWORK, None, f"no other host works with it ({reason})", fix)
    best = dict[tuple[str, int], float]()
    for pair in survey.pairs:
        for name in pair.hosts:
            if pair.rate is not None:
                key = (name, pair.device)
                best[key] = max(best.get(key, 0.0), pair.rate)
    for (name, device), share in slow_ones(best, _ALLOWED[NETWORK]).items():
        bad.add(name)
        fix = "see its cable and card (`ethtool`, `ibstat`), and what else uses them"
        devices = survey.rates[name].devices
        part = f"{NETWORK}{_of(device, devices[device].kind)}"
        yield Finding((name,), part, amount(best[name, device], "B/s"), _slow(share), fix)
    others = [pair for pair in survey.pairs if not bad.intersection(pair.hosts)]
    rates = {pair: pair.rate for pair in others if pair.rate is not None}
    slow = slow_ones(rates, _ALLOWED[NETWORK])
    fix = "see the switches between them"
    for pair in others:
        part = f"{NETWORK} between {' and '.join(pair.hosts)}"
        if pair.rate is None:
            yield Finding((), part, None, f"fails ({pair.error})", fix)
        elif pair in slow:
            yield Finding((), part, amount(pair.rate, "B/s"), _slow(slow[pair]), fix)


def _broken(survey: Survey) -> set[str]:
    """Hosts that could not take part: what fails with them is no news."""
    return {
        name
        for name, rates in survey.rates.items()
        if rates.silence or any(device.error for device in rates.devices)
    }


def _cut_off(pairs: Sequence[PairRate]) -> dict[str, str]:
    """Hosts none of whose pairs works while others' do; each with what was told of the first."""
    tried = Counter(name for pair in pairs for name in pair.hosts)
    failed = [pair for pair in pairs if pair.rate is None]
    fails = Counter(name for pair in failed for name in pair.hosts)
    if len(tried) < LEAST_PEERS or len(failed) == len(pairs):
        return {}
    return {
        name: next(pair.error for pair in failed if name in pair.hosts)
        for name, count in fails.items()
        if count == tried[name]
    }


def _slow(share: float) -> str:
    return f"is {100 * share:.0f}% of the median of its peers"


def _of(number: int, kind: str) -> str:
    return f" of GPU {number}" if kind == "cuda" else ""
