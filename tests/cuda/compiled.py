"""What the compilers made of every CUDA kernel: registers, shared memory, spills, machine code.

    python -m tests.cuda.compiled        # writes tests/golden/cuda_kernels.json anew

Commit the table with the change that moved it, and say in the message what moved and why.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roots.device import kernel_cache_folder
from roots.ops.library.build import log_path
from roots.ops.library.load import find_or_build
from roots.ops.library.stamp import read_stamp
from roots.ops.library.toolchain import package_folders
from tests.helpers.sources import ROOT

TABLE = ROOT / "tests" / "golden" / "cuda_kernels.json"

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SHORTER = (
    (r"\(anonymous namespace\)::|roots::|^void ", ""),
    (r"__nv_bfloat16", "bf16"),
    (r"__half", "half"),
    (r"\(int\)|\(bool\)", ""),
)


@dataclass(frozen=True)
class Usage:
    """What a kernel takes on one architecture: registers a thread, bytes of the rest."""

    registers: int
    shared: int
    stack: int
    spills: int


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its source's name, its own with template arguments, and `sm_XY`."""

    source: str
    name: str
    architecture: str


def library() -> Path:
    """The CUDA library for these sources, as `load` would take it, built if it has to be."""
    return find_or_build("cuda")


def usages(library: Path) -> dict[Kernel, Usage]:
    """What ptxas said of every kernel when `library` was built."""
    text = log_path(library).read_text(encoding="utf-8")
    found = {}
    names = {}
    for source, mangled, architecture, said in _entries(text):
        names[mangled] = mangled
        stack = _STACK.search(said)
        used = _USED.search(said)
        shared = _SHARED.search(said)
        assert stack is not None, f"ptxas says nothing of the stack of {mangled}"
        assert used is not None, f"ptxas says nothing of the registers of {mangled}"
        found[source, mangled, architecture] = Usage(
            registers=int(used[1]),
            shared=int(shared[1]) if shared else 0,
            stack=int(stack[1]),
            spills=int(stack[2]) + int(stack[3]),
        )
    names = demangle(list(names))
    return {
        Kernel(source, names[mangled], architecture): usage
        for (source, mangled, architecture), usage in found.items()
    }


def _entries(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Of a build's log: (source, mangled name, architecture, what ptxas said of it)."""
    for section in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        source = section.partition("\n")[0].removesuffix(".o").removeprefix("cuda/")
        entries = list(_ENTRY.finditer(section))
        ends = [entry.start() for entry in entries[1:]] + [len(section)]
        for entry, end in zip(entries, ends):  # bindings have no entries, but an end
            yield source, entry[1], entry[2], section[entry.end() : end]


def demangle(names: list[str]) -> dict[str, str]:
    """Names as a reader knows them: without namespaces and arguments, types in short."""
    result = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return dict(zip(names, map(_shorten, result.stdout.splitlines()), strict=True))


def _shorten(name: str) -> str:
    for pattern, replacement in _SHORTER:
        name = re.sub(pattern, replacement, name)
    return _without_arguments(name)


def _without_arguments(name: str) -> str:
    """Cut the list of arguments, which begins at the last parenthesis outside of <>."""
    depth = 0
    for position, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:position]
    return name


def instructions(library: Path) -> dict[tuple[str, str], Counter[str]]:
    """(name, `sm_XY`) of every kernel to how often each SASS instruction stands in it.

    Only of the machine code that is in the library: what is made from PTX later is not seen. Kept
    by the content of the library, since to disassemble it takes half a minute.
    """
    digest = hashlib.sha256(library.read_bytes())
    digest.update(f"{disassembler()}".encode())
    digest.update(Path(__file__).read_bytes())
    kept = kernel_cache_folder() / "objects" / "kept" / f"{digest.hexdigest()[:32]}.json"
    if not kept.is_file():
        found = _disassemble(library)
        rows = [[name, architecture, counts] for (name, architecture), counts in found.items()]
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{os.getpid()}-{kept.name}")
        partial.write_text(json.dumps(rows), encoding="utf-8")
        os.replace(partial, kept)
    os.utime(kept)  # it was used
    rows = json.loads(kept.read_text(encoding="utf-8"))
    return {(name, architecture): Counter(counts) for name, architecture, counts in rows}


