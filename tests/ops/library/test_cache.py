"""First use: one process builds, others wait, and no death of a builder stops the next one."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.ops.library.cache import Cache
from roots.ops.library.targets import make_target
from roots.ops.library.toolchain import BuildError
from tests.ops.library.tiny import (
    CPU_UNITS,
    Workshop,
    cpu_plan,
    go,
    kill_all,
    outcome,
    wait_until_it_waits,
)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path).prepare()
    yield workshop
    for process in workshop.started:
        kill_all(process)


def works(library: str) -> bool:
    return ctypes.CDLL(library).tiny() == 7


def test_build_after_a_build_killed_half_way(workshop: Workshop) -> None:
    """The killed compiler leaves half an object file; the next build must not link it."""
    first = workshop.start(gated=True)
    go(first)
    workshop.wait_for_compiler()
    kill_all(first)
    assert workshop.calls() == 1
    assert not list(workshop.cache.glob("cpu-*/*.so"))

    second = workshop.start()
    go(second)
    assert works(outcome(second))
    assert workshop.calls() == 1 + CPU_UNITS


def test_four_at_once_build_once_and_all_load(workshop: Workshop) -> None:
    processes = [workshop.start() for _ in range(4)]
    for process in processes:
        go(process)
    libraries = {outcome(process) for process in processes}
    assert len(libraries) == 1
    assert works(libraries.pop())
    assert workshop.calls() == CPU_UNITS


def test_dead_owner_whose_compiler_still_runs_is_named_and_waited_for(workshop: Workshop) -> None:
    first = workshop.start(gated=True)
    go(first)
    workshop.wait_for_compiler()
    first.kill()
    first.wait()

    impatient = workshop.start(timeout=0.2)
    go(impatient)
    lock = next(workshop.cache.glob("*.lock"))
    assert outcome(impatient) == (
        f"error: {lock}: held by process {first.pid} on {socket.gethostname()} (ended; what it "
        "started still runs) for over 0.2 seconds; wait for that process or end it; the lock goes "
        "with it"
    )
    kill_all(first)
    patient = workshop.start()
    go(patient)
    assert works(outcome(patient))


def test_waiting_ends_with_the_owner_named(workshop: Workshop) -> None:
    first = workshop.start(gated=True)
    go(first)
    workshop.wait_for_compiler()
    second = workshop.start(timeout=0.2)
    go(second)
    lock = next(workshop.cache.glob("*.lock"))
    assert outcome(second) == (
        f"error: {lock}: held by process {first.pid} on {socket.gethostname()} for over 0.2 "
        "seconds; wait for that process or end it; the lock goes with it"
    )
    kill_all(first)


def test_who_waited_for_a_failed_build_is_told_why_and_does_not_repeat_it(
    workshop: Workshop,
) -> None:
    (workshop.csrc / "schemas.h").write_text("#error broken\n", encoding="utf-8")
    first, second = workshop.start(gated=True), workshop.start()
    go(first)
    workshop.wait_for_compiler()
    go(second)
    wait_until_it_waits(second)
    workshop.open_gate()
    told = outcome(first)
    log = next(workshop.cache.glob("objects/cpu-*/ninja.log"))
    assert told == (
        f"error: the cpu library could not be compiled: {workshop.csrc}/binding/../schemas.h:1:2: "
        f"error: #error broken (all of it in {log})."
    )
    calls = workshop.calls()
    assert outcome(second) == told
    assert workshop.calls() == calls


def test_a_changed_source_compiles_what_depends_on_it_and_nothing_else(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(workshop.folder / "compiler"))
    cache = Cache(workshop.cache)
    library = cache.find_or_build(cpu_plan(workshop.csrc))
    (workshop.csrc / "common.h").write_text("#define TINY 2\n", encoding="utf-8")
    changed = cache.find_or_build(cpu_plan(workshop.csrc))
    assert workshop.calls() == CPU_UNITS + 1
    assert ctypes.CDLL(str(changed)).bound() == 2
    assert ctypes.CDLL(str(library)).bound() == 1


def test_key_changes_with_whatever_the_library_is_made_from(workshop: Workshop) -> None:
    plan = cpu_plan(workshop.csrc)
    stamp = plan.stamp()
    cuda = make_target("cuda", workshop.csrc, architectures=("90",))
    other_torch = replace(plan.tools, torch=replace(plan.tools.torch, version="9.9"))
    others = [
        replace(stamp, sources="0" * 16),
        replace(plan, tools=other_torch).stamp(),
        replace(plan, tools=replace(plan.tools, compiler_version="g++ 99")).stamp(),
        replace(plan, target=cuda).stamp(),
        replace(plan, target=make_target("cuda", workshop.csrc)).stamp(),
        replace(stamp, cuda="99.0"),
    ]
    (workshop.csrc / "cpu" / "swiglu.cpp").write_text("int other = 1;\n", encoding="utf-8")
    others.append(plan.stamp())
    keys = {each.key() for each in [stamp, *others]}
    assert len(keys) == len(others) + 1


def test_key_is_the_same_for_another_checkout_of_the_same_sources(tmp_path: Path) -> None:
    stamps = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        stamps.add(cpu_plan(Workshop(tmp_path / name).prepare().csrc).stamp())
    assert len(stamps) == 1


def test_old_libraries_go_when_nobody_used_them_for_a_week(workshop: Workshop) -> None:
    for number in range(12):
        folder = workshop.cache / f"cpu-{number:016d}"
        folder.mkdir(parents=True)
        os.utime(folder, (1000 + number, 1000 + number))
    library = Cache(workshop.cache).find_or_build(cpu_plan(workshop.csrc))
    kept = {path.name for path in workshop.cache.glob("cpu-*") if path.is_dir()}
    assert kept == {library.parent.name} | {f"cpu-{number:016d}" for number in range(5, 12)}


def test_cache_that_cannot_be_written(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(RootsError, match=r"kernel cache=.*cannot be written.*TORCH_EXTENSIONS_DIR"):
        Cache(tmp_path / "file").find_or_build(cpu_plan(workshop.csrc))


def test_sources_that_change_under_the_compiler_are_not_published(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(workshop.folder / "compiler"))
    script = workshop.folder / "compiler"
    text = script.read_text(encoding="utf-8")
    edit = f'echo "#pragma once" >> "{workshop.csrc}/common.h"\n'
    script.write_text(text.replace("exec c++", f"{edit}exec c++", 2), encoding="utf-8")
    with pytest.raises(BuildError, match="were changed while they were compiled: build again"):
        Cache(workshop.cache).find_or_build(cpu_plan(workshop.csrc))
    assert not list(workshop.cache.glob("cpu-*/*.so"))


STRANGER = 54321
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to other users")


def spoil(library: Path, what: str) -> None:
    """Let `library` be one that somebody else can have written."""
    path = {
        "library": library,
        "stamp": library.with_suffix(".json"),
        "folder": library.parent,
    }[what.split()[0]]
    if what.endswith("stranger's"):
        os.chown(path, STRANGER, -1)
    elif what.endswith("all"):
        path.chmod(0o777)
    else:
        os.chown(path, -1, STRANGER)
        path.chmod(0o775)


@pytest.mark.parametrize(
    "what",
    [
        "library for all",
        pytest.param("library stranger's", marks=as_root),
        pytest.param("stamp stranger's", marks=as_root),
        pytest.param("folder for a group", marks=as_root),
    ],
)
def test_library_that_others_can_have_written_is_not_loaded(workshop: Workshop, what: str) -> None:
    cache, plan = Cache(workshop.cache), cpu_plan(workshop.csrc)
    library = cache.find_or_build(plan)
    assert cache.find_or_build(plan) == library
    spoil(library, what)
    own = cache.find_or_build(plan)
    assert own.parent.name == f"{library.parent.name}-{os.getuid()}"
    assert works(str(own))
    assert cache.find_or_build(plan) == own
    spoil(own, what)
    with pytest.raises(RootsError) as caught:
        cache.find_or_build(plan)
    (line,) = caught.value.lines
    assert line.startswith(
        f"kernel cache='{own.parent}': is not used, since what is loaded from there runs as this "
        f"user: {own.parent}"
    )
    reason = "belongs to user 54321" if what.endswith("stranger's") else "may be written by others"
    assert line.endswith(f" {reason}; set TORCH_EXTENSIONS_DIR to a folder of your own")


@as_root
def test_folder_that_others_may_write_is_refused_or_closed(workshop: Workshop) -> None:
    workshop.cache.mkdir()
    os.chown(workshop.cache, STRANGER, -1)
    with pytest.raises(RootsError, match="belongs to user 54321; set TORCH_EXTENSIONS_DIR"):
        Cache(workshop.cache).find_or_build(cpu_plan(workshop.csrc))
    os.chown(workshop.cache, 0, STRANGER)
    workshop.cache.chmod(0o775)
    before = os.umask(0o002)
    try:
        library = Cache(workshop.cache).find_or_build(cpu_plan(workshop.csrc))
    finally:
        os.umask(before)
    paths = [workshop.cache, library.parent, *library.parent.iterdir()]
    assert not any(path.stat().st_mode & 0o022 for path in paths)


@as_root
def test_good_library_of_root_that_is_read_only_is_used(workshop: Workshop) -> None:
    """What another user has is seen from a process of that user's."""
    plan = cpu_plan(workshop.csrc)
    library = Cache(workshop.cache).find_or_build(plan)
    closed = [path for path in workshop.folder.parents if path.stat().st_mode & 0o005 != 0o005]
    for folder in (workshop.folder, *closed):
        folder.chmod(0o755)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(STRANGER)
        try:
            found = str(Cache(workshop.cache).find_or_build(plan))
        except BaseException as error:  # noqa: BLE001  # told to the parent
            found = repr(error)
        os.write(writer, found.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1000).decode() == str(library)


def test_library_with_another_stamp_is_built_anew(workshop: Workshop) -> None:
    cache, plan = Cache(workshop.cache), cpu_plan(workshop.csrc)
    library = cache.find_or_build(plan)
    library.with_suffix(".json").write_text("{}")
    library.write_bytes(b"another")
    assert cache.find_or_build(plan) == library
    assert works(str(library))
