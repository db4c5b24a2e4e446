"""An agent answers line by line, and a device that fails or hangs is only that."""

from __future__ import annotations

import io
import json
import sys
import threading
import types
from pathlib import Path

import pytest

from roots.doctor import agent
from roots.doctor.agent import Agent, Worker, free_ports, visible


class Work:
    """What a device does here, in the place of roots.doctor.device_work.DeviceWork."""

    def __init__(self, number: int, on_gpu: bool) -> None:
        self.number = number
        assert not on_gpu

    def tells(self, word: str) -> dict[str, object]:
        """Its number and the word."""
        print("this is no answer")
        return {"number": self.number, "word": word}

    def fails(self) -> None:
        """Raise."""
        raise RuntimeError("CUDA error: 719\nand more of it")

    def dies(self) -> None:
        """End the process."""
        sys.exit(5)

    def hangs(self) -> None:
        """Wait for what never comes."""
        threading.Event().wait()


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Agent:
    """An agent with two devices; it loads no torch."""
    module = types.ModuleType("roots.doctor.device_work")
    module.DeviceWork = Work  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "roots.doctor.device_work", module)
    return Agent(tmp_path, [Worker(0), Worker(1)])


def work(devices: Agent, name: str, seconds: float = 20.0, **words: object) -> object:
    question = {"do": "devices", "work": {"name": name, "seconds": seconds, "words": words}}
    return devices.answer(question)["devices"]


def test_all_devices_answer_at_once(devices: Agent) -> None:
    both = [{"number": 0, "word": "x"}, {"number": 1, "word": "x"}]
    assert work(devices, "tells", word="x") == both
    question = {"name": "tells", "seconds": 20.0, "words": {"word": "y"}, "count": 1}
    assert devices.answer({"do": "devices", "work": question}) == {
        "devices": [{"number": 0, "word": "y"}]
    }


def test_device_that_fails_goes_on(devices: Agent) -> None:
    assert work(devices, "fails") == [{"error": "CUDA error: 719"}] * 2
    assert work(devices, "tells", word="x") == [{"number": n, "word": "x"} for n in range(2)]


def test_device_that_dies_is_told_each_time(devices: Agent) -> None:
    for name in ("dies", "fails"):
        assert work(devices, name) == [{"error": "its process ended with code 5"}] * 2


def test_device_that_hangs_is_ended(devices: Agent) -> None:
    assert work(devices, "hangs", seconds=0.1) == [{"error": "did not come to an end"}] * 2
    assert not any(worker.process.is_alive() for worker in devices.workers)
    assert work(devices, "fails") == [{"error": "its process ended with code -9"}] * 2


def test_disk_is_measured_where_the_folder_is(
    devices: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([1.0, 3.0, 2.0, None])
    monkeypatch.setattr(agent, "measure_disk", lambda folder, count: next(rates))
    assert devices.answer({"do": "disk"}) == {"rate": 3.0}
    assert devices.answer({"do": "disk"}) == {"rate": None}
    monkeypatch.undo()
    assert devices.answer({"do": "disk"})["rate"] > 0
    assert list(tmp_path.iterdir()) == []


def test_no_other_disk_is_measured_where_the_folder_is_missing(tmp_path: Path) -> None:
    missing = Agent(tmp_path / "scratch" / "runs", [])
    assert missing.answer({"do": "disk"}) == {"rate": None, "no_folder": True}


def test_slow_disk_is_measured_once(devices: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([1.0, 3.0])
    monkeypatch.setattr(agent, "measure_disk", lambda folder, count: next(rates))
    monkeypatch.setattr(agent, "_DISK_SECONDS", -1.0)
    assert devices.answer({"do": "disk"}) == {"rate": 1.0}


def test_ports_differ(devices: Agent) -> None:
    assert len(set(devices.answer({"do": "ports"})["ports"])) == 2
    assert len(set(free_ports(20))) == 20


def test_program_answers_until_its_input_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    questions = "\n".join(json.dumps({"do": each}) for each in ("counters", "ports"))
    monkeypatch.setattr("sys.stdin", io.StringIO(questions))
    monkeypatch.setattr("sys.argv", ["agent", "--folder", str(tmp_path / "runs" / "x")])
    agent.main()
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert "counters" in first
    assert len(second["ports"]) >= 1


@pytest.mark.parametrize("chosen, count", [("", 8), ("0,3", 2), ("-1", 0), (",", 0), ("GPU-1a", 1)])
def test_gpus_that_programs_see(chosen: str, count: int) -> None:
    assert visible(8, chosen) == count
    assert visible(0, chosen) == 0