def _disassemble(library: Path) -> dict[tuple[str, str], Counter[str]]:
    found: dict[tuple[str, str], Counter[str]] = {}
    architecture, current = "", Counter[str]()
    command = [str(disassembler()), "-sass", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            match = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", line)
            if match:
                current[match[1]] += 1
            elif line.startswith("\tcode for "):
                architecture = line.split()[-1]
            elif "Function : " in line:
                current = found.setdefault((line.split()[-1], architecture), Counter())
    assert process.returncode == 0, "cuobjdump fails"
    names = demangle(sorted({mangled for mangled, _ in found}))
    return {(names[mangled], arch): counts for (mangled, arch), counts in found.items()}


def disassembler() -> Path | None:
    """cuobjdump of the machine, or of the packages of the extra cuda-build."""
    for packages in package_folders():
        for tool in sorted((packages / "nvidia").glob("cu[0-9]*/bin/cuobjdump")):
            if tool.with_name("nvdisasm").is_file():
                return tool
    found = shutil.which("cuobjdump")
    return Path(found) if found and shutil.which("nvdisasm") else None


def complaints(
    usages: dict[Kernel, Usage], table: dict[str, Any], *, same_compiler: bool
) -> list[str]:
    """Where kernels spill, and where they take more than the committed table says, in sentences.

    Registers and shared memory are those of the table's compiler; with another one only spills
    and the list of the kernels are judged.
    """
    found = []
    for kernel, usage in usages.items():
        name = f"{kernel.source}: {kernel.name} on {kernel.architecture}"
        if (usage.stack, usage.spills) > (0, 0):
            found.append(f"{name} has {usage.stack} bytes of stack, {usage.spills} of spills.")
        limits = table["kernels"].get(kernel.source, {}).get(kernel.name, {})
        if kernel.architecture not in limits:
            found.append(f"{name} is not in the table.")
        elif same_compiler:
            for what, taken, limit in zip(
                table["columns"], (usage.registers, usage.shared), limits[kernel.architecture]
            ):
                if taken > limit:
                    found.append(f"{name} takes {taken} {what}, the table has {limit}.")
    known = {(kernel.source, kernel.name, kernel.architecture) for kernel in usages}
    for source, rows in table["kernels"].items():
        for name, row in rows.items():
            found += [
                f"{source}: {name} on {architecture} is in the table and is not built."
                for architecture in row
                if (source, name, architecture) not in known
            ]
    return found


def as_table(library: Path) -> dict[str, Any]:
    """The content of the committed table for a library."""
    stamp = read_stamp(library)
    assert stamp is not None, f"{library} has no stamp"
    kernels: dict[str, Any] = {}
    for kernel, usage in sorted(usages(library).items(), key=lambda item: str(item[0])):
        row = kernels.setdefault(kernel.source, {}).setdefault(kernel.name, {})
        row[kernel.architecture] = [usage.registers, usage.shared]
    return {"cuda": stamp.cuda, "columns": ["registers", "shared bytes"], "kernels": kernels}


def to_text(table: dict[str, Any]) -> str:
    """JSON with one line for every kernel, so that a change of one is a change of one line."""
    lines = ["{", f' "cuda": {json.dumps(table["cuda"])},']
    lines += [f' "columns": {json.dumps(table["columns"])},', ' "kernels": {']
    sources = []
    for source, rows in table["kernels"].items():
        body = ",\n".join(f"   {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        sources.append(f"  {json.dumps(source)}: {{\n{body}\n  }}")
    return "\n".join([*lines, ",\n".join(sources), " }", "}", ""])


def main() -> None:
    """Write the table for the library as it is built now."""
    TABLE.write_text(to_text(as_table(library())), encoding="utf-8")
    print(f"wrote {os.path.relpath(TABLE)}")


if __name__ == "__main__":
    main()
