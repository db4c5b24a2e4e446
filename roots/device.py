"""The device of this process, and the environment its launcher gave it.

The only module that reads environment variables or calls torch.cuda. torch is imported where it is
first needed, so that a process can say that it has begun before it waits seconds for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from roots.errors import RootsError, problem

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """Where tensors of this process live."""

    kind: Literal["cpu", "cuda"]
    index: int

    @property
    def torch(self) -> torch.device:
        """The torch device, with its index on a GPU."""
        import torch

        return torch.device("cpu") if self.kind == "cpu" else torch.device("cuda", self.index)


@dataclass(frozen=True)
class LaunchEnvironment:
    """Ranks and rendezvous as set by deepspeed, torchrun or launch/slurm.sbatch."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master_addr: str
    master_port: int


def launch_environment(environment: Mapping[str, str] | None = None) -> LaunchEnvironment:
    """Read RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_WORLD_SIZE or LOCAL_SIZE.

    Without them the process is alone. Raises RootsError for a value that is no number.
    """
    source = os.environ if environment is None else environment

    def number(name: str, default: int) -> int:
        text = source.get(name, "")
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            rule = "must be an integer"
            fix = "start through launch/local.sh, hostfile.sh or slurm.sbatch, which set it"
            raise RootsError(problem(f"environment {name}", text, rule, fix)) from None

    world_size = number("WORLD_SIZE", 1)
    return LaunchEnvironment(
        rank=number("RANK", 0),
        local_rank=number("LOCAL_RANK", 0),
        world_size=world_size,
        local_world_size=number("LOCAL_WORLD_SIZE", number("LOCAL_SIZE", world_size)),
        master_addr=source.get("MASTER_ADDR", "127.0.0.1"),
        master_port=number("MASTER_PORT", 29500),
    )


