"""A target as a ninja file: incremental, with dependency files; what compilers say is kept."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from .targets import Target, Unit
from .toolchain import BuildError, Cuda, Toolchain

# What a compiler says goes to a log beside its object, and to ninja only when it fails.
_KEEP = "> $out.log 2>&1 || { cat $out.log; exit 1; }"


def ninja_file(target: Target, tools: Toolchain, csrc: Path) -> str:
    """The text of build.ninja for the folder of objects; the library is linked in that folder."""
    includes = include_flags(target, tools)
    lines = [
        "ninja_required_version = 1.3",
        *_rule("cxx", [*tools.compiler], ["-MMD", "-MF", "$out.d"], includes),
    ]
    if tools.cuda is not None:
        nvcc = [str(tools.cuda.nvcc), *_host_compiler(tools)]
        lines += _rule("nvcc", nvcc, ["-MMD", "-MF", "$out.d"], includes)
    lines += [
        "rule link",
        f"  command = {_join(tools.compiler)} -shared $in -o $out {_link(target, tools)} {_KEEP}",
        "  description = link $out",
    ]
    for unit in target.units:
        lines.append(f"build {_path(unit.name)}: {unit.compiler} {_path(str(csrc / unit.source))}")
        lines.append(f"  flags = {_join(unit.flags)}")
    names = [*(unit.name for unit in target.units), *target.objects]
    objects = " ".join(map(_path, names))
    lines.append(f"build {target.library}: link {objects}")
    return "\n".join([*lines, f"default {target.library}", ""])


def unit_seconds(target: Target, folder: Path) -> dict[str, float]:
    """How long each unit took when it was last compiled, from ninja's log; name to seconds."""
    return {unit.name: seconds for unit in target.units if (seconds := _seconds(unit, folder)) >= 0}


def _seconds(unit: Unit, folder: Path) -> float:
    log = folder / ".ninja_log"
    found = -1.0
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        fields = line.split("\t")
        if len(fields) >= 4 and fields[3] == unit.name:
            found = (int(fields[1]) - int(fields[0])) / 1000
    return found


def _rule(name: str, compiler: list[str], depend: list[str], includes: list[str]) -> list[str]:
    command = f"{_join(compiler)} $flags {_join(includes)} {' '.join(depend)} -c $in -o $out"
    return [
        f"rule {name}",
        f"  command = {command} {_KEEP}",
        "  depfile = $out.d",
        "  deps = gcc",
        f"  description = {name} $out",
    ]


def include_flags(target: Target, tools: Toolchain) -> list[str]:
    """What tells a compiler where a target's headers lie."""
    folders: list[Path] = []
    if "torch" in target.includes:
        folders.append(tools.torch.include)
        folders.append(tools.torch.include / "torch" / "csrc" / "api" / "include")
    if "cuda" in target.includes:
        folders += _cuda(tools).include
    return [word for folder in folders for word in ("-isystem", str(folder))]


def _link(target: Target, tools: Toolchain) -> str:
    folders = [tools.torch.library]
    if "-lcudart_static" in target.link:
        folders.append(_cuda(tools).library)
    return _join([*(f"-L{folder}" for folder in folders), *target.link])


def _host_compiler(tools: Toolchain) -> list[str]:
    """nvcc takes a single path; a compiler with a launcher before it (ccache) is left to nvcc."""
    return ["-ccbin", tools.compiler[0]] if len(tools.compiler) == 1 else []


def _cuda(tools: Toolchain) -> Cuda:
    if tools.cuda is None:
        raise BuildError("this target needs CUDA's headers, and no CUDA toolkit was looked for.")
    return tools.cuda


def _join(words: Iterable[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _path(text: str) -> str:
    """A path as ninja reads it in a build line."""
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
