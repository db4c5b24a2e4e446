"""Counters of faults that NVIDIA's driver (NVML) keeps, read through nvidia-smi."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress

# What is told of a counter, by the field of nvidia-smi; the second list is of GPUs since Ampere.
_ECC = {
    "corrected ECC errors": "ecc.errors.corrected.volatile.total",
    "uncorrected ECC errors": "ecc.errors.uncorrected.volatile.total",
}
_REMAPS = {
    "pending remaps": "remapped_rows.pending",
    "failed remaps": "remapped_rows.failure",
}
_SECONDS = 20
_GPU = re.compile(r"GPU (\d+):")
_ERRORS = re.compile(r"\s*Link \d+: .*Errors: (\d+)")


def counters_here() -> list[dict[str, int]]:
    """Counters of every GPU that this host shows, in order; without those that it has not."""
    found = _fields({**_ECC, **_REMAPS}) or _fields(_ECC)
    for number, errors in nvlink_errors(_output("nvlink", "-e")).items():
        if number < len(found):
            found[number]["NVLink errors"] = errors
    return found


def _fields(names: dict[str, str]) -> list[dict[str, int]]:
    """One list for each GPU; empty where nvidia-smi knows one of the fields not at all."""
    fields = ",".join(names.values())
    text = _output(f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    return table(list(names), text)


def table(names: list[str], text: str) -> list[dict[str, int]]:
    """The numbers of lines with commas between; `[N/A]` and the like are left out."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == len(names):
            row = {name: _number(word) for name, word in zip(names, words)}
            found.append({name: value for name, value in row.items() if value is not None})
    return found


def _number(word: str) -> int | None:
    """Of `3`, `Yes` and `No`."""
    if word in ("Yes", "No"):
        return int(word == "Yes")
    return int(word) if word.isdecimal() else None


def nvlink_errors(text: str) -> dict[int, int]:
    """Errors of all links of each GPU together, from what `nvidia-smi nvlink -e` prints."""
    found = dict[int, int]()
    gpu = -1
    for line in text.splitlines():
        if match := _GPU.match(line):
            gpu = int(match[1])
        elif (match := _ERRORS.match(line)) and gpu >= 0:
            found[gpu] = found.get(gpu, 0) + int(match[1])
    return found


def _output(*words: str) -> str:
    """What nvidia-smi prints, "" where it fails or is not there."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True
        ).stdout
    return ""
