"""The CPU image, built for real: what is in it, and what runs in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.sources import ROOT
from tests.images.engine import BASE, Built, Engine

pytestmark = [pytest.mark.whole_images, pytest.mark.timeout(3600)]

MIB = 2**20
MOST_BYTES = 1.6e9
# The quickstart trains 600 steps, in minutes on two free processors.
STEPS = 60
SHORT = ("training.steps=2", "schedule.warmup_steps=1", "evaluation.every_steps=0")
READ_ONLY = ("--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:rw,mode=1777,size=1g")
# Folders of the image that are named in the record, and the fewest MiB that earn a line.
FEW_MIB = 20
# Tests that compile nothing: config, data, kernels, ranks, checkpoints, a script that starts ranks.
SMOKE = (
    "tests/planner",
    "tests/data/test_indexed.py",
    "tests/data/test_blend.py",
    "tests/checkpoint/test_manifest.py",
    "tests/ops/test_swiglu.py",
    "tests/parallel/test_collectives.py",
    "tests/config",
)
# It reads the sources of the package, which are not mounted.
OF_SOURCES = "tests/config/test_yaml_reader.py::test_package_reads_yaml_here_alone"


def checked(result: subprocess.CompletedProcess[str]) -> str:
    """What a container printed that ended well."""
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def test_image_says_what_it_is(engine: Engine, cpu: Built) -> None:
    config: Any = engine.inspect(cpu.tag)
    labels = config["Config"]["Labels"]
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == commit.strip()
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    health = config.get("Healthcheck") or config["HealthCheck"]
    assert health["Test"] == ["CMD", "roots", "info"]
    assert config["User"] == "1000"


def test_image_is_small(engine: Engine, cpu: Built, record: dict[str, Any]) -> None:
    config: Any = engine.inspect(cpu.tag)
    base: Any = engine.inspect(BASE)
    script = (
        "cd /opt/roots/lib/python3*/site-packages && du --summarize --bytes -- * | sort -rn; "
        "du --summarize --bytes /opt/roots"
    )
    lines = checked(engine.run(cpu.tag, "bash", "-c", script)).splitlines()
    sizes = {name: int(size) for size, name in (line.split("\t") for line in lines)}
    environment = sizes.pop("/opt/roots")
    large = {name: size // MIB for name, size in sizes.items() if size >= FEW_MIB * MIB}
    large["all else"] = environment // MIB - sum(large.values())
    record["size_bytes"] = config["Size"]
    record["size_mib"] = {
        "base": base["Size"] // MIB,
        "Debian's packages, configs and scripts": (config["Size"] - base["Size"] - environment)
        // MIB,
        "environment": large,
    }
    assert config["Size"] <= MOST_BYTES


def test_nothing_in_it_compiles(engine: Engine, cpu: Built) -> None:
    script = (
        "type c++ g++ gcc cc make pip; ls /usr/include/python3* /opt/roots/lib/*/*/torch/include; "
        "find / -xdev -name '*.a' -path '*/lib/*'"
    )
    result = engine.run(cpu.tag, "bash", "-c", script)
    assert result.stdout == ""


def test_roots_info_finds_its_kernels(engine: Engine, cpu: Built, record: dict[str, Any]) -> None:
    info = json.loads(checked(engine.run(cpu.tag, "info", "--json")))
    (library,) = [each for each in info["libraries"] if each["backend"] == "cpu"]
    assert library["state"] == "loaded"
    assert library["path"].startswith("/opt/roots/")
    assert {each["chosen"] for each in info["ops"] if each["op"] == "swiglu"} == {"roots"}
    record["versions"] = info["versions"]


def test_user_is_not_root(engine: Engine, cpu: Built) -> None:
    script = "id -un; touch /opt/roots/x /home/roots/x 2>/dev/null || echo refused"
    assert checked(engine.run(cpu.tag, "bash", "-c", script)).split() == ["roots", "refused"]


def test_package_list_is_that_of_the_image(engine: Engine, cpu: Built) -> None:
    script = "diff /opt/roots/packages.txt <(roots-packages) && cat /opt/roots/packages.txt"
    lines = checked(engine.run(cpu.tag, "bash", "-c", script)).splitlines()
    names = [line.rsplit(" ", 2)[0] for line in lines]
    assert {"debian libstdc++6:amd64", "python torch", "python roots-pretrain"} <= set(names)
    without = [line for line in lines if line.endswith(" -")]
    assert len(without) < len(lines) / 20, without


@pytest.fixture(scope="session")
def quickstart(engine: Engine, cpu: Built, place: Path) -> Path:
    """The data of the quickstart, made in the image, in a folder that is mounted as its runs/."""
    script = """set -e
        python launch/quickstart_corpus.py runs/quickstart/corpus
        roots tokenizer train --vocab-size 4096 --out runs/quickstart/tokenizer \
            runs/quickstart/corpus/train.jsonl
        for part in train valid; do
            roots preprocess --tokenizer runs/quickstart/tokenizer \
                --out runs/quickstart/data/$part runs/quickstart/corpus/$part.jsonl
        done"""
    checked(engine.run(cpu.tag, "bash", "-c", script, options=mounted(place)))
    return place


def mounted(place: Path) -> tuple[str, str]:
    return "--volume", f"{place}:/home/roots/runs"


def train(
    engine: Engine, cpu: Built, place: Path, ranks: str, *words: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Train the quickstart's model in a container."""
    command = ["launch/local.sh", ranks, "configs/run/quickstart.yaml", *words]
    return engine.run(cpu.tag, *command, options=[*mounted(place), *options])


