"""Which script is started with what, and which options go together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from roots.config import load_config
from roots.errors import RootsError
from roots.launching.plan import Plan, Surroundings, Wish, make_plan
from roots.launching.via import Via
from tests.helpers.sources import ROOT

CONFIG = ROOT / "configs" / "run" / "quickstart.yaml"
WISH = Wish(CONFIG, ("run.name=x",))
AROUND = Surroundings(ROOT / "launch", variables={"VIRTUAL_ENV": "/venv"})
WORDS = (str(CONFIG), "run.name=x")


def plan(wish: Wish, around: Surroundings = AROUND) -> Plan:
    return make_plan(wish, load_config(wish.config, wish.overrides), around)


def script(name: str) -> str:
    return str(ROOT / "launch" / name)


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("a slots=4\nb slots=2\n", encoding="utf-8")
    return path


def test_one_machine_is_what_is_left() -> None:
    found = plan(WISH)
    assert (found.via, found.why) == (Via.local, "neither a hostfile nor Slurm")
    assert found.command == ("bash", script("local.sh"), "2", *WORDS)
    assert found.environment == {"VIRTUAL_ENV": "/venv"}


def test_ranks_of_one_machine_are_asked_for_or_its_gpus_or_the_fewest() -> None:
    layout = replace(WISH, overrides=("parallel.tensor=2", "parallel.pipeline=2"))
    assert plan(layout).ranks == 4
    assert plan(layout, replace(AROUND, gpus=8)).ranks == 8
    asked = plan(replace(layout, ranks_per_node=6), replace(AROUND, gpus=8))
    assert asked.ranks == 6
    assert asked.command[2] == "6"


def test_hostfile_starts_deepspeed_with_what_its_filters_leave(hosts: Path) -> None:
    wish = replace(WISH, hostfile=hosts, include="b@a:3,1,1", options=("--over ssh",))
    found = plan(wish, replace(AROUND, slurm=True))
    assert (found.via, found.why) == (Via.deepspeed, "there is a hostfile")
    assert (found.ranks, found.where) == (4, "4 ranks on a:1,3 b:0,1")
    assert found.command == (
        "bash",
        script("hostfile.sh"),
        # `roots launch` has looked at them.
        *("--checks", "off", "--include", "b@a:3,1,1", "--over", "ssh"),
        str(hosts),
        *WORDS,
    )


@pytest.mark.parametrize("via, name", [(Via.torchrun, "torchrun.sh"), (Via.mpirun, "mpirun.sh")])
def test_other_launchers_take_the_same_words(hosts: Path, via: Via, name: str) -> None:
    wish = replace(WISH, via=via, hostfile=hosts, ssh_port=2222, ssh_options="-i key")
    options = ("--checks", "off", "--ssh-port", "2222", "--ssh-options", "-i key")
    assert plan(wish).command == ("bash", script(name), *options, str(hosts), *WORDS)


def test_slurm_is_chosen_where_it_answers_and_not_inside_of_a_job() -> None:
    assert plan(WISH, replace(AROUND, slurm=False)).via is Via.slurm
    inside = replace(AROUND, slurm=False, slurm_job="7")
    found = plan(WISH, inside)
    assert (found.via, found.why) == (Via.local, "inside Slurm job 7, on this node alone")
    with pytest.raises(RootsError, match=r"^--nodes=2: is not for inside of Slurm job 7; run `bas"):
        plan(replace(WISH, nodes=2), inside)


def test_slurm_job_file_is_written_beside_the_run_and_submitted() -> None:
    wish = replace(
        WISH, nodes=2, ranks_per_node=4, time="1:00:00", options=("--account=us", "-C big")
    )
    found = plan(wish, replace(AROUND, slurm=True))
    path = f"{load_config(CONFIG, ['run.name=x']).run_directory}.sbatch"
    assert found.command == ("sbatch", path)
    assert (found.ranks, found.hosts) == (8, ())
    text = found.files[path]
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=1:00:00"):
        assert f"#SBATCH {line}\n" in text
    assert "#SBATCH --job-name=x\n" in text
    assert "#SBATCH --account=us\n#SBATCH -C big\n" in text
    assert "\nexport VIRTUAL_ENV=/venv\n" in text
    assert text.endswith(f"\nexec bash {script('slurm.sbatch')} {' '.join(WORDS)}\n")
    assert ' --port "${MASTER_PORT:-$((20000 + SLURM_JOB_ID % ' in text
    assert "--gpus" not in plan(wish, replace(AROUND, slurm=False)).files[path]


def test_container_of_a_slurm_job_is_for_the_script_and_its_nodes_are_not_looked_at() -> None:
    options = ("--container=podman:a b", "--account=us")
    (text,) = plan(replace(WISH, via=Via.slurm, options=options)).files.values()
    words = f"--container 'podman:a b' {' '.join(WORDS)}"
    assert text.endswith(f"\nexec bash {script('slurm.sbatch')} {words}\n")
    assert "#SBATCH --account=us\n" in text
    assert "#SBATCH --container" not in text
    assert "allocation" not in text


@pytest.mark.parametrize(
    "option, line",
    [
        ("--comment=my run", '--comment="my run"'),
        ('--comment=a "b" # c', r'--comment="a \"b\" # c"'),
        ("--comment=it's", '--comment="it\'s"'),
        ("--comment='my --own run'", "--comment='my --own run'"),
        ("-C big", "-C big"),
        ("-C a b", '-C "a b"'),
        ("--exclusive", "--exclusive"),
        ("--output=%x-%j.log", "--output=%x-%j.log"),
    ],
)
def test_option_of_sbatch_is_one_word(option: str, line: str) -> None:
    (text,) = plan(replace(WISH, via=Via.slurm, options=(option,))).files.values()
    assert f"\n#SBATCH {line}\n" in text


@pytest.mark.parametrize(
    "wish, line",
    [
        (
            {"nodes": 2},
            "--nodes=2: several machines need a hostfile, or Slurm, and none answers here; "
            "give --hostfile",
        ),
        ({"via": Via.local, "nodes": 2}, "--nodes=2: --via local is one machine; give --hostfile"),
        (
            {"via": Via.mpirun},
            "--hostfile: is needed for --via mpirun; "
            "give the file of hosts, with a line `NAME slots=N` for each",
        ),
        (
            {"via": Via.local, "time": "1:00"},
            "--time='1:00': is nothing to --via local; drop it, or start by --via slurm",
        ),
        (
            {"via": Via.slurm, "ssh_port": 22},
            "--ssh-port=22: is nothing to --via slurm; "
            "drop it, or start by --via deepspeed or torchrun or mpirun",
        ),
        (
            {"via": Via.slurm, "options": ("--comment=a\nb",)},
            r"--option='--comment=a\nb': must be on one line; leave the line break out",
        ),
        (
            {"via": Via.slurm, "options": ("--account=us --qos=high",)},
            "--option='--account=us --qos=high': is more than one option of sbatch; "
            "give each an --option of its own, or quote its value",
        ),
        (
            {"via": Via.slurm, "options": ("account=us",)},
            "--option='account=us': is no option of sbatch; write --option=--NAME=VALUE",
        ),
        (
            {"via": Via.slurm, "options": ("--sweep",)},
            "--option='--sweep': its value is missing; write --option=--sweep=VALUE",
        ),
        (
            {"via": Via.slurm, "options": ("--container=docker:x",)},
            "--option='--container=docker:x': names no container; "
            "write --option=--container=KIND:IMAGE with KIND pyxis, apptainer or podman",
        ),
        (
            {"via": Via.slurm, "nodes": 2, "options": ("--nodes=4",)},
            "--option='--nodes=4': --nodes 2 says it already; drop one of them",
        ),
        (
            {"via": Via.slurm, "ranks_per_node": 2, "options": ("--ntasks-per-node 4",)},
            "--option='--ntasks-per-node 4': --ranks-per-node 2 says it already; drop one of them",
        ),
        (
            {"via": Via.local, "options": ("--over ssh",)},
            "--option='--over ssh': is nothing to --via local; "
            "drop it, or start by --via deepspeed or slurm or torchrun or mpirun",
        ),
    ],
)
def test_options_that_do_not_go_together_are_told(wish: dict[str, object], line: str) -> None:
    with pytest.raises(RootsError) as caught:
        plan(replace(WISH, **wish))  # type: ignore[arg-type]
    assert caught.value.lines == (line,)


@pytest.mark.parametrize(
    "option, problem",
    [
        ("--over 'ssh", "no closing quotation; close it"),
        (
            "ssh",
            'must be an option of the script and its value; write --option="--NAME VALUE"',
        ),
        (
            "--max-restarts",
            'must be an option of the script and its value; write --option="--NAME VALUE"',
        ),
    ],
)
def test_option_that_no_script_takes_is_told(hosts: Path, option: str, problem: str) -> None:
    with pytest.raises(RootsError) as caught:
        plan(replace(WISH, hostfile=hosts, options=(option,)))
    assert caught.value.lines == (f"--option={option!r}: {problem}",)


def notes(wish: Wish) -> list[str]:
    config = load_config(wish.config, wish.overrides)
    return list(make_plan(wish, config, AROUND).notes(config))


def test_tensor_parallel_ranks_on_two_hosts_are_noted(hosts: Path) -> None:
    four = replace(WISH, overrides=("parallel.tensor=4",))
    line = (
        "parallel.tensor=4: 2 ranks on {} are no multiple of it, so that some of them exchange "
        "every layer over the network; give each host a multiple of 4 ranks"
    )
    assert notes(replace(four, hostfile=hosts)) == [line.format("b")]
    slurm = replace(four, via=Via.slurm, nodes=2, ranks_per_node=2)
    assert notes(slurm) == [line.format("a node")]
    assert notes(replace(WISH, hostfile=hosts)) == []
    assert notes(replace(slurm, ranks_per_node=8)) == []
    assert notes(replace(four, ranks_per_node=6)) == []


def test_ranks_per_node_is_nothing_to_a_hostfile(hosts: Path) -> None:
    with pytest.raises(RootsError, match=r"^--ranks-per-node=2: is nothing to --via deepspeed; "):
        plan(replace(WISH, hostfile=hosts, ranks_per_node=2))
