"""Measures hosts and what is between them: asks the agents of all hosts, in step.

1. Facts and clocks, as before a start (roots.launching.gather).
2. Every host by itself, all at once: counters of faults, disk, a product of matrices on each
   device, an all-reduce over the GPUs of the host.
3. Pairs of hosts, in rounds of pairs that share no host; then an all-reduce over all devices.
4. Counters again.

What has a rate that is out of line is measured once more, on all hosts; the better of both counts.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from roots.doctor.judge import DISK, MATMUL, MEASURED, NETWORK, REDUCE, judge, measured_part
from roots.doctor.rounds import rounds
from roots.doctor.survey import DeviceRate, HostRates, PairRate, Survey, better
from roots.launching.checks import Needs
from roots.launching.environment import named_interfaces, variable, variables
from roots.launching.gather import Answer, Request, Way, gather
from roots.launching.talk import Inbox, Talk, end_all, receive

MODULE = "roots.doctor.agent"
# Of the user's variables, as launch/on_hosts.sh passes them on; which GPUs to use each host says.
_PASSED_ON = ("NCCL_", "GLOO_", "OMP_")
# For what takes a few seconds each on a machine that is not short of time.
_START_SECONDS, _WORK_SECONDS, _DISK_SECONDS, _PAIR_SECONDS = 60.0, 40.0, 40.0, 40.0
# What a host may take longer to tell that a device has hung.
_GRACE_SECONDS = 3.0
# No round of pairs begins later than this after the first; each takes about a second.
_ROUNDS_SECONDS = 20.0

Tell = Callable[[str], None]


class _Agent(Talk):
    """The agent of a host, and its last answer."""

    def __init__(self, way: Way, words: Sequence[str], errors: Path) -> None:
        super().__init__(way.reach(words), errors)
        self.name = way.name
        self.last: dict[str, Any] = {}

    def keep(self, tree: dict[str, Any], arrived: float) -> None:
        """Take an answer."""
        del arrived
        self.last = tree


class Agents:
    """The agents of all hosts that answer, by name; ended with the block."""

    def __init__(self, ways: Sequence[Way], folder: Path) -> None:
        self._place = tempfile.TemporaryDirectory()
        self.folder = folder
        words = words_of(folder)
        self.all = {
            way.name: _Agent(way, words, Path(self._place.name, str(number)))
            for number, way in enumerate(ways)
        }
        self._inbox = Inbox()

    def __enter__(self) -> Agents:
        for agent in self.all.values():
            agent.start(self._inbox)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        end_all(list(self.all.values()), at_once=kind is not None)
        self._place.cleanup()

    def ask(self, questions: Mapping[str, Mapping[str, Any]], seconds: float) -> dict[str, Any]:
        """The answers of those hosts that gave one to their question in time, all at once."""
        asked = [
            self.all[name]
            for name, each in questions.items()
            if self.all[name].ask(json.dumps(each))
        ]
        for agent in asked:
            agent.last = {}
        receive(self._inbox, asked, seconds)
        return {agent.name: agent.last for agent in asked if not agent.silence}

    def ask_all(self, seconds: float, **question: Any) -> dict[str, Any]:
        """The same question to all."""
        return self.ask(dict.fromkeys(self.all, question), seconds)

    def work(
        self, name: str, seconds: float, words: Mapping[str, Mapping[str, Any]], count: int | None
    ) -> dict[str, list[dict[str, Any]]]:
        """What the first `count` devices of each host in `words` answer."""
        questions = {
            host: {
                "do": "devices",
                "work": {"name": name, "seconds": seconds, "words": each, "count": count},
            }
            for host, each in words.items()
        }
        answers = self.ask(questions, seconds + _GRACE_SECONDS)
        return {host: answer["devices"] for host, answer in answers.items()}


def words_of(folder: Path) -> list[str]:
    """The command of an agent, with this interpreter and checkout, on whatever host."""
    given = variables(*_PASSED_ON)
    if interface := variable("ROOTS_INTERFACE"):
        given = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface, **given}
    if path := variable("PYTHONPATH"):
        given["PYTHONPATH"] = path
    settings = [f"{name}={value}" for name, value in given.items()]
    return ["env", "-C", "/", *settings, sys.executable, "-m", MODULE, "--folder", str(folder)]


def examine(ways: Sequence[Way], ranks: Mapping[str, int], folder: Path, tell: Tell) -> Survey:
    """Measure all hosts; `ranks` is how many each would get, 0 for as many as most have GPUs.

    `folder` is where disks are measured. `tell` gets a line at each step.
    """
    began = time.monotonic()
    answers = gather(ways, Request(Path("/")))
    needs = Needs(_wanted(ranks, answers), "", named_interfaces())
    survey = Survey(needs, tuple(answers))
    reached = [way for way, answer in zip(ways, answers) if answer.facts is not None]
    tell(f"{len(reached)} of {len(ways)} {'hosts answer' if len(ways) > 1 else 'host answers'}")
    if not reached:
        return replace(survey, seconds=round(time.monotonic() - began, 1))
    with Agents(reached, folder) as agents:
        survey = _Visit(agents, survey, tell, MEASURED).all_of_it()
        slow = set(map(measured_part, judge(survey))) - {""}
        if slow:
            tell(f"measuring once more what is slow: {', '.join(sorted(slow))}")
            survey = better(survey, _Visit(agents, survey, tell, slow).all_of_it())
    return replace(survey, seconds=round(time.monotonic() - began, 1))


def _wanted(ranks: Mapping[str, int], answers: Sequence[Answer]) -> dict[str, int]:
    """Ranks of each host: those given, and not fewer than most hosts have GPUs."""
    counts = Counter(len(each.facts.gpus) for each in answers if each.facts is not None)
    most = max(counts, key=lambda count: (counts[count], count), default=0)
    return {name: max(1, count or most) for name, count in ranks.items()}


class _Visit:
    """One measuring of all hosts, of `parts` of what is MEASURED; the rest is as in `survey`."""

    def __init__(self, agents: Agents, survey: Survey, tell: Tell, parts: Collection[str]) -> None:
        self.agents = agents
        self.survey = survey
        self.tell = tell
        self.parts = parts

    def all_of_it(self) -> Survey:
        """The survey, with all rates."""
        self.survey = replace(self.survey, rates=self._hosts_alone())
        if NETWORK in self.parts:
            names = self._comparable()
            self._pairs(names)
            self._reduce(names)
        after = self.agents.ask_all(_WORK_SECONDS, do="counters")
        rates = {
            name: replace(
                each,
                after=tuple(after.get(name, {}).get("counters", ())),
                silence=self.agents.all[name].silence,
            )
            for name, each in self.survey.rates.items()
        }
        return replace(self.survey, rates=rates)

    def _hosts_alone(self) -> dict[str, HostRates]:
        found = dict(self.survey.rates) or self._first_look()
        if DISK in self.parts:
            self.tell("measuring disks")
            disks = self.agents.ask_all(_DISK_SECONDS, do="disk")
            found = {
                name: replace(each, **self._disk(disks.get(name, {})))
                for name, each in found.items()
            }
        if MATMUL in self.parts:
            self.tell("measuring devices")
            products = self.agents.work("matmul", _WORK_SECONDS, self._nothing(), None)
            found = {
                name: replace(each, devices=tuple(map(_product, each.devices, products[name])))
                if name in products
                else replace(each, devices=())
                for name, each in found.items()
            }
        return self._reduced_alone(found) if REDUCE in self.parts else found

    def _disk(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of a host's disk."""
        no_folder = str(self.agents.folder) if answer.get("no_folder") else ""
        return {"disk": answer.get("rate"), "no_folder": no_folder}

    def _first_look(self) -> dict[str, HostRates]:
        """Counters and names of devices, before anything is measured."""
        before = self.agents.ask_all(_START_SECONDS, do="counters")
        started = self.agents.work("start", _START_SECONDS, self._nothing(), None)
        return {
            name: HostRates(
                devices=tuple(map(_named, started.get(name, []))),
                before=tuple(before.get(name, {}).get("counters", ())),
            )
            for name in self.agents.all
        }

    def _nothing(self) -> dict[str, dict[str, Any]]:
        """No words for the work of any host."""
        return {name: {} for name in self.agents.all}

    def _reduced_alone(self, found: dict[str, HostRates]) -> dict[str, HostRates]:
        """With the all-reduce over the GPUs of each host that has several."""
        several = {name: len(each.devices) for name, each in found.items() if len(each.devices) > 1}
        ports = self.agents.ask({name: {"do": "ports"} for name in several}, _WORK_SECONDS)
        words = {
            name: {
                "address": "127.0.0.1",
                "port": answer["ports"][0],
                "first": 0,
                "size": several[name],
                "local_size": several[name],
            }
            for name, answer in ports.items()
        }
        for name, answers in self.agents.work("reduce", _PAIR_SECONDS, words, None).items():
            rate, error = _common(answers)
            found[name] = replace(found[name], reduce=rate, reduce_error=error)
        return found

    def _comparable(self) -> list[str]:
        """Hosts whose devices are of the kind that most have: others cannot talk with them."""
        kinds = {
            name: each.devices[0].kind
            for name, each in self.survey.rates.items()
            if each.devices and each.devices[0].kind
        }
        most = Counter(kinds.values()).most_common(1)
        return [name for name, kind in kinds.items() if kind == most[0][0]]

    def _pairs(self, names: Sequence[str]) -> None:
        """Pairs of hosts, each device with the one of its number, in rounds."""
        all_rounds = rounds(len(names)) if len(names) > 1 else []
        began, found, done = time.monotonic(), list[PairRate](), 0
        if all_rounds:
            word = "rounds" if len(all_rounds) > 1 else "round"
            self.tell(f"measuring pairs of hosts, {len(all_rounds)} {word}")
        for pairs in all_rounds:
            if done and time.monotonic() - began > _ROUNDS_SECONDS:
                break
            found += self._round([(names[a], names[b]) for a, b in pairs])
            done += 1
        self.survey = replace(
            self.survey, pairs=tuple(found), rounds=done, all_rounds=len(all_rounds)
        )

    def _round(self, pairs: Sequence[tuple[str, str]]) -> list[PairRate]:
        counts = {pair: min(self._count(name) for name in pair) for pair in pairs}
        ports = self.agents.ask({first: {"do": "ports"} for first, _ in pairs}, _WORK_SECONDS)
        words: dict[str, dict[str, Any]] = {}
        for first, second in pairs:
            if first in ports:
                for rank, name in enumerate((first, second)):
                    place = {"address": first, "ports": ports[first]["ports"], "rank": rank}
                    words[name] = place
        count = min(counts.values(), default=1)
        answers = self.agents.work("pair", _PAIR_SECONDS, words, count)
        found = []
        for pair in pairs:
            for device in range(count):
                both = [answers.get(name, []) for name in pair]
                told = [each[device] for each in both if device < len(each)]
                rate, error = _common(told, len(pair))
                found.append(PairRate(pair, device, rate, error))
        return found

    def _reduce(self, names: Sequence[str]) -> None:
        """All-reduce over all devices of `names`."""
        if len(names) < 2:
            return
        self.tell("measuring an all-reduce over all hosts")
        ports = self.agents.ask({names[0]: {"do": "ports"}}, _WORK_SECONDS)
        if names[0] not in ports:
            return
        words, first = {}, 0
        size = sum(map(self._count, names))
        for name in names:
            place = {"address": names[0], "port": ports[names[0]]["ports"][0]}
            words[name] = {
                **place,
                "first": first,
                "size": size,
                "local_size": self._count(name),
            }
            first += self._count(name)
        answers = self.agents.work("reduce", _PAIR_SECONDS, words, None)
        told = [each for answer in answers.values() for each in answer]
        rate, error = _common(told, size)
        self.survey = replace(self.survey, reduce=rate, reduce_error=error)

    def _count(self, name: str) -> int:
        return len(self.survey.rates[name].devices)


def _named(answer: Mapping[str, Any]) -> DeviceRate:
    """A device from what it said at its start."""
    error = answer.get("error", "")
    return DeviceRate("", "", error=error) if error else DeviceRate(**answer)


def _product(device: DeviceRate, answer: Mapping[str, Any]) -> DeviceRate:
    """With what came of its product."""
    if device.error:
        return device
    error = answer.get("error", "")
    return replace(device, error=error) if error else DeviceRate(**answer)


def _common(answers: Sequence[Mapping[str, Any]], count: int = 0) -> tuple[float | None, str]:
    """The rate that all answers tell, or the first error; an answer that is missing is one."""
    for answer in answers:
        if answer.get("error"):
            return None, str(answer["error"])
    if len(answers) < count or not answers:
        return None, "no answer"
    return float(answers[0]["rate"]), ""
