"""Continued pretraining: the first loss is that of the imported model, on every layout."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.exchange.hf.exporting import export_hf
from roots.exchange.hf.importing import import_hf
from tests.helpers.distributed import RankFailure, run_distributed
from tests.helpers.hf_models import Case, build, gpt2, load, of_llama
from tests.helpers.runs import VOCAB_SIZE, small_config, write_dataset
from tests.integration.runs import run

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {"zero_stage": 1}),
    "tp2": (2, {"tensor": 2, "zero_stage": 1}),
    "tp2-pp2": (4, {"tensor": 2, "pipeline": 2, "zero_stage": 1}),
}
CASES = {
    "llama": Case("llama", partial(of_llama, "LlamaConfig", vocab_size=VOCAB_SIZE, hidden_size=24)),
    "gpt2-tied": Case("gpt2", partial(gpt2, vocab_size=VOCAB_SIZE, n_head=2, n_embd=32)),
}
PLANS = {"llama": ("one", "tp2-pp2"), "gpt2-tied": ("tp2", "tp2-pp2")}


def config_of(folder: Path, checkpoint: Path, name: str, parallel: dict[str, Any]) -> RunConfig:
    """Two steps from the weights of `checkpoint`, with its model, on short samples."""
    import yaml

    model = yaml.safe_load((checkpoint / "config.yaml").read_text())["model"]
    if model["position"] == "rotary":
        model["sequence_length"] = 16
    return small_config(
        write_dataset(folder / "data") if not (folder / "data.idx").exists() else folder / "data",
        folder,
        run={"name": name},
        model=model,
        parallel=parallel,
        training={"steps": 2},
        data={"separate_documents": False},
        checkpoint={"weights": str(checkpoint), "every_steps": 0},
    )


def first_loss_of(model: torch.nn.Module, config: RunConfig) -> float:
    """transformers' loss on the first global batch of a run."""
    data = build_data(
        config, plan_batch(config, config.parallel.tensor * config.parallel.pipeline), 0
    )
    micro_batches, _ = next(iter(data.train.iterate(0)))
    losses = []
    for batch in micro_batches:
        logits = model(batch.tokens_BT).logits.flatten(0, 1)
        losses.append(F.cross_entropy(logits, batch.labels_BT.flatten()).detach())
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("name", CASES)
def test_first_loss_is_the_imported_models(name: str, tmp_path: Path) -> None:
    theirs = build(CASES[name])
    theirs.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "imported", shard_bytes=20_000)
    for layout in PLANS[name]:
        world_size, parallel = LAYOUTS[layout]
        config = config_of(tmp_path, tmp_path / "imported", layout, parallel)
        run_distributed(run, world_size, config)
        lines = (config.run_directory / "metrics.jsonl").read_text().splitlines()
        first = json.loads(lines[0])
        assert first["step"] == 1
        assert first["loss"] == pytest.approx(first_loss_of(theirs, config), rel=1e-5)

    # What two tensor ranks and two stages have trained leaves as the model of the other layout.
    tokens_BT = torch.arange(30).view(2, 15)
    logits = []
    for layout in PLANS[name]:
        checkpoint = tmp_path / layout / "checkpoints" / "step_00000002"
        export_hf(checkpoint, tmp_path / f"{layout}-out", shard_bytes=20_000)
        logits.append(load(tmp_path / f"{layout}-out")(tokens_BT).logits)
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    assert (logits[0] - theirs(tokens_BT).logits).abs().max() > 1e-2


def test_weights_of_another_model_and_resuming_from_weights_are_refused(tmp_path: Path) -> None:
    build(CASES["llama"]).save_pretrained(tmp_path / "hf")
    imported = tmp_path / "imported"
    import_hf(tmp_path / "hf", imported)
    config = config_of(tmp_path, imported, "wrong", LAYOUTS["one"][1])
    other = config.model.model_copy(update={"ffn_hidden_size": 64})
    with pytest.raises(RankFailure) as caught:
        run_distributed(run, 1, config.model_copy(update={"model": other}))
    assert (
        f"model.ffn_hidden_size=64: is 70 in checkpoint {imported}; use the model of the config "
        f"stored as {imported / 'config.yaml'}, or set checkpoint.weights to a checkpoint of this "
        "model\n" in str(caught.value)
    )
    resume = config.checkpoint.model_copy(update={"weights": None, "resume": str(imported)})
    with pytest.raises(RankFailure) as caught:
        run_distributed(run, 1, config.model_copy(update={"checkpoint": resume}))
    assert (
        f"checkpoint.resume={str(imported)!r}: {imported} holds weights alone, and no optimizer to "
        "go on with; set checkpoint.weights to it instead, to start a run from its weights\n"
        in str(caught.value)
    )