def slurm_job() -> str:
    """The Slurm job of this process and how often it was requeued, "ID.RESTARTS"; "" without."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else ""


def output_is_forwarded(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a launcher passes on what this process writes, though it looks like a terminal.

    Open MPI gives each rank a terminal of its own for stdout, at which nobody looks.
    """
    source = os.environ if environment is None else environment
    return any(name in source for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK"))


def job_start() -> float:
    """When the job began that this process belongs to, in seconds of time.time().

    That is what launch/local.sh, hostfile.sh and supervise.sh say (ROOTS_JOB_START), so that tries
    that were started again count; else the start of this process. Raises RootsError for a value
    that is no number.
    """
    text = os.environ.get("ROOTS_JOB_START", "")
    return _epoch_seconds("ROOTS_JOB_START", text) if text else process_start()


def slurm_job_end() -> float | None:
    """When Slurm will end the job of this process, in seconds of time.time(); None outside of one.

    Raises RootsError for a value that is no number.
    """
    text = os.environ.get("SLURM_JOB_END_TIME", "")
    return _epoch_seconds("SLURM_JOB_END_TIME", text) if text else None


def process_start() -> float:
    """When this process began, in seconds of time.time(); now, where the system does not say it."""
    try:
        words = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(words[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.time()
    return time.time() - age


def _epoch_seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        rule = "must be seconds since 1970"
        raise RootsError(problem(f"environment {name}", text, rule, "unset it")) from None


def set_environment(values: Mapping[str, str], overwrite: bool = True) -> None:
    """Set environment variables that libraries read at import or at their first use."""
    for name, value in values.items():
        if overwrite or name not in os.environ:
            os.environ[name] = value


def name_accelerator() -> None:
    """Tell DeepSpeed that there is no GPU before it is imported; it would guess so, and warn."""
    import torch

    if not torch.cuda.is_available():
        set_environment({"DS_ACCELERATOR": "cpu"}, overwrite=False)


def prepend_to_path(folder: str) -> None:
    """Put `folder` first on PATH, for build tools that ship beside the interpreter."""
    parts = os.environ.get("PATH", "").split(os.pathsep)
    if folder not in parts:
        os.environ["PATH"] = os.pathsep.join([folder, *parts])


@contextlib.contextmanager
def temporary_environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable within the block, for what is imported there."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def rank_environment(rank: int, world_size: int, port: int, on_gpus: bool) -> dict[str, str]:
    """The environment of a process that this one starts as a rank on its own machine.

    Without `on_gpus` the process sees none. Threads: one a rank, unless OMP_NUM_THREADS says so.
    """
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    environment.update({name: str(value) for name, value in values.items()})
    if not on_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def extensions_folder() -> Path:
    """Where torch compiles extensions: TORCH_EXTENSIONS_DIR, else a folder of this environment.

    By default torch uses one folder for all environments of a user, which then rebuild each other's
    extensions. Sets the variable, so that torch sees the same folder.
    """
    import torch

    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}-torch{torch.__version__}"
        prefix = Path(sys.prefix)
        base = prefix if os.access(prefix, os.W_OK) else Path.home() / ".cache" / "roots"
        os.environ["TORCH_EXTENSIONS_DIR"] = str(base / "torch_extensions" / name)
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def end_process(code: int) -> NoReturn:
    """End this process at once, from any thread and whatever the others do; nothing is closed.

    The file ROOTS_RANK_RECORD gets the line "<time in ns> <exit code>" that launch/rank.py would
    have written there.
    """
    record = os.environ.get("ROOTS_RANK_RECORD", "")
    if record:
        temporary = Path(record).with_suffix(".end")
        with contextlib.suppress(OSError):
            temporary.write_text(f"{time.time_ns()} {code}\n", encoding="ascii")
            temporary.rename(record)
    os._exit(code)


def build_environment() -> Mapping[str, str]:
    """The environment in which kernels are compiled: PATH, CXX, CUDA_HOME, MAX_JOBS."""
    return dict(os.environ)


def prebuilt_kernels_folder() -> Path | None:
    """ROOTS_KERNELS: a folder of kernel libraries to be used before all others."""
    folder = os.environ.get("ROOTS_KERNELS", "")
    return Path(folder) if folder else None


def kernel_cache_folder() -> Path:
    """Where kernel libraries are kept that are compiled at their first use."""
    return extensions_folder() / "roots"


def cache_folder() -> Path:
    """Where this user's programs keep what can be had again: XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "roots"


def current_device(local_rank: int = 0) -> Device:
    """The GPU of this local rank when CUDA is usable, else the CPU. Makes the GPU current."""
    import torch

    if not torch.cuda.is_available():
        return Device("cpu", 0)
    index = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return Device("cuda", index)


def synchronize(device: Device) -> None:
    """Wait for the work queued on `device`; nothing to wait for on a CPU."""
    if device.kind == "cuda":
        import torch

        torch.cuda.synchronize(device.index)


@contextlib.contextmanager
def own_stream(device: Device) -> Iterator[None]:
    """Queue the work inside beside that of other threads, and wait for it; nothing on a CPU."""
    if device.kind != "cuda":
        yield
        return
    import torch

    stream = torch.cuda.Stream(device.index)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def available_host_bytes() -> int:
    """Host memory that can be had without swapping, of the machine and of this control group."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(each for each in lines if each.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
    return max(0, free)


def release_free_memory() -> None:
    """Give the system back what the host's allocator holds and nobody uses, where it can (glibc).

    Once it has seen a large block come back, it keeps up to twice 32 MiB for itself, in every
    thread that has asked it for memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory_bytes(device: Device) -> int:
    """Peak memory of this process in bytes: allocated on the GPU, resident on a CPU."""
    if device.kind == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device.index)
    return _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    """The largest resident size so far, of this program alone.

    Linux starts a new program's ru_maxrss at that of the process that it came from.
    """
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: Device) -> str:
    """The marketing name of the device, as the peak table spells it."""
    if device.kind == "cuda":
        import torch

        return torch.cuda.get_device_name(device.index)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def oldest_gpu() -> tuple[int, int] | None:
    """The lowest compute capability of the GPUs here; None where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_capability(index) for index in range(device_count()))


def device_count() -> int:
    """Number of CUDA devices that this process sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
