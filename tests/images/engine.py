"""Building images with docker/build.sh, and running containers of them, as the tests here do.

buildah builds and podman runs, both in a store of their own, so that whatever else this machine has
of images stays as it is. What a machine's registries ask for (certificates, settings of apt and
pip, folders of wheels) is mounted while an image is built: ROOTS_IMAGE_VOLUMES, words FROM:TO:ro.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.sources import ROOT

BASE = "localhost/roots-base"
# Without CAP_SYS_RESOURCE limits can only be lowered, and podman's own are above what many have.
_MOST_FILES, _MOST_PROCESSES = 20000, 30000
# podman looks at control groups even for a container without limits, and crun refuses a machine
# that has both kinds; here it sees one.
_ONE_KIND_OF_CGROUPS = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'


@dataclass(frozen=True)
class Built:
    """An image, what was printed while it was built, and the seconds that took."""

    tag: str
    output: str
    seconds: float


class Engine:
    """buildah and podman with their store in `store`; `scratch` holds their settings."""

    def __init__(self, store: Path, scratch: Path) -> None:
        self.store = store
        settings = scratch / "storage.conf"
        settings.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{store}"\nrunroot = "{store}-run"\n',
            encoding="utf-8",
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(settings),
            "BUILDAH_ISOLATION": "chroot",
        }

    def make_base(self, archive: Path) -> float | None:
        """Make the base image of Debian's packages, if its archive is not there yet; seconds."""
        seconds = None
        if not archive.exists():
            begun = time.monotonic()
            sources = Path("/etc/apt/sources.list.d/debian.sources")
            mirror = sources if sources.exists() else Path("/etc/apt/sources.list")
            partial = archive.with_name(f"new-{archive.name}")
            command = ["mmdebstrap", "--variant=minbase", "--include=ca-certificates"]
            command += os.environ.get("ROOTS_IMAGE_BOOTSTRAP", "").split()
            self.call([*command, _codename(), str(partial), str(mirror)], TMPDIR="/dev/shm")
            partial.rename(archive)
            seconds = time.monotonic() - begun
        path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.call(["podman", "import", "--change", path, str(archive), BASE])
        return seconds

    def build(self, kind: str, tag: str, *words: str) -> Built:
        """Build an image of this checkout through docker/build.sh, on the base of `make_base`."""
        command = ["bash", str(ROOT / "docker" / "build.sh"), kind, tag, "--floating"]
        command += ["--engine", "buildah", "--layers", "--pull=never", "--network", "host"]
        for name in ("BASE",) if kind == "cpu" else ("BUILD_BASE", "RUN_BASE"):
            command += ["--build-arg", f"{name}={BASE}"]
        for volume in os.environ.get("ROOTS_IMAGE_VOLUMES", "").split():
            command += ["--volume", volume]
        begun = time.monotonic()
        output = self.call([*command, *os.environ.get("ROOTS_IMAGE_WORDS", "").split(), *words])
        return Built(tag, output, time.monotonic() - begun)

    def run(
        self, image: str, *command: str | Path, options: Sequence[str] = (), seconds: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        return subprocess.run(
            self.words(image, *command, options=options),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(
        self, image: str, *command: str | Path, options: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start a container."""
        return subprocess.Popen(
            self.words(image, *command, options=options),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def words(self, image: str, *command: str | Path, options: Sequence[str] = ()) -> list[str]:
        """The command that runs a container: podman without systemd, and what it needs here."""
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], _MOST_FILES)
        processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        if not 0 < processes < _MOST_PROCESSES:
            processes = _MOST_PROCESSES
        before = ["unshare", "--mount", "--propagation", "private", "bash", "-c"]
        podman = ["podman", "--cgroup-manager", "cgroupfs", "run", "--rm", "--no-healthcheck"]
        limits = ["--ulimit", f"nofile={files}:{files}", "--ulimit", f"nproc={processes}"]
        network = (
            [] if any(each.startswith("--network") for each in options) else ["--network=host"]
        )
        return [
            *before,
            _ONE_KIND_OF_CGROUPS,
            "podman",
            *podman,
            "--pull=never",
            *limits,
            *network,
            # Containers share the processors; threads that wait for each other only take them.
            "--env=OMP_NUM_THREADS=1",
            *options,
            image,
            *map(str, command),
        ]

    def inspect(self, image: str) -> dict[str, object]:
        """What the engine knows of an image."""
        (found,) = json.loads(self.call(["podman", "image", "inspect", image]))
        return dict(found)

    def call(self, command: Sequence[str], **environment: str) -> str:
        """Run a command with this store to its end. Raises AssertionError with what it said."""
        result = subprocess.run(
            list(command),
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{' '.join(command)}:\n{result.stdout[-8000:]}"
        return result.stdout


def _codename() -> str:
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return dict(line.partition("=")[::2] for line in lines)["VERSION_CODENAME"]
