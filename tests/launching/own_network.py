"""What this machine calls itself in a network, for tests that make it play several hosts."""

from __future__ import annotations

import pytest

from roots.launching.host_facts import facts_here


def own_interface() -> tuple[str, str]:
    """A network interface of this machine and its address, at which other hosts would reach it."""
    for name, addresses in facts_here().interfaces.items():
        for address in addresses:
            if not address.startswith("127.") and address != "::1":
                return name, address
    pytest.skip("this machine has no network interface but its loopback")
