"""Variables of the user that are looked at before a start."""

from __future__ import annotations

import pytest

from roots.launching.environment import named_interfaces


@pytest.mark.parametrize(
    "variables, named",
    [
        ({}, {}),
        ({"ROOTS_INTERFACE": "eth0"}, {"ROOTS_INTERFACE": "eth0"}),
        # As launch/network.sh sets the others.
        (
            {
                "ROOTS_INTERFACE": "eth0",
                "GLOO_SOCKET_IFNAME": "eth0",
                "NCCL_SOCKET_IFNAME": "=eth0",
            },
            {"ROOTS_INTERFACE": "eth0"},
        ),
        (
            {"ROOTS_INTERFACE": "eth0", "GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": ""},
            {"ROOTS_INTERFACE": "eth0", "GLOO_SOCKET_IFNAME": "ib0"},
        ),
        ({"NCCL_SOCKET_IFNAME": "=ib0"}, {"NCCL_SOCKET_IFNAME": "=ib0"}),
    ],
)
def test_interface_is_named_once(
    variables: dict[str, str], named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROOTS_INTERFACE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert named_interfaces() == named
