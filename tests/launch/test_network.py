"""launch/network.sh: profiles, what the user has set, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.machine import Machine

ETHERNET = {
    "NCCL_DEBUG": "WARN",
    "NCCL_IB_DISABLE": "1",
    "NCCL_SOCKET_NTHREADS": "4",
    "NCCL_NSOCKS_PERTHREAD": "4",
}
SHOW = """
set -euo pipefail
source launch/network.sh
set_network
for name in ${!NCCL_*} ${!GLOO_*}; do echo "$name=${!name}"; done
"""


def variables(machine: Machine, **environment: str) -> tuple[dict[str, str], str]:
    """What set_network leaves in the environment, and what it says."""
    result = machine.run("-c", SHOW, **environment)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return dict(line.split("=", 1) for line in lines), result.stderr


def test_profiles(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert variables(machine, ROOTS_NETWORK="ethernet") == (ETHERNET, "")
    expected = {"NCCL_DEBUG": "WARN", "NCCL_IB_TIMEOUT": "22"}
    assert variables(machine, ROOTS_NETWORK="infiniband") == (expected, "")
    assert variables(machine, ROOTS_NETWORK="off") == ({}, "")


def test_profile_is_chosen_by_the_adapters_of_this_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    folder = Path("/sys/class/infiniband")
    has_adapter = folder.is_dir() and any(folder.iterdir())
    chosen, _ = variables(machine)
    assert ("NCCL_IB_TIMEOUT" in chosen) == has_adapter


def test_users_value_wins_and_is_told(tmp_path: Path) -> None:
    given = {"NCCL_DEBUG": "INFO", "NCCL_IB_DISABLE": "1", "NCCL_NSOCKS_PERTHREAD": ""}
    found, told = variables(Machine(tmp_path), ROOTS_NETWORK="ethernet", **given)
    assert found == {**ETHERNET, **given}
    assert told.splitlines() == [
        "bash: NCCL_DEBUG=INFO is yours and stays (ethernet: WARN)",
        "bash: NCCL_NSOCKS_PERTHREAD= is yours and stays (ethernet: 4)",
    ]


def test_interface_is_for_both_libraries(tmp_path: Path) -> None:
    found, _ = variables(Machine(tmp_path), ROOTS_NETWORK="ethernet", ROOTS_INTERFACE="eth0")
    assert found == {**ETHERNET, "GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "=eth0"}


def test_unknown_profile_is_refused(tmp_path: Path) -> None:
    result = Machine(tmp_path).run("-c", SHOW, ROOTS_NETWORK="token-ring")
    assert result.returncode == 2
    rule = "must be infiniband, ethernet, off or auto; "
    rule += "unset it to have that taken which fits this machine"
    assert result.stderr == f"bash: ROOTS_NETWORK=token-ring: {rule}\n"


@pytest.mark.parametrize("words", [["ethernet"], []])
def test_it_can_be_run_to_show_them(tmp_path: Path, words: list[str]) -> None:
    given = {"NCCL_DEBUG": "INFO", "ROOTS_NETWORK": "ethernet"}
    result = Machine(tmp_path).run("launch/network.sh", *words, **given)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "NCCL_DEBUG=INFO (yours)",
        "NCCL_IB_DISABLE=1            # there is no RDMA adapter to look for",
        "NCCL_SOCKET_NTHREADS=4       # one thread does not fill a link of 100 Gbit/s",
        "NCCL_NSOCKS_PERTHREAD=4      # nor does one connection; NCCL takes 64 of them at most, "
        "here it is 4 x 4",
    ]
