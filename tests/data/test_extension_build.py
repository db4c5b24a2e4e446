"""Building the compiled part."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_missing_compiler_is_one_line(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "setup.py", "-q", "build_ext", "--force"]
    command += ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    environment = {**os.environ, "CC": "/absent/cc", "CXX": "/absent/c++"}
    result = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == (
        "setup.py: C++ compiler '/absent/c++' is not on PATH and csrc/data needs C++17; "
        "run `apt-get install g++` (or set CXX to your compiler)"
    )
    assert "Traceback" not in result.stderr


def test_building_needs_no_torch():
    source = (Path(__file__).parents[2] / "setup.py").read_text()
    script = f"import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--name']\n{source}"
    result = subprocess.run(
        [sys.executable, "-c", script.replace("from __future__ import annotations\n", "")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "roots-pretrain"
