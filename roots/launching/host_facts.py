"""Facts of one host, in JSON: what `roots launch` and `roots doctor` compare over all hosts.

    python -m roots.launching.host_facts [--path PATH ...] [--port N ...] [--meet ADDRESS]
        [--run-directory DIR]

Loads no torch; versions come from the packages' own records. The first line printed holds the
facts. After it every line of standard input is a question, until its end:

    clock            {"clock": seconds since 1970, just now}
    look NAME ...    {"seen": the names that are there, of files that other hosts have written}

With --run-directory and --probe NAME, a file of that name is written where the run's folder is or
will be, before the facts are told, and removed at the end.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import roots

PACKAGES = ("torch", "deepspeed", "numpy")
# What is behind a mark of a file: its content up to this size, its length beyond.
HASHED_BYTES = 1 << 20
SHARED_MEMORY = "/dev/shm"
MISSING = "missing"
UNREADABLE = "unreadable: "
# How much of a file that is compared by its content is in its mark.
_DIGITS = 12
_LIMITS = {
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "memlock": resource.RLIMIT_MEMLOCK,
}
UNLIMITED = -1
# Where ranks meet: below the ports that the system gives to connections.
_MEETING_PORTS = range(20_000, 30_000)
_PORTS_TRIED = 100
# Linux: of an interface by its name, the IPv4 address; where its answer holds that.
_ADDRESS_OF_INTERFACE, _NAME_FORMAT, _IPV4 = 0x8915, "256s", slice(20, 24)
# In /proc/net/if_inet6: reached by other hosts, though not over a router where it is of a site.
_IPV6_SCOPES = ("00", "10", "40")


@dataclass(frozen=True)
class HostFacts:
    """What one host says of itself; sizes in bytes.

    `versions` are of ROOTS, its packages and kernels, "" for what is not there, with a hash over
    the sources where a version alone says too little. `files` maps each asked path to a mark that
    is equal where the file is, MISSING, or the reason why it cannot be read. `taken` are the asked
    ports that another program has, `free_port` one that none has, 0 where all are taken. `limits`
    are soft ones, UNLIMITED for none. `address` is what the host's own name stands for, `addresses`
    are those of its network, `interfaces` all of them by the name of their interface, `meet` what
    the asked address of a meeting stands for there. `refusal` is why the run's folder cannot be
    written to.
    """

    host: str
    versions: Mapping[str, str]
    gpus: tuple[str, ...]
    processors: int
    memory: int
    shared_memory: int
    shared_memory_free: int
    limits: Mapping[str, int]
    files: Mapping[str, str]
    taken: tuple[int, ...]
    free_port: int
    address: str
    addresses: tuple[str, ...]
    interfaces: Mapping[str, tuple[str, ...]]
    meet: tuple[str, ...]
    infiniband: tuple[str, ...]
    refusal: str

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> HostFacts:
        """What `dataclasses.asdict` made, back from JSON."""
        names = ("gpus", "taken", "addresses", "meet", "infiniband")
        lists = {name: tuple(tree[name]) for name in names}
        interfaces = {name: tuple(each) for name, each in tree["interfaces"].items()}
        return HostFacts(**{**tree, **lists, "interfaces": interfaces})


def facts_here(paths: Iterable[str] = (), ports: Iterable[int] = (), meet: str = "") -> HostFacts:
    """Look at this host. Relative paths are from the current folder."""
    total, free = _shared_memory()
    gpus, driver = gpus_here()
    return HostFacts(
        host=platform.node(),
        versions={**_versions(), **({"nvidia driver": driver} if driver else {})},
        gpus=gpus,
        processors=len(os.sched_getaffinity(0)),
        memory=_available_memory(),
        shared_memory=total,
        shared_memory_free=free,
        limits={name: _limit(number) for name, number in _LIMITS.items()},
        files={path: mark_of(Path(path)) for path in paths},
        taken=tuple(port for port in ports if _is_taken(port)),
        free_port=_free_port(),
        address=_own_address(),
        addresses=_addresses(),
        interfaces=_interfaces(),
        meet=_meaning(meet) if meet else (),
        infiniband=_names_below("/sys/class/infiniband"),
        refusal="",
    )


def mark_of(path: Path) -> str:
    """What is equal for equal files: a hash of a short one, the length of a long one."""
    try:
        if path.is_dir():
            return "folder"
        size = path.stat().st_size
        if size > HASHED_BYTES:
            with path.open("rb") as file:
                file.read(1)
            return f"{size} bytes"
        return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]}"
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"{UNREADABLE}{error.strerror or error}"


def nearest_folder(path: Path) -> Path:
    """`path`, or what there is of it: the folder in which it would be made."""
    whole = Path.cwd() / path
    return next(each for each in (whole, *whole.parents) if each.is_dir())


def _versions() -> dict[str, str]:
    """Versions by name; a checkout's own number says too little, so its sources are hashed."""
    package = Path(roots.__file__).parent
    found = {"roots": f"{roots.__version__} (sources {_sources_hash(package)})"}
    # Releases of one Python understand each other.
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    for name in PACKAGES:
        found[name] = ""
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    for backend in ("cpu", "cuda"):
        found[f"{backend} kernels"] = _kernels(package / "ops" / "library" / f"_C_{backend}.json")
    return found