def losses(place: Path, name: str) -> list[float]:
    text = (place / "quickstart" / name / "metrics.jsonl").read_text(encoding="utf-8")
    return [each["loss"] for each in map(json.loads, text.splitlines()) if "loss" in each]


def test_quickstart_trains_evaluates_and_writes(
    engine: Engine, cpu: Built, quickstart: Path, record: dict[str, Any]
) -> None:
    steps = [f"training.steps={STEPS}", "evaluation.every_steps=30", "checkpoint.every_steps=30"]
    result = train(engine, cpu, quickstart, "2", *steps, options=("--shm-size=256m",))
    checked(result)
    found = losses(quickstart, "model")
    assert found[-1] < found[0] - 2.0
    command = ["evaluate", "runs/quickstart/model", "--data", "runs/quickstart/data/valid"]
    evaluated = checked(engine.run(cpu.tag, *command, options=mounted(quickstart)))
    command = ["generate", "runs/quickstart/model", "--prompt", "def ", "--max-new-tokens", "8"]
    checked(engine.run(cpu.tag, *command, options=mounted(quickstart)))
    record["quickstart"] = {
        "steps": STEPS,
        "ranks": 2,
        "first_loss": round(found[0], 4),
        "last_loss": round(found[-1], 4),
        "evaluation": evaluated.strip().splitlines()[-1],
    }


def test_adam_of_the_host_without_a_compiler_is_told_in_one_line(
    engine: Engine, cpu: Built, quickstart: Path
) -> None:
    words = ("run.name=offloaded", "parallel.tensor=1", "parallel.offload_optimizer=cpu", *SHORT)
    wanted = "optimizer.implementation=deepspeed"
    result = train(engine, cpu, quickstart, "1", *words, wanted)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("roots: error: optimizer.implementation='deepspeed': is not usable here")
    assert "there is no C++ compiler (c++) on PATH: run `apt-get install g++`" in line
    # Unless it is asked for by name, torch's takes its place, and a line says why.
    result = train(engine, cpu, quickstart, "1", *words)
    said = checked(result) + result.stderr
    assert "optimizer: torch, torch's fused AdamW (deepspeed: BuildError: there is no C++" in said
    assert losses(quickstart, "offloaded")


@pytest.mark.parametrize(
    "options", [(), ("--user=12345:12345",)], ids=["its own user", "another user"]
)
def test_trains_with_a_read_only_root(
    engine: Engine, cpu: Built, quickstart: Path, options: tuple[str, ...]
) -> None:
    name = f"read-only-{len(options)}"
    words = (f"run.name={name}", *SHORT)
    folder = quickstart / "quickstart"
    folder.chmod(0o777)
    checked(train(engine, cpu, quickstart, "2", *words, options=(*READ_ONLY, *options)))
    assert len(losses(quickstart, name)) >= 1
    script = "touch /opt/x 2>&1; roots info >/dev/null && echo informed"
    said = checked(engine.run(cpu.tag, "bash", "-c", script, options=(*READ_ONLY, *options)))
    assert re.search(r"Read-only|denied", said)
    assert said.endswith("informed\n")


def test_part_of_the_suite_passes_inside(
    engine: Engine, cpu: Built, place: Path, record: dict[str, Any]
) -> None:
    """The tests and what they read are mounted, the package is the image's."""
    tools = place / "pytest"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools)]
    install += ["-c", str(ROOT / "docker" / "constraints.txt")]
    engine.call([*install, "pytest", "pytest-timeout", "hypothesis"])
    options = []
    for name in ("tests", "configs", "launch", "docker", "docs", "csrc", "pyproject.toml"):
        options += ["--volume", f"{ROOT / name}:/checkout/{name}:ro"]
    options += ["--volume", f"{tools}:/pytest:ro", "--env", "PYTHONPATH=/pytest"]
    options += ["--workdir", "/checkout", "--shm-size=1g"]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *SMOKE, "--deselect", OF_SOURCES]
    result = engine.run(cpu.tag, "python", *words, options=options, seconds=1800)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 0, result.stdout[-6000:]
    record["suite_inside"] = re.sub(r" in .*", "", last.strip("= "))


def test_two_builds_have_the_same_packages(
    engine: Engine, cpu: Built, record: dict[str, Any]
) -> None:
    again = engine.build("cpu", f"{cpu.tag}-again", "--no-cache")
    lists = [
        checked(engine.run(tag, "bash", "-c", "cat /opt/roots/packages.txt"))
        for tag in (cpu.tag, again.tag)
    ]
    assert lists[0] == lists[1]
    record["build_seconds"] = round(again.seconds)
    record["packages"] = {
        kind: sum(line.startswith(kind) for line in lists[0].splitlines())
        for kind in ("debian", "python")
    }
    engine.call(["podman", "image", "rm", again.tag])
