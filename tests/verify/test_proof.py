"""`roots verify`: an honest layout passes, a planted fault is named, and a broken rank is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from roots.cli import main as cli
from roots.config import parse_config
from roots.config.shrink import one_process, shrink
from roots.errors import ExitCode, RootsError
from roots.training.engine.step import Engine
from roots.verify import proof as verify
from roots.verify.compare import Comparison, Curve, Difference, compare
from tests.helpers.distributed import run_distributed
from tests.parallel.layouts import train_curve

BROKEN = "layers.1.mlp.up.weight"
FIRST_BROKEN_STEP = 3


def double_one_gradient(engine: Engine, step: int) -> None:
    """On the second rank one gradient is twice what it should be, from the third step on."""
    if step != FIRST_BROKEN_STEP - 1 or engine.mesh.rank != 1:
        return
    parameter = engine.module.get_parameter(BROKEN)
    parameter.register_hook(lambda gradient: 2 * gradient)


@pytest.mark.distributed
def test_a_planted_fault_is_named_with_its_step_and_rank(tmp_path: Path) -> None:
    config = parse_config({"parallel": {"tensor": 2}})
    small = shrink(config, 2, {"train": [str(tmp_path / "data")], "valid": []})
    verify.write_documents(tmp_path / "data", small.model.vocab_size)
    (reference,) = run_distributed(train_curve, 1, one_process(small))
    curves = run_distributed(train_curve, 2, small, double_one_gradient)
    comparison = compare(reference, curves, verify.TOLERANCE)
    first = comparison.first
    assert first is not None
    assert (first.kind, first.name, first.step) == ("gradient", BROKEN, FIRST_BROKEN_STEP)
    assert first.ranks == (1,)
    assert first.relative == pytest.approx(1.0, rel=1e-3)


@pytest.mark.distributed
def test_the_command_proves_a_layout_and_leaves_its_logs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: {position: rotary, norm: rms_norm, activation: swiglu}\n")
    overrides = ["parallel.pipeline=2", "parallel.pipeline_schedule=dualpipev"]
    logs = tmp_path / "logs"
    words = ["verify", str(config), *overrides, "--ranks", "2", "--json", "--logs", str(logs)]
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == ExitCode.DONE
    report = json.loads(capfd.readouterr().out)
    assert report["equal"]
    assert report["first_difference"] is None
    assert report["reduced"] == []
    assert report["parallel"]["pipeline_schedule"] == "dualpipev"
    assert len(report["losses"]) == 10
    assert max(each["relative"] for each in report["differences"]) < report["tolerance"] == 1e-5
    names = sorted(path.relative_to(logs).as_posix() for path in logs.rglob("rank_*.log"))
    assert names == ["layout/rank_0.log", "layout/rank_1.log", "one-process/rank_0.log"]


def test_a_difference_has_its_own_exit_code_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Difference("gradient", BROKEN, 3, (0, 2), 0.5)
    fine = Difference("loss", "", 1, (0,), 1e-8)
    comparison = Comparison(1e-5, (fine, found), found)
    config = parse_config({})
    curve = Curve(losses=[4.0, 3.0])

    def pretend(*_: Any) -> verify.Verdict:
        return verify.Verdict(config, 4, "cpu", comparison, curve, 1.0, ("parallel.expert=2",))

    monkeypatch.setattr(verify, "verify", pretend)
    (tmp_path / "run.yaml").write_text("{}\n")
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", str(tmp_path / "run.yaml")])
    assert caught.value.code == ExitCode.DIFFERENT
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "not as in the config: parallel.expert=2"
    assert f"   5.0e-01            {BROKEN}  DIFFERS" in lines
    assert lines[-1] == (
        f"different: first gradient of {BROKEN} at step 3 on ranks 0, 2, relative 5.0e-01"
    )


def one_rank(tmp_path: Path) -> RootsError:
    """What is raised where one rank is to train on data that are not there."""
    config = shrink(parse_config({}), 1, {"train": [str(tmp_path / "absent")], "valid": []})
    with pytest.raises(RootsError) as caught:
        verify.launch(config, 1, tmp_path / "ranks", on_gpus=False)
    return caught.value


@pytest.mark.distributed
def test_a_mistake_that_a_rank_finds_keeps_its_line_and_exit_code(tmp_path: Path) -> None:
    error = one_rank(tmp_path)
    (line,) = error.lines
    assert line == (
        f"data.train[0].prefix: {tmp_path / 'absent'}.idx: no such file; "
        "check data.train and data.valid, or run `roots preprocess`"
    )
    assert error.exit_code == ExitCode.BAD_INPUT
    log = (tmp_path / "ranks" / "rank_0.log").read_text(encoding="utf-8")
    assert log.splitlines()[-1] == f"roots: error: {line}"
    assert "Traceback" not in log


@pytest.mark.distributed
def test_a_rank_that_fails_is_named_with_its_last_words_and_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_python(*_: Any) -> dict[str, str]:
        return {**os.environ, "PYTHONHOME": str(tmp_path)}

    monkeypatch.setattr(verify, "rank_environment", without_python)
    error = one_rank(tmp_path)
    (line,) = error.lines
    log = (tmp_path / "ranks" / "rank_0.log").read_text(encoding="utf-8")
    assert line.startswith(f"rank 0: ended with exit code 1 ({log.strip().splitlines()[-1]}); ")
    assert line.endswith(f"read {tmp_path / 'ranks' / 'rank_0.log'}")
    assert error.exit_code == ExitCode.BUG


def test_ranks_that_lost_another_do_not_hide_its_mistake(tmp_path: Path) -> None:
    told = {"lines": ["data.train=3: is odd; use 4"], "exit_code": int(ExitCode.BAD_INPUT)}
    verify.error_file(tmp_path, 1).write_text(json.dumps(told))
    ends = [[sys.executable, "-c", f"raise SystemExit({code})"] for code in (1, 2)]
    processes = [subprocess.Popen(command) for command in ends]
    with processes[0], processes[1], pytest.raises(RootsError) as caught:
        verify._wait(processes, tmp_path, lambda ended: None)
    assert caught.value.lines == ("data.train=3: is odd; use 4",)
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_ranks_are_two_replicas_where_the_machine_takes_them() -> None:
    config = parse_config({"parallel": {"tensor": 2, "pipeline": 2}})
    assert verify.default_ranks(config, 8) == 8
    assert verify.default_ranks(config, 7) == 4
    assert verify.default_ranks(config, 2) == 2
    spread = parse_config({"parallel": {"expert": 4}, "model": {"moe": {"num_experts": 8}}})
    assert verify.default_ranks(spread, 8) == 4
    assert verify.default_ranks(spread, 3) == 2
    assert verify.default_ranks(spread, 1) == 1
    parallel = {"expert": 4, "tensor": 2, "pipeline": 2}
    spread = parse_config({"parallel": parallel, "model": {"moe": {"num_experts": 8}}})
    assert verify.default_ranks(spread, 16) == 16
    assert verify.default_ranks(spread, 8) == 8
    # Seven ranks would hold seven replicas; four have room for degrees.
    assert verify.default_ranks(spread, 7) == 4
    assert verify.default_ranks(parse_config({"parallel": {"tensor": 4}}), 3) == 2
    assert torch.cuda.is_available() or 1 <= verify.most_ranks() <= 8
