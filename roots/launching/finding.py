"""Something that is wrong with hosts, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass

from roots.errors import problem
from roots.launching.gather import HERE


@dataclass(frozen=True)
class Finding:
    """What is wrong: which `hosts` (none: no single one is at fault) and which `part` of them.

    `value` is what was found, None for what has none, `rule` what it should be, `fix` what to do.
    """

    hosts: tuple[str, ...]
    part: str
    value: object
    rule: str
    fix: str

    @property
    def line(self) -> str:
        """The finding as an error is told."""
        subject = ": ".join(filter(None, (hosts_named(*self.hosts), self.part)))
        return problem(subject, self.value, self.rule, self.fix)


def hosts_named(*names: str) -> str:
    """`host a`, or `hosts a, b`, as a line begins; "" for none."""
    if not names or names == (HERE,):
        return "".join(names)
    return f"host{'s' if len(names) > 1 else ''} {', '.join(names)}"
