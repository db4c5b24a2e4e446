"""Real Slurm on simulated hosts, as tests use it: submit, look, wait."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.cluster.hosts import SCRIPT, Hosts, wait_until

STARTER = SCRIPT.with_name("slurm.sh")
# States of a job that nothing more happens to.
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}


class Slurm:
    """Slurm on `hosts`; its commands run on the first of them."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.controller, *self.nodes = hosts.names
        self.folder = hosts.folder / "slurm"

    def run(
        self, *words: str | Path, timeout: float = 60.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands to its end."""
        environment["SLURM_CONF"] = str(self.folder / "slurm.conf")
        return self.hosts.run(self.controller, *words, timeout=timeout, **environment)

    def ask(self, *words: str | Path) -> str:
        """What a command prints; it must succeed."""
        result = self.run(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def submit(self, *words: str | Path, **environment: str) -> str:
        """`sbatch` with these words; the number of the job."""
        result = self.run("sbatch", "--parsable", *words, **environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, by name: JobState, Reason, ExitCode, Restarts, ..."""
        text = self.ask("scontrol", "--oneliner", "show", "job", number).splitlines()[0]
        return dict(re.findall(r"(\S+?)=(.*?)(?= \S+?=|$)", text))

    def wait_for_state(self, number: str, *states: str, seconds: float = 120.0) -> dict[str, str]:
        """Wait until the job is in one of `states` (the default: has ended), and show it."""
        wanted = set(states) or ENDED
        wait_until(
            lambda: self.job(number)["JobState"] in wanted,
            f"job {number} is {' or '.join(sorted(wanted))}",
            seconds,
        )
        return self.job(number)

    def node_state(self, node: str) -> str:
        """A node's state as sinfo writes it: idle, mixed, down, ..."""
        return self.ask("sinfo", "--noheader", f"--nodes={node}", "--format=%T").strip("*")

    def start_node(self, node: str) -> None:
        """Start the slurmd of a host that was switched on again."""
        command = ["bash", str(STARTER), "node", str(self.hosts.folder), node]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def cancel_all(self) -> None:
        """End all jobs, whatever they are doing, and wait until no node works for one."""
        self.run("scancel", "--signal=KILL", "--full", "--user=root")
        self.run("scancel", "--user=root")
        wait_until(lambda: not self.ask("squeue", "--noheader"), "no job is left", 60)

    def mend(self) -> None:
        """Give every node that is on its slurmd, and wait until a job can have all of them."""
        for node in self.nodes:
            running = self.hosts.run(node, "pidof", "slurmd").returncode == 0
            if not running:
                self.start_node(node)
        self._wait_until_idle()
        # Slurm calls a node idle a moment before it gives it away.
        self.ask("srun", f"--nodes={len(self.nodes)}", "--exclusive", "true")
        self._wait_until_idle()

    def _wait_until_idle(self) -> None:
        wait_until(
            lambda: all(self.node_state(node) == "idle" for node in self.nodes),
            "all nodes are idle",
        )


def slurm_up(hosts: Hosts, *options: str) -> Slurm:
    """Start Slurm on hosts that are on; `options` are those of slurm.sh up."""
    command = ["bash", str(STARTER), "up", *options, str(hosts.folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Slurm(hosts)
