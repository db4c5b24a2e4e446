"""`import roots`: lazy names, and a run from config to text that is what the commands would do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import roots
from roots.config import dump_config
from roots.training.report.account import read_account
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import VOCAB_SIZE, small_config, write_dataset


def _config(folder: Path, **sections: dict[str, Any]) -> roots.RunConfig:
    return small_config(write_dataset(folder / "data"), folder / "runs", **sections)


def test_every_name_is_found_and_no_other() -> None:
    for name in roots.__all__:
        assert getattr(roots, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'roots' has no attribute 'trian'"):
        _ = roots.trian
    assert {*roots.__all__} <= {*dir(roots)}


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(dump_config(_config(tmp_path)), encoding="utf-8")
    assert roots.load_config(path, "training.steps=7").training.steps == 7
    with pytest.raises(roots.RootsError) as caught:
        roots.load_config(str(path), "training.stepz=7", "model.num_heads=5")
    assert len(caught.value.lines) == 2


def _whole_way(rank: int, world_size: int, folder: Path) -> tuple[Any, ...]:
    config = _config(folder, training={"steps": 3})
    first = roots.train(config)
    again = roots.train(_config(folder, training={"steps": 5}))
    model = roots.load(again.folder)
    return (
        first.folder,
        first.losses,
        again.losses,
        (first.interrupted, again.interrupted, again.checkpoint.name),
        model.config.training.steps,
        sum(parameter.numel() for parameter in model.network.parameters()),
        model.network.training,
    )


def test_trains_goes_on_and_loads(tmp_path: Path) -> None:
    (result,) = run_distributed(_whole_way, 1, tmp_path)
    folder, first, again, ends, steps, size, in_training = result
    assert folder == tmp_path / "runs" / "test"
    assert (len(first), len(again)) == (3, 5)
    assert again[:3] == first
    assert ends == (False, False, "step_00000005")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["loss"] for line in lines] == again
    assert (steps, in_training) == (5, False)
    account = read_account(folder / "ledger.jsonl")
    ways = [(start.first_step, start.last_step, start.code) for start in account.starts]
    assert ways == [(0, 3, 0), (3, 5, 0)]
    assert (account.steps, account.num_saves, account.seconds["lost"]) == (5, 2, 0.0)
    assert account.num_bytes is not None
    assert account.num_bytes > 100_000
    assert 0 < account.goodput < 1
    assert account.starts[1].seconds["compute"] > 0
    network = roots.build_model(_config(tmp_path))
    assert size == sum(parameter.numel() for parameter in network.parameters())


def test_a_model_and_its_data_give_the_first_loss(tmp_path: Path) -> None:
    config = _config(tmp_path)
    data = roots.build_data(config)
    micro_batches, state = next(iter(data.train.iterate(0)))
    assert state.consumed_samples == config.training.global_batch_size
    batch = micro_batches[0]
    model = roots.build_model(config)
    loss = model(
        batch.tokens_BT,
        batch.document_starts_BT,
        batch.dropout_keys_B,
        batch.labels_BT,
        batch.loss_weights_BT,
    )
    assert loss.item() == pytest.approx(math.log(VOCAB_SIZE), rel=0.05)
    assert all(torch.equal(one, two) for one, two in zip(_weights(model), _weights(config)))


def _weights(source: Any) -> list[torch.Tensor]:
    module = source if isinstance(source, torch.nn.Module) else roots.build_model(source)
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("call", [roots.train, roots.build_model, roots.build_data])
def test_a_path_is_no_config(call: Callable[[Any], object]) -> None:
    with pytest.raises(roots.RootsError) as caught:
        call("mine.yaml")
    (line,) = caught.value.lines
    assert line.startswith("config='mine.yaml': is a str, and must be a config; use roots.load")


@pytest.mark.parametrize(
    "arguments, line",
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1: must be 1 or more; raise it"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be 1 or more; raise it"),
        ({"seed": 2**64}, f"seed={2**64}: must be in [0, 2^64); choose one there"),
        (
            {"temperature": math.inf},
            "temperature=inf: must be above 0, and finite; choose greedily for the limit at 0",
        ),
        (
            {"prompt": ["one", "two"]},
            "prompt=['one', 'two']: is a list, and must be one text; call once for every text",
        ),
    ],
)
def test_what_cannot_be_written_is_told(arguments: dict[str, Any], line: str) -> None:
    model = roots.Model(None)  # type: ignore[arg-type] - nothing of it is asked for
    with pytest.raises(roots.RootsError) as caught:
        model.generate(**{"prompt": "one", **arguments})
    assert caught.value.lines == (line,)


def test_what_cannot_train_is_told_before_anything_starts(tmp_path: Path) -> None:
    config = _config(tmp_path, parallel={"tensor": 2}, data={"train": []})
    with pytest.raises(roots.RootsError) as caught:
        roots.train(config)
    first, second = caught.value.lines
    assert first.startswith("data.train=[]: must name at least one dataset")
    assert second.startswith("world size=1: must be a multiple of")
    assert not (tmp_path / "runs").exists()


def test_several_ranks_are_for_the_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(roots.RootsError, match=r"WORLD_SIZE=2: .*for one process"):
        roots.train(_config(tmp_path))