def _sources_hash(package: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def _kernels(stamp: Path) -> str:
    """What a kernel library was made from, by the file beside it (roots.ops.library.stamp)."""
    try:
        tree = json.loads(stamp.read_text(encoding="utf-8"))
        return f"sources {tree['sources']}, torch {tree['torch']}"
    except (OSError, ValueError, KeyError):
        return ""


def gpus_here() -> tuple[tuple[str, ...], str]:
    """Names of the NVIDIA GPUs that this host shows, and the version of their driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return (), ""
    pairs = [line.rpartition(", ") for line in run.stdout.splitlines() if line.strip()]
    return tuple(name for name, _, _ in pairs), pairs[0][2] if pairs else ""


def _available_memory() -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _shared_memory() -> tuple[int, int]:
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0, 0
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _limit(number: int) -> int:
    soft = resource.getrlimit(number)[0]
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _is_taken(port: int) -> bool:
    """Whether a program listens there: the ranks bind as this does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _free_port() -> int:
    tried = secrets.SystemRandom().sample(_MEETING_PORTS, _PORTS_TRIED)
    return next((port for port in tried if not _is_taken(port)), 0)


def _addresses() -> tuple[str, ...]:
    """All but those of the loopback, as `hostname -I` names them."""
    try:
        run = subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(run.stdout.split())


def _interfaces() -> dict[str, tuple[str, ...]]:
    """The addresses of every network interface by its name, () for one that has none."""
    found = {name: _ipv4(name) for _, name in socket.if_nameindex()}
    wider = _ipv6()
    return {name: (*each, *wider[name]) for name, each in found.items()}


def _ipv4(interface: str) -> tuple[str, ...]:
    asked = struct.pack(_NAME_FORMAT, interface.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        answer = fcntl.ioctl(probe, _ADDRESS_OF_INTERFACE, asked)
        return (socket.inet_ntoa(answer[_IPV4]),)
    return ()


def _ipv6() -> defaultdict[str, list[str]]:
    """As the system lists them, without those that mean nothing beyond a link."""
    found = defaultdict[str, list[str]](list)
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            digits, _, _, scope, _, interface = line.split()
            if scope in _IPV6_SCOPES:
                address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
                found[interface].append(address)
    return found


def _meaning(address: str) -> tuple[str, ...]:
    """The addresses that a name or an address stands for on this host."""
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(place[0]) for *_, place in found))


def _own_address() -> str:
    try:
        return socket.gethostbyname(platform.node())
    except OSError:
        return ""


def _names_below(folder: str) -> tuple[str, ...]:
    with suppress(OSError):
        return tuple(sorted(os.listdir(folder)))
    return ()


class Probe:
    """A file that says, to whoever finds it on another host, that both have the same folder."""

    def __init__(self, directory: Path, name: str) -> None:
        self.folder = nearest_folder(directory)
        self.name = name
        within = (Path.cwd() / directory).relative_to(self.folder).parts
        self._next = self.folder.joinpath(*within[:1])

    def write(self) -> str:
        """Write it to the disk; return why that failed, "" if it did not."""
        if self._next.exists() and not self._next.is_dir():
            return f"{self._next} is no folder"
        try:
            with open(self.folder / self.name, "w", encoding="utf-8") as file:
                file.write(self.name)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return f"{error.strerror or error} in {self.folder}"
        return ""

    def seen(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are there and hold what they should."""
        return [name for name in names if self._holds(name)]

    def _holds(self, name: str) -> bool:
        try:
            return (self.folder / name).read_text(encoding="utf-8") == name
        except OSError:
            return False

    def remove(self) -> None:
        """Take it away again."""
        with suppress(OSError):
            (self.folder / self.name).unlink()


def answers(questions: TextIO, probe: Probe | None) -> Iterator[dict[str, Any]]:
    """What is said to every question, at once."""
    for line in questions:
        word, *names = line.split()
        if word == "clock":
            yield {"clock": time.time()}
        elif word == "look" and probe is not None:
            yield {"seen": probe.seen(names)}


def main() -> None:
    """Tell the facts, then answer questions; without any, as from /dev/null, that is all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--path", action="append", default=[], help="file to look for")
    parser.add_argument("--port", action="append", default=[], type=int, help="port to try")
    parser.add_argument("--meet", default="", help="address to resolve")
    parser.add_argument("--run-directory", type=Path, help="the run's folder")
    parser.add_argument("--probe", default="", help="name of the file to write there")
    parser.add_argument("--folder", help="the current folder, from which paths count")
    options = parser.parse_args()
    try:
        if options.folder is not None:
            os.chdir(options.folder)
    except OSError as error:
        sys.exit(f"no folder {options.folder} here: {error.strerror}")
    facts = asdict(facts_here(options.path, options.port, options.meet))
    probe = None
    if options.run_directory is not None and options.probe:
        probe = Probe(options.run_directory, options.probe)
        # Who looks can be told to stop, and what is written here goes with it.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if probe is not None:
            facts["refusal"] = probe.write()
        _tell(facts)
        for answer in answers(sys.stdin, probe):
            _tell(answer)
    finally:
        if probe is not None:
            probe.remove()


def _tell(tree: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(tree) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
