"""What each kernel library is made from: sources, flags, link flags. Pure data and functions of it.

A target is a list of units (a source compiled with certain flags, once for every instruction set on
a CPU) that are linked into one library. Names and flags are free of machine-dependent paths.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Backend = Literal["cpu", "cuda", "simulator"]
BACKENDS: tuple[Backend, ...] = ("cpu", "cuda", "simulator")

# GPUs to compile for: machine code each, and PTX of the last one for what comes after it.
ARCHITECTURES = ("80", "90")

# The oldest torch whose stable ABI the libraries use (2.11), as torch spells it.
_STABLE_ABI = ("-DTORCH_TARGET_VERSION=0x020b000000000000",)
_CXX = (
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-unknown-pragmas",
)
_CAPABILITIES: dict[str, tuple[str, ...]] = {
    "avx2": (
        "-DROOTS_CAPABILITY=avx2",
        "-DROOTS_CAPABILITY_AVX2",
        "-DCPU_CAPABILITY=AVX2",
        "-DCPU_CAPABILITY_AVX2",
        "-mavx2",
        "-mfma",
        "-mf16c",
    ),
    "avx512": (
        "-DROOTS_CAPABILITY=avx512",
        "-DROOTS_CAPABILITY_AVX512",
        "-DCPU_CAPABILITY=AVX512",
        "-DCPU_CAPABILITY_AVX512",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mfma",
        "-mf16c",
    ),
}
# Kernels of the simulator multiply and add without a call, and round as without these flags.
_SIMULATED = ("-mavx2", "-mfma", "-mf16c", "-ffp-contract=off")
_NVCC = (
    "-O3",
    "-std=c++20",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-lineinfo",
    "-Xptxas=-v",
    "--expt-relaxed-constexpr",
    "-DROOTS_BACKEND_CUDA",
)
# The weak CUDA symbols of the binding resolve where libtorch.so brings libtorch_cuda.so in.
_LINK_TORCH = ("-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-ltorch_cpu", "-lc10")
_LINK: dict[Backend, tuple[str, ...]] = {
    "cpu": _LINK_TORCH,
    "cuda": (*_LINK_TORCH, "-lcudart_static", "-lrt", "-ldl", "-lpthread"),
    "simulator": (*_LINK_TORCH, "-fopenmp"),
}
# Defines the operators; the CUDA library implements those of the CPU library.
_SCHEMAS = "schemas"
# Bindings of the operators that only a CPU has, and what defines these.
_CPU_ALONE = "binding/cpu"
_CPU_SCHEMAS = "cpu_schemas"
_SANITIZE = ("-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g")


@dataclass(frozen=True)
class Unit:
    """One object file: `source` (relative to csrc) compiled by "cxx" or "nvcc" with `flags`."""

    name: str
    source: str
    compiler: Literal["cxx", "nvcc"]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """One library: `files` are all sources and headers that its content depends on.

    `includes` names what besides the sources' own folders is searched for headers; `objects` are
    paths of units that are compiled already.
    """

    backend: Backend
    units: tuple[Unit, ...]
    files: tuple[str, ...]
    link: tuple[str, ...]
    includes: tuple[Literal["torch", "cuda"], ...]
    architectures: tuple[str, ...]
    objects: tuple[str, ...] = ()

    @property
    def library(self) -> str:
        """The file name of the library."""
        return library_name(self.backend)


def library_name(backend: Backend) -> str:
    """The file name of a backend's library."""
    return f"_C_{backend}.so"


def make_target(
    backend: Backend,
    csrc: Path,
    *,
    ops: Sequence[str] = (),
    architectures: Sequence[str] = ARCHITECTURES,
    sanitize: bool = False,
) -> Target:
    """List what the library of `backend` is built from in the folder `csrc`.

    ops: stems of the sources to take, all of them by default; `sanitize` adds ASan and UBSan.
    """
    units = [
        *_binding_units(backend, csrc, ops),
        *_kernel_units(backend, csrc, ops, sanitize, tuple(architectures)),
    ]
    return Target(
        backend=backend,
        units=tuple(units),
        files=_files(backend, csrc, ops),
        link=(*_LINK[backend], *(_SANITIZE if sanitize else ())),
        includes=("torch",) if backend == "cpu" else ("torch", "cuda"),
        architectures=tuple(architectures) if backend == "cuda" else (),
    )


