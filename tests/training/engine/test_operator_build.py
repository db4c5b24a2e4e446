"""A build that was killed leaves nothing that a later one waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from roots.training.engine.operator_build import build_alone

# Not torch/extension.h, which takes the compiler half a minute.
CPP = (
    "#include <pybind11/pybind11.h>\n"
    'PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.attr("x") = 7; }\n'
)

# Builds with torch's own loader under the lock, and says when the compiler is about to run.
BUILD = """
import sys, torch.utils.cpp_extension as ext
from roots.training.engine.operator_build import build_alone
original = ext._write_ninja_file_and_build_library
def slow(*args, **kwargs):
    print("building", flush=True)
    sys.stdin.read()
    return original(*args, **kwargs)
ext._write_ninja_file_and_build_library = slow
build_alone(lambda: ext.load(name="tiny", sources=[sys.argv[1]]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path / "extensions"


def test_build_after_a_killed_build_does_not_wait(folder: Path, tmp_path: Path) -> None:
    """torch's lock file survives the kill; alone it would block every later build for ever."""
    source = tmp_path / "tiny.cpp"
    source.write_text(CPP)
    command = [sys.executable, "-c", BUILD, str(source)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"building\n"
        first.send_signal(signal.SIGKILL)
    assert (folder / "tiny" / "lock").is_file()
    subprocess.run(command, check=True, timeout=300, stdin=subprocess.DEVNULL)
    assert not (folder / "tiny" / "lock").exists()
    assert (folder / "tiny" / "tiny.so").is_file()


def test_two_at_once_build_one_after_the_other(folder: Path) -> None:
    inside = []
    most = []

    def construct() -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    threads = [threading.Thread(target=build_alone, args=(construct,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
