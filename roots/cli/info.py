"""`roots info`: versions, devices, kernel libraries, which implementation of every op would run."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
from typing import Any

import typer

from roots.cli.options.trained import AsJson

_PACKAGES = ("torch", "deepspeed", "numpy", "pydantic", "tokenizers", "transformers", "apex")


def info(
    as_json: AsJson = False,
) -> None:
    """Show versions, devices, kernel libraries, and for every op the choice and its reasons."""
    report = _report()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for name, version in report["versions"].items():
        typer.echo(f"{name:14} {version}")
    for number, device in enumerate(report["devices"]):
        typer.echo(f"device {number}       {device}")
    for library in report["libraries"]:
        typer.echo(f"{'kernels ' + library['backend']:18} {library_line(library)}")
    typer.echo("")
    for op in report["ops"]:
        case = f" ({op['case']})" if op["case"] else ""
        typer.echo(f"{op['op'] + case:24} {op['device']} {op['dtype']:5} {op['chosen'] or 'none'}")
        for name, reasons in op["others"]:
            why = " ".join(reasons) or "runs when asked for"
            typer.echo(f"{'':31}not {name}: {why}")


def _report() -> dict[str, Any]:
    """Collect what `roots info` shows."""
    from roots import __version__
    from roots.device import Device, device_count, device_name
    from roots.ops import table
    from roots.ops.library.status import library_statuses

    versions = {"roots": __version__, "python": platform.python_version()}
    versions.update({name: _version(name) for name in _PACKAGES})
    cpu = Device("cpu", 0)
    gpus = [Device("cuda", index) for index in range(device_count())]
    kinds = ["cpu", "cuda"] if gpus else ["cpu"]
    ops = [dataclasses.asdict(status) for status in table(kinds)]
    return {
        "versions": versions,
        "devices": [f"cpu: {device_name(cpu)}"]
        + [f"cuda:{gpu.index}: {device_name(gpu)}" for gpu in gpus],
        "libraries": [dataclasses.asdict(status) for status in library_statuses(kinds)],
        "ops": ops,
    }


def library_line(library: dict[str, Any]) -> str:
    """State, place and tools of a kernel library, or the reason why there is none."""
    if library["path"] is None:
        return f"{library['state']}: {library['reason']}"
    tools = [f"torch {library['torch']}"]
    if library["cuda"]:
        tools.append(f"CUDA {library['cuda']}")
    tools += [f"sm_{architecture}" for architecture in library["architectures"]]
    tools.append(library["compiler"])
    return f"{library['state']}: {library['path']} ({', '.join(tools)})"


def _version(package: str) -> str:
    """Installed version; the apex of PyPI is told apart from NVIDIA's."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if package == "apex" and importlib.util.find_spec("apex.optimizers") is None:
        return f"{version} (not NVIDIA apex)"
    return version
