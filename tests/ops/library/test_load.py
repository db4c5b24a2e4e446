"""Which library is loaded, and what is said where there is none."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from roots.ops.library import load as loading
from roots.ops.library import toolchain
from roots.ops.library.build import build
from roots.ops.library.load import Loaded, available, loaded
from roots.ops.library.stamp import read_stamp
from roots.ops.library.targets import Backend
from tests.ops.library.tiny import cpu_plan, write_sources


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of tiny kernels; `load` sees it instead of this one."""
    folder = tmp_path / "checkout"
    package = folder / "roots" / "ops" / "library"
    package.mkdir(parents=True)
    write_sources(folder / "csrc")
    monkeypatch.setattr(loading, "PACKAGE", package)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.delenv("ROOTS_KERNELS", raising=False)
    return folder


def load_anew(backend: Backend) -> Loaded:
    """`loaded` without its memory of this process."""
    result: Loaded = loaded.__wrapped__(backend)
    return result


def package_of(checkout: Path) -> Path:
    return checkout / "roots" / "ops" / "library"


def test_built_ahead_of_time_is_used_as_it_is(checkout: Path, tmp_path: Path) -> None:
    built = build(cpu_plan(checkout / "csrc"), tmp_path / "objects", package_of(checkout))
    assert load_anew("cpu") == Loaded(built, read_stamp(built), "")
    assert not (tmp_path / "extensions" / "roots").exists()


def test_stale_library_is_built_anew_and_the_log_says_so(
    checkout: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stale = build(cpu_plan(checkout / "csrc"), tmp_path / "objects", package_of(checkout))
    (checkout / "csrc" / "common.h").write_text("#define TINY 5\n", encoding="utf-8")
    with caplog.at_level(logging.INFO, logger="roots"):
        found = load_anew("cpu")
    assert found.path is not None
    assert found.path.is_relative_to(tmp_path / "extensions" / "roots")
    message = f"{stale} was built from other sources than {checkout / 'csrc'} holds: not used"
    assert message in caplog.messages


def test_library_without_a_stamp_is_not_trusted(checkout: Path, tmp_path: Path) -> None:
    built = build(cpu_plan(checkout / "csrc"), tmp_path / "objects", package_of(checkout))
    built.with_suffix(".json").unlink()
    assert load_anew("cpu").path != built


def test_named_folder_comes_first_whatever_it_was_built_from(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(cpu_plan(checkout / "csrc"), tmp_path / "objects", package_of(checkout))
    (checkout / "csrc" / "common.h").write_text("#define TINY 6\n", encoding="utf-8")
    named = build(cpu_plan(checkout / "csrc"), tmp_path / "objects", tmp_path / "named")
    (checkout / "csrc" / "common.h").write_text("#define TINY 7\n", encoding="utf-8")
    monkeypatch.setenv("ROOTS_KERNELS", str(tmp_path / "named"))
    assert load_anew("cpu").path == named


def test_installed_package_builds_from_its_own_copy_of_the_sources(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / "csrc").rename(package_of(checkout) / "csrc")
    found = load_anew("cpu")
    assert found.path is not None
    assert found.path.is_relative_to(tmp_path / "extensions" / "roots")


def test_package_without_sources_and_library_says_so(checkout: Path) -> None:
    (checkout / "csrc").rename(checkout / "elsewhere")
    assert load_anew("cpu").reason == (
        "the cpu kernels are missing: their sources (csrc) are not part of this installation of "
        "ROOTS."
    )


def test_failed_build_is_one_sentence_and_one_warning(
    checkout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (checkout / "csrc" / "cpu" / "swiglu.cpp").write_text("int broken = ;\n", encoding="utf-8")
    reason = load_anew("cpu").reason
    assert reason.startswith("the cpu kernels are missing: the cpu library could not be compiled: ")
    assert "swiglu.cpp:1:14: error: expected primary-expression" in reason
    assert reason.endswith("ninja.log).")
    assert "\n" not in reason
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert [each.getMessage() for each in warnings] == [reason]


def test_file_that_is_no_library_is_named(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_C_cpu.so").write_text("no library", encoding="utf-8")
    monkeypatch.setenv("ROOTS_KERNELS", str(tmp_path))
    assert f"{tmp_path}/_C_cpu.so" in load_anew("cpu").reason


def test_cuda_without_nvcc_names_the_extra(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load", lambda backend: "")
    monkeypatch.setattr(toolchain, "SYSTEM_CUDA", tmp_path / "absent")
    monkeypatch.setattr(toolchain, "package_folders", lambda: [])
    folders = os.environ["PATH"].split(os.pathsep)
    without = [folder for folder in folders if not (Path(folder) / "nvcc").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(without))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    expected = (
        "the cuda kernels are missing: no nvcc was found by CUDA_HOME, on PATH, in /usr/local/cuda "
        "or among the packages of this Python: install one with `pip install .[cuda-build]`, "
        "or set CUDA_HOME."
    )
    assert load_anew("cuda").reason == expected
    assert available("cuda").reason == expected


def test_cuda_needs_the_cpu_library(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load", lambda backend: f"no {backend} kernels.")
    assert load_anew("cuda").reason == "no cpu kernels."


def test_gpu_that_is_too_old_is_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "oldest_gpu", lambda: (7, 5))
    assert load_anew("cuda").reason == (
        "the CUDA kernels need a GPU of compute capability 8.0, and one here has 7.5."
    )


def test_asking_what_is_available_builds_nothing(checkout: Path, tmp_path: Path) -> None:
    assert available("cpu").reason == "the cpu kernels are compiled at their first use."
    assert not (tmp_path / "extensions" / "roots").exists()
    built = load_anew("cpu")
    assert available("cpu") == built


def test_load_is_a_constant_to_torch_compile() -> None:
    """What chooses an implementation runs under the tracer, which must not trace a build."""

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x if loading.load("cpu") == "" else x

    compiled = torch.compile(doubled, fullgraph=True, backend="eager")
    x = torch.ones(2)
    assert torch.equal(compiled(x), doubled(x))
