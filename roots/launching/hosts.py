"""The hosts of a run: the lines of a DeepSpeed hostfile, and what its filters leave of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roots.errors import RootsError, problem

# OpenMPI's max_slots is passed over.
_LINE = re.compile(
    r"\s*([A-Za-z0-9][A-Za-z0-9._:@-]*)\s+slots\s*=\s*([1-9][0-9]*)"
    r"(\s+max[_-]slots\s*=\s*[0-9]+)?\s*"
)
_SLOTS = re.compile(r"[0-9]+(,[0-9]+)*")


@dataclass(frozen=True)
class Host:
    """A host by the name that ssh knows, and the slots (GPUs) on it that get a rank each."""

    name: str
    slots: tuple[int, ...]

    @property
    def ranks(self) -> int:
        """Ranks to start there."""
        return len(self.slots)

    def __str__(self) -> str:
        slots = ",".join(map(str, self.slots))
        return f"{self.name}:{slots}"


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of a file with lines `NAME slots=N`. Raises RootsError for every line that is not.

    Comments begin with #; a host has one line. Of a file without any good line, as a config is,
    only the first is told.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise RootsError(problem("hostfile", str(path), reason, "name the file")) from None
    hosts = dict[str, Host]()
    lines = list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0]
        if not content.strip():
            continue
        match = _LINE.fullmatch(content)
        where = f"{path} line {number}"
        if match is None:
            fix = "write the host's name and its number of ranks, `host1 slots=8`"
            lines.append(problem(where, line.strip(), "must read `NAME slots=N`", fix))
        elif match[1] in hosts:
            fix = "give each host one line with all its slots"
            lines.append(problem(where, match[1], "is there already", fix))
        else:
            hosts[match[1]] = Host(match[1], tuple(range(int(match[2]))))
    if not hosts and len(lines) > 1:
        rule = f"is no hostfile: none of its {len(lines)} lines reads `NAME slots=N`"
        fix = "name the file of hosts here, and the run's YAML file as CONFIG"
        lines = [problem("hostfile", str(path), rule, fix)]
    if not hosts and not lines:
        fix = "write a line `NAME slots=N` for each host"
        lines.append(problem("hostfile", str(path), "names no host", fix))
    if lines:
        raise RootsError(*lines)
    return list(hosts.values())


def refuse_hostfile(config: Path) -> None:
    """Raise RootsError where the file named as the run's config is a hostfile."""
    try:
        read_hostfile(config)
    except RootsError:
        return
    rule = "is a hostfile, with lines `NAME slots=N`"
    fix = "name the run's YAML file as CONFIG, and this one as the hostfile"
    raise RootsError(problem("CONFIG", str(config), rule, fix))


def filter_of(option: str, text: str) -> str:
    """The filter that `text` is, or that the file names whose path it is: a host a line.

    As for Slurm, a path is what has a / in it. Raises RootsError for a file that cannot be read.
    """
    if "/" not in text:
        return text
    try:
        return "@".join(Path(text).read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        fix = "name a file with a host a line, as `roots doctor --exclude-to` writes it"
        raise RootsError(problem(option, text, reason, fix)) from None


def select(hosts: Sequence[Host], include: str = "", exclude: str = "") -> list[Host]:
    """What DeepSpeed uses of `hosts` under its filters `NAME[:SLOT,SLOT...]@NAME...`.

    As it does: hosts stay in the order of the file whatever the filter's, slots are sorted, each
    counts once, and a host named both whole and with slots means these slots. `exclude` may be a
    file, as of `filter_of`. Raises RootsError for both filters at once, for names and slots that
    are not there, and where nothing is left.
    """
    if include and exclude:
        rule = "cannot be used together with --include"
        raise RootsError(problem("--exclude", exclude, rule, "drop one of them"))
    option, given = ("--include", include) if include else ("--exclude", exclude)
    text = include or filter_of(option, exclude)
    if not text:
        return list(hosts)
    source = option if text == given else f"{option} {given}"
    if users := [host.name for host in hosts if "@" in host.name]:
        rule = f"@ separates hosts there, and stands in the name {users[0]} of the hostfile"
        fix = "give the user in ~/.ssh/config"
        raise RootsError(problem(source, text, rule, fix))
    named = _named(source, text, {host.name: host for host in hosts})
    left = list[Host]()
    for host in hosts:
        chosen = named.get(host.name)
        if include:
            slots = () if chosen is None else chosen or host.slots
        elif chosen is None:
            slots = host.slots
        else:
            slots = tuple(slot for slot in host.slots if chosen and slot not in chosen)
        if slots:
            left.append(Host(host.name, slots))
    if not left:
        rule = f"leaves none of the hosts {', '.join(host.name for host in hosts)}"
        raise RootsError(problem(source, text, rule, "take one of them out of it"))
    return left


def _named(option: str, text: str, hosts: Mapping[str, Host]) -> dict[str, tuple[int, ...]]:
    """Every host of a filter with its slots, sorted; () for all of them."""
    named = dict[str, set[int]]()
    lines = list[str]()
    words = text.split("@")
    if not all(words):
        fix = "write `NAME@NAME`, with nothing before the first and behind the last"
        raise RootsError(problem(option, text, "@ stands between two hosts", fix))
    for word in words:
        name, colon, listed = word.partition(":")
        host = hosts.get(name)
        if host is None:
            fix = f"its hosts are {', '.join(hosts)}"
            lines.append(problem(option, word, f"{name!r} is not in the hostfile", fix))
        elif colon and not _SLOTS.fullmatch(listed):
            fix = "write `NAME:0,1`, joined by @"
            lines.append(problem(option, word, "slots are numbers with commas between", fix))
        else:
            slots = {int(each) for each in listed.split(",")} if colon else set()
            if strange := sorted(slots - set(host.slots)):
                rule = f"{name} has no slot {strange[0]}"
                fix = f"its slots are 0 to {host.slots[-1]}"
                lines.append(problem(option, word, rule, fix))
            named.setdefault(name, set()).update(slots)
    if lines:
        raise RootsError(*lines)
    return {name: tuple(sorted(slots)) for name, slots in named.items()}
