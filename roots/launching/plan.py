"""What `roots launch` would start: the script of launch/ with its arguments, and what goes along.

Pure: what is there to choose from comes in as `Surroundings`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roots.config.rules.batch import fewest_ranks
from roots.config.run import RunConfig
from roots.errors import RootsError, problem
from roots.launching.gather import HERE
from roots.launching.hosts import Host, filter_of, read_hostfile, select
from roots.launching.job_file import JobFile, option_problem
from roots.launching.via import OVER_SSH, SCRIPTS, Via

_OVER_SSH = ("hostfile", "include", "exclude", "ssh_port", "ssh_options", "options")
# What each can be told; the rest would do nothing.
_TAKES = {
    Via.local: ("nodes", "ranks_per_node"),
    Via.deepspeed: _OVER_SSH,
    Via.torchrun: _OVER_SSH,
    Via.mpirun: _OVER_SSH,
    Via.slurm: ("nodes", "ranks_per_node", "time", "partition", "options"),
}


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line; None, "" and () where nothing was.

    `options` are for the script of launch/, or for sbatch.
    """

    config: Path
    overrides: tuple[str, ...] = ()
    via: Via | None = None
    nodes: int | None = None
    ranks_per_node: int | None = None
    hostfile: Path | None = None
    include: str = ""
    exclude: str = ""
    ssh_port: int | None = None
    ssh_options: str = ""
    time: str = ""
    partition: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What is there: the folder of the scripts, GPUs here, Slurm, a job of it around this.

    `slurm` is None where no Slurm answers, else whether its nodes have GPUs. `variables` are what
    a script needs to find the Python that this is.
    """

    scripts: Path
    gpus: int = 0
    slurm: bool | None = None
    slurm_job: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is started: `command`, with `environment` added to what is there, after `files` exist.

    `hosts` are those of the run, in the order of their ranks; none is known yet with Slurm. `why`
    says what decided on `via`; `ranks_per_node` is what Slurm is asked for.
    """

    via: Via
    why: str
    ranks: int
    hosts: tuple[Host, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    ranks_per_node: int = 0

    def notes(self, config: RunConfig) -> Iterator[str]:
        """What works and is hardly meant: tensor-parallel ranks that are not on one host."""
        tensor = config.parallel.tensor
        counts = {host.name: host.ranks for host in self.hosts} or {"a node": self.ranks_per_node}
        for name, count in counts.items():
            # One host alone has all of them, or too few for the layout, which is an error.
            if count % tensor == 0 or count == self.ranks:
                continue
            rule = f"{count} ranks on {name} are no multiple of it, so that some of them exchange"
            fix = f"every layer over the network; give each host a multiple of {tensor} ranks"
            yield f"parallel.tensor={tensor}: {rule} {fix}"
            return

    @property
    def where(self) -> str:
        """The ranks and their hosts with slots, as a line says them."""
        count = f"{self.ranks} rank{'s' if self.ranks > 1 else ''} on"
        if self.via is Via.local:
            return f"{count} {HERE}"
        return f"{count} {' '.join(map(str, self.hosts)) or 'nodes that Slurm chooses'}"


def make_plan(wish: Wish, config: RunConfig, around: Surroundings) -> Plan:
    """Choose how to start, and spell it out. Raises RootsError for options that do not go together.

    Whether the layout fits the ranks is asked of the config, by `roots.config.rules.batch`.
    """
    via, why = choose_via(wish, around)
    if lines := list(_option_problems(wish, via)):
        raise RootsError(*lines)
    words = (str(wish.config), *wish.overrides)
    script = str(around.scripts / SCRIPTS[via])
    if via is Via.slurm:
        return _slurm_plan(wish, config, around, why)
    if via is Via.local:
        ranks = wish.ranks_per_node or around.gpus or fewest_ranks(config)
        host = Host(HERE, tuple(range(ranks)))
        command = ("bash", script, str(ranks), *words)
        return Plan(via, why, ranks, (host,), command, around.variables)
    assert wish.hostfile is not None
    hosts = tuple(select(read_hostfile(wish.hostfile), wish.include, wish.exclude))
    options = {
        "--include": wish.include,
        "--exclude": filter_of("--exclude", wish.exclude),
        "--ssh-port": "" if wish.ssh_port is None else str(wish.ssh_port),
        "--ssh-options": wish.ssh_options,
    }
    # The hosts have been looked at, or shall not be.
    given = ["--checks", "off"]
    given += [word for name, value in options.items() if value for word in (name, value)]
    command = ("bash", script, *given, *_split(wish.options), str(wish.hostfile), *words)
    return Plan(via, why, sum(host.ranks for host in hosts), hosts, command, around.variables)


def choose_via(wish: Wish, around: Surroundings) -> tuple[Via, str]:
    """How to start, and what decided that. Raises RootsError where nothing can."""
    if wish.via is not None:
        return wish.via, "--via says so"
    if wish.hostfile is not None:
        return Via.deepspeed, "there is a hostfile"
    several = wish.nodes is not None and wish.nodes > 1
    if around.slurm_job:
        if several:
            rule = f"is not for inside of Slurm job {around.slurm_job}"
            fix = (
                "run `bash launch/slurm.sbatch CONFIG` on its nodes, or submit another: --via slurm"
            )
            raise RootsError(problem("--nodes", wish.nodes, rule, fix))
        return Via.local, f"inside Slurm job {around.slurm_job}, on this node alone"
    if around.slurm is not None:
        return Via.slurm, "Slurm answers here"
    if several:
        rule = "several machines need a hostfile, or Slurm, and none answers here"
        raise RootsError(problem("--nodes", wish.nodes, rule, "give --hostfile"))
    return Via.local, "neither a hostfile nor Slurm"


def _option_problems(wish: Wish, via: Via) -> Iterator[str]:
    """A line for each option that is missing, or that this way of starting does not have."""
    defaults = Wish(wish.config)
    for name in {name: None for names in _TAKES.values() for name in names}:
        value = getattr(wish, name)
        if value != getattr(defaults, name) and name not in _TAKES[via]:
            ways = " or ".join(each.value for each in Via if name in _TAKES[each])
            shown = " ".join(value) if isinstance(value, tuple) else value
            if isinstance(shown, Path):
                shown = str(shown)
            rule = f"is nothing to --via {via.value}"
            fix = f"drop it, or start by --via {ways}"
            yield problem(_option(name), shown, rule, fix)
    if wish.hostfile is None and "hostfile" in _TAKES[via]:
        fix = "give the file of hosts, with a line `NAME slots=N` for each"
        yield problem("--hostfile", None, f"is needed for --via {via.value}", fix)
    if via is Via.slurm:
        given = [("--time", wish.time), ("--partition", wish.partition)]
        given += [("--option", option) for option in wish.options]
        yield from filter(None, (option_problem(*each) for each in given))
        yield from _said_twice(wish)
    if via in OVER_SSH:
        yield from filter(None, map(_word_problem, wish.options))
    if via is Via.local and wish.nodes is not None and wish.nodes > 1:
        yield problem("--nodes", wish.nodes, "--via local is one machine", "give --hostfile")


def _option(name: str) -> str:
    return "--option" if name == "options" else f"--{name.replace('_', '-')}"


def _split(options: Sequence[str]) -> list[str]:
    """The words of `--option "--over ssh"` and its like, in which `_word_problem` finds none."""
    return [word for option in options for word in shlex.split(option)]


def _word_problem(option: str) -> str:
    """Why a script cannot be told `option`; "" where it can."""
    try:
        words = shlex.split(option)
    except ValueError as error:
        return problem("--option", option, str(error).lower(), "close it")
    if len(words) % 2 or not words or not all(word.startswith("--") for word in words[::2]):
        rule = "must be an option of the script and its value"
        return problem("--option", option, rule, 'write --option="--NAME VALUE"')
    return ""


def _said_twice(wish: Wish) -> Iterator[str]:
    """A line for each option of sbatch that has a name of its own here, and was given by both."""
    given = {
        "--nodes": wish.nodes,
        "--ntasks-per-node": wish.ranks_per_node,
        "--time": wish.time or None,
        "--partition": wish.partition or None,
    }
    own = {"--ntasks-per-node": "--ranks-per-node"}
    for option in wish.options:
        name = re.split("[= ]", option, maxsplit=1)[0]
        if given.get(name) is not None:
            rule = f"{own.get(name, name)} {given[name]} says it already"
            yield problem("--option", option, rule, "drop one of them")


def _slurm_plan(wish: Wish, config: RunConfig, around: Surroundings, why: str) -> Plan:
    """The job file beside the run's folder, and its submission."""
    script = around.scripts.resolve() / SCRIPTS[Via.slurm]
    asked = {
        "--job-name": config.run.name,
        "--nodes": "" if wish.nodes is None else str(wish.nodes),
        "--time": wish.time,
        "--partition": wish.partition,
    }
    job = JobFile.of(script).without_gpus() if around.slurm is False else JobFile.of(script)
    job = job.with_options({name: value for name, value in asked.items() if value})
    if wish.ranks_per_node is not None:
        job = job.with_tasks(wish.ranks_per_node)
    job = job.with_words(wish.options)
    variables = {"ROOTS_HOME": str(script.parents[1]), **around.variables}
    text = job.text((str(wish.config), *wish.overrides), Path.cwd(), variables)
    path = f"{config.run_directory}.sbatch"
    return Plan(Via.slurm, why, job.ranks, (), ("sbatch", path), {}, {path: text}, job.tasks)