def architecture_flags(architectures: Sequence[str]) -> tuple[str, ...]:
    """nvcc's flags for machine code of each architecture, and PTX of the last for newer GPUs."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    if architectures:
        last = architectures[-1]
        flags.append(f"-gencode=arch=compute_{last},code=compute_{last}")
    return tuple(flags)


def _binding_units(backend: Backend, csrc: Path, ops: Sequence[str]) -> list[Unit]:
    # Never sanitized: they take half of such a build, and what they allocate is watched anyway.
    flags = (*_optimisation(backend, sanitize=False), *_CXX, *_STABLE_ABI, _define(backend))
    sources = _sources(csrc, "binding", ".cpp", ops, always=(_SCHEMAS,))
    if backend == "cpu":
        sources += _sources(csrc, _CPU_ALONE, ".cpp", ops, always=(_CPU_SCHEMAS,))
    if backend == "cuda":
        sources = [source for source in sources if Path(source).stem != _SCHEMAS]
    return [Unit(_object("binding", source), source, "cxx", flags) for source in sources]


def _kernel_units(
    backend: Backend, csrc: Path, ops: Sequence[str], sanitize: bool, architectures: tuple[str, ...]
) -> list[Unit]:
    optimisation = _optimisation(backend, sanitize)
    if backend == "cpu":
        # No stable ABI here: at::vec, which is headers alone, refuses to be included with it.
        flags = (*optimisation, *_CXX, _define(backend))
        return [
            Unit(_object(capability, source), source, "cxx", (*flags, *capability_flags))
            for source in _sources(csrc, "cpu", ".cpp", ops)
            for capability, capability_flags in _CAPABILITIES.items()
        ]
    kernels = _sources(csrc, "cuda", ".cu", ops)
    if backend == "cuda":
        every = (*_NVCC, *architecture_flags(architectures))
        sm90 = (*_NVCC, "-gencode=arch=compute_90a,code=sm_90a")
        return [
            *(Unit(_object("cuda", source), source, "nvcc", every) for source in kernels),
            *(
                Unit(_object("sm90", source), source, "nvcc", sm90)
                for source in _sources(csrc, "cuda/sm90", ".cu", ops)
            ),
        ]
    host = _SIMULATED if platform.machine() == "x86_64" else ()
    flags = (*optimisation, *_CXX, *host, "-fopenmp", _define(backend))
    runtime = _sources(csrc, "cuda/sim", ".cpp", ())
    return [
        *(
            Unit(_object("cuda", source), source, "cxx", ("-x", "c++", *flags))
            for source in kernels
        ),
        *(Unit(_object("sim", source), source, "cxx", flags) for source in runtime),
    ]


def _files(backend: Backend, csrc: Path, ops: Sequence[str]) -> tuple[str, ...]:
    """All files of csrc that the library depends on: its sources, and every header in reach."""
    folders = {
        "cpu": ("", "ops", "binding", _CPU_ALONE, "cpu"),
        "cuda": ("", "ops", "binding", "cuda", "cuda/sm90"),
        "simulator": ("", "ops", "binding", "cuda", "cuda/sim"),
    }[backend]
    found: list[str] = []
    for folder in folders:
        for suffix in (".h", ".cuh", ".inc"):
            found += _sources(csrc, folder, suffix, ())
        if folder == "cuda/sim":
            found += _sources(csrc, folder, ".cpp", ())
        else:
            for suffix in (".cpp", ".cu"):
                found += _sources(csrc, folder, suffix, ops, always=(_SCHEMAS, _CPU_SCHEMAS))
    return tuple(sorted(found))


def _sources(
    csrc: Path, folder: str, suffix: str, ops: Sequence[str], always: Sequence[str] = ()
) -> list[str]:
    """Files of a folder by suffix, relative to csrc; with `ops`, those whose stem begins so."""
    paths = sorted((csrc / folder).glob(f"*{suffix}"))
    if ops:
        paths = [path for path in paths if path.stem.startswith((*ops, *always))]
    return [path.relative_to(csrc).as_posix() for path in paths]


def _object(kind: str, source: str) -> str:
    return f"{kind}/{Path(source).name}.o"


def _define(backend: Backend) -> str:
    return f"-DROOTS_BACKEND_{backend.upper()}"


def _optimisation(backend: Backend, sanitize: bool) -> tuple[str, ...]:
    if sanitize:
        return ("-O1", *_SANITIZE)
    return ("-O3",) if backend == "cpu" else ("-O2",)
