"""`roots verify`: an honest layout passes, a planted fault is named, and a broken rank is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roots.cli import main as cli
from roots.config import parse_config
from roots.config.shrink import one_process, shrink
from roots.errors import ExitCode
from roots.training.engine.step import Engine
from roots.verify import proof as verify
from roots.verify.compare import Comparison, Curve, Difference, compare
from tests.helpers.distributed import run_distributed
from tests.parallel.layouts import train_curve

BROKEN = "layers.1.mlp.up.weight"
FIRST_BROKEN_STEP = 3


def scale_gradients(engine: Engine, step: int) -> None:
    """In the third step gradients come out wrong, of some tensors on the second rank alone."""
    if step != FIRST_BROKEN_STEP - 1:
        return
    for name, (factor, ranks) in PLANTED.items():
        if engine.mesh.rank in ranks:
            parameter = engine.module.get_parameter(name)
            parameter.register_hook(lambda gradient, factor=factor: gradient * factor)
    if engine.mesh.rank == 1:
        # Zero by mathematics; wrong by a hundredth of what the queries' has.
        size = engine.module.get_parameter(ZERO).new_ones(8) * ZERO_WRONG_BY
        engine.module.get_parameter(ZERO).register_hook(lambda gradient: gradient + size)


# What a gradient is multiplied by, and the ranks on which it is.
PLANTED: dict[str, tuple[float, tuple[int, ...]]] = {
    BROKEN: (2.0, (1,)),
    "layers.0.mlp.up.weight": (0.5, (1,)),
    "layers.0.attention.output.bias": (0.0, (1,)),
    # Summed twice over the tensor ranks.
    "layers.1.mlp_norm.weight": (2.0, (0, 1)),
}
ZERO = "layers.0.attention.key_norm.bias"
ZERO_WRONG_BY = 1e-4


@pytest.mark.distributed
def test_planted_faults_are_named_and_ten_times_beyond_their_bounds(tmp_path: Path) -> None:
    config = parse_config({"parallel": {"tensor": 2}, "model": {"qk_norm": True}})
    small = shrink(config, 2, verify.write_data(tmp_path))
    training = small.training.model_copy(update={"steps": FIRST_BROKEN_STEP})
    small = small.model_copy(update={"training": training})
    (reference,) = run_distributed(train_curve, 1, one_process(small))
    curves = run_distributed(train_curve, 2, small, scale_gradients)
    comparison = compare(reference, curves, verify.TOLERANCE)
    first = comparison.first
    assert first is not None
    assert (first.kind, first.name, first.step) == ("gradient", BROKEN, FIRST_BROKEN_STEP)
    assert first.ranks == (1,)
    assert 0.5 < first.relative < 1.01
    for name in (*PLANTED, ZERO):
        found = [
            each for each in comparison.largest if (each.kind, each.name) == ("gradient", name)
        ]
        assert found[0].relative > 10 * verify.TOLERANCE, name
    # Before it all is equal: the zero gradient, held-out data, expert loads and groups as well.
    assert {each.step for each in comparison.largest if each.relative > verify.TOLERANCE} == {
        FIRST_BROKEN_STEP
    }


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
    (line,) = report["not_shown"]
    assert line.endswith("; --ranks 4 has them")
    assert report["parallel"]["pipeline_schedule"] == "dualpipev"
    assert len(report["losses"]) == 10
    assert report["evaluation"] < report["losses"][0]
    assert report["precision"] == "fp32"
    kinds = {each["kind"] for each in report["differences"]}
    assert kinds >= {"evaluation", "learning rate", "weight decay", "loss scale", "skipped step"}
    assert max(each["relative"] for each in report["differences"]) < report["tolerance"] == 1e-5
    names = sorted(path.relative_to(logs).as_posix() for path in logs.rglob("rank_*.log"))
    assert names == ["layout/rank_0.log", "layout/rank_1.log", "one-process-fp32/rank_0.log"]


def test_a_difference_has_its_own_exit_code_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Difference("gradient", BROKEN, 3, (0, 2), 0.5)
    fine = Difference("loss", "", 1, (0,), 1e-8)
    comparison = Comparison(1e-5, (fine, found), found)
    config = parse_config({})
    curve = Curve(losses=[4.0, 3.0])

    def pretend(*_: Any) -> verify.Verdict:
        return verify.Verdict(
            config, 4, "cpu", comparison, curve, 1.0, ("parallel.expert=2",), ("data",)
        )

    monkeypatch.setattr(verify, "verify", pretend)
    (tmp_path / "run.yaml").write_text("{}\n")
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", str(tmp_path / "run.yaml")])
    assert caught.value.code == ExitCode.DIFFERENT
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["not as in the config: parallel.expert=2", "not shown: data"]
    assert f"   5.0e-01            {BROKEN}  DIFFERS" in lines
    assert lines[-1] == (
        f"different: first gradient of {BROKEN} at step 3 on ranks 0, 2, relative 5.0e-01"
    )
