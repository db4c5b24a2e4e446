"""The list of an image's packages: the same for the same files, another for any other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.sources import ROOT

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 2.36-9
Description: GNU C Library
 Package: decoy
 .
 More of it.

Package: tzdata
Status: deinstall ok config-files
Architecture: all
Version: 2024a

Package: empty
Status: install ok installed
Architecture: all
Version: 1
"""
RECORD = """one/__init__.py,sha256=aaa,10
one/__pycache__/__init__.cpython-311.pyc,,
one-1.0.dist-info/METADATA,sha256=bbb,20
one-1.0.dist-info/INSTALLER,sha256=ccc,4
one-1.0.dist-info/RECORD,,
"one/a,b.py",sha256=ddd,30
"""


@pytest.fixture(scope="module")
def packages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("packages", ROOT / "docker" / "packages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What dpkg and pip leave in an image, in a folder."""
    info = tmp_path / "var" / "lib" / "dpkg" / "info"
    info.mkdir(parents=True)
    (info.parent / "status").write_text(STATUS, encoding="utf-8")
    (info / "libc6:amd64.md5sums").write_text("111  lib/b\n222  lib/a\n", encoding="ascii")
    write_distribution(tmp_path, RECORD)
    return tmp_path


def write_distribution(image: Path, record: str) -> None:
    folder = image / "env" / "lib" / "python3.11" / "site-packages" / "one-1.0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text("Name: One\nVersion: 1.0\n\nName: decoy\n", encoding="utf-8")
    (folder / "RECORD").write_text(record, encoding="utf-8")


def listed(packages: ModuleType, image: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    words = ["--root", str(image), "--environment", str(image / "env")]
    assert packages.main(words) == 0
    return capsys.readouterr().out.splitlines()


def test_lists_what_is_installed_with_versions_and_hashes(
    packages: ModuleType, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = listed(packages, image, capsys)
    heads = ["debian empty:all 1 -", "debian libc6:amd64 2.36-9 ", "python One 1.0 "]
    assert [line.startswith(head) for line, head in zip(lines, heads)] == [True] * 3
    assert len(lines) == 3
    assert {len(line.split()[-1]) for line in lines[1:]} == {64}


@pytest.mark.parametrize(
    "record, same",
    [
        ("\n".join(reversed(RECORD.splitlines())) + "\n", True),
        (RECORD.replace("INSTALLER,sha256=ccc,4", "INSTALLER,sha256=eee,3"), True),
        (RECORD + "one-1.0.dist-info/direct_url.json,sha256=fff,60\n", True),
        (RECORD.replace("one/__pycache__/__init__.cpython-311.pyc,,\n", ""), True),
        (RECORD.replace("sha256=ddd", "sha256=dde"), False),
        (RECORD + "one/more.py,sha256=ggg,1\n", False),
        (RECORD + "one/RECORD,sha256=ggg,1\n", False),
    ],
)
def test_hash_of_a_distribution_is_that_of_what_it_brought(
    packages: ModuleType,
    image: Path,
    record: str,
    same: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = listed(packages, image, capsys)
    write_distribution(image, record)
    assert (listed(packages, image, capsys) == before) is same


def test_hash_of_a_debian_package_is_that_of_its_files(
    packages: ModuleType, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listed(packages, image, capsys)
    path = image / "var" / "lib" / "dpkg" / "info" / "libc6:amd64.md5sums"
    path.write_text("222  lib/a\n111  lib/b\n", encoding="ascii")
    assert listed(packages, image, capsys) == before
    path.write_text("333  lib/a\n111  lib/b\n", encoding="ascii")
    changed = listed(packages, image, capsys)
    assert [a == b for a, b in zip(changed, before)] == [True, False, True]


def test_folders_without_packages_are_told_in_one_line(
    packages: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--root", str(tmp_path), "--environment", str(tmp_path)]
    assert packages.main(words) == 2
    assert capsys.readouterr().err == (
        f"roots-packages: --root={tmp_path}, --environment={tmp_path}: hold no packages\n"
    )
