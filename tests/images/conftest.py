"""Images that are built once a session; what is measured on the way is kept for the record.

What is marked whole_images costs many minutes and runs by `bash tests/images/run.sh` alone, which
names and, told so, installs what it needs.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.images.engine import Built, Engine
from tests.launch.machine import run

CPU = "localhost/roots:cpu"
TOOLS = ("buildah", "podman", "crun", "mmdebstrap")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "whole_images" not in config.option.markexpr:
        more = [item for item in items if item.get_closest_marker("whole_images")]
        config.hook.pytest_deselected(items=more)
        items[:] = [item for item in items if item not in more]


@pytest.fixture(scope="session")
def record() -> Iterator[dict[str, Any]]:
    """What this session measures; written to ROOTS_IMAGE_RECORD, if that names a file."""
    found: dict[str, Any] = {}
    yield found
    path = os.environ.get("ROOTS_IMAGE_RECORD", "")
    if path and found:
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]) -> Engine:
    """buildah and podman, with the base image in their store."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to build images without a daemon")
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs Debian packages: run `apt-get install {' '.join(missing)}`")
    store = Path(os.environ.get("ROOTS_IMAGE_STORE", "/var/tmp/roots-images"))
    store.mkdir(parents=True, exist_ok=True)
    engine = Engine(store, tmp_path_factory.mktemp("engine"))
    record["machine"] = {"processors": len(os.sched_getaffinity(0)), "system": _system()}
    record["tools"] = {name: _version(name) for name in TOOLS}
    seconds = engine.make_base(store.with_name(f"{store.name}-base.tar"))
    if seconds is not None:
        record["base_seconds"] = round(seconds)
    return engine


@pytest.fixture(scope="session")
def cpu(engine: Engine) -> Built:
    """The CPU image of this checkout."""
    return engine.build("cpu", CPU)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every user may write into, to be mounted."""
    folder = tmp_path_factory.mktemp("place")
    folder.chmod(0o777)
    return folder


def _system() -> str:
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    name = dict(line.partition("=")[::2] for line in lines)["PRETTY_NAME"].strip('"')
    return f"{name}, Linux {platform.release()}"


def _version(name: str) -> str:
    result = run([name, "--version"])
    return result.stdout.splitlines()[0].removeprefix(f"{name} ").removeprefix("version ")
