"""Models of transformers trained by torch in a plain loop, and the same ones trained by ROOTS.

Losses, evaluations and weights of five steps over packed documents that do not see each other, with
rows of unequally many predicted tokens, label smoothing, z-loss and clipping. The plain loop takes
tokens and nothing else from ROOTS.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from roots.checkpoint import read_config
from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.device import Device, launch_environment
from roots.parallel import process
from roots.training.assemble import assemble, start_process
from roots.training.callbacks.metrics import read_evaluations, read_metrics
from roots.training.callbacks.peak import Peak
from roots.training.loop import train_loop
from tests.exchange.hf.test_parity import call, tensors_in
from tests.helpers.distributed import run_distributed
from tests.helpers.hf_models import Case, build, gpt2, of_llama
from tests.helpers.runs import VOCAB_SIZE, small_config, write_dataset

RANKS, STEPS, LENGTH, BATCH, EVALUATED = 2, 5, 24, 8, 3
RATE, BETAS, EPSILON, DECAY, CLIPPING = 3e-3, (0.85, 0.9), 1e-4, 0.2, 0.3
SMOOTHING, Z_LOSS = 0.1, 1e-3
# fp32 on both sides; what differs is the order of sums, which five updates hand on.
TOLERANCE = 1e-5
END = 0  # what ends a document in the data

MODELS = {
    "gpt2": Case("gpt2", partial(gpt2, n_embd=32, n_head=4, n_layer=2, n_positions=LENGTH,
                                 vocab_size=VOCAB_SIZE)),
    "llama": Case("llama", partial(of_llama, "LlamaConfig", hidden_size=32, num_attention_heads=4,
                                   intermediate_size=44, vocab_size=VOCAB_SIZE)),
    "mistral": Case("mistral", partial(of_llama, "MistralConfig", hidden_size=32,
                                       num_attention_heads=4, intermediate_size=44,
                                       vocab_size=VOCAB_SIZE, sliding_window=7)),
}  # fmt: skip
# A pipeline comes last: it is the last that DeepSpeed can build in one process.
RUNS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"zero_stage": 2}),
    ("llama", {"tensor": 2, "sequence": True}),
    ("llama", {"context": 2, "context_method": "ring", "zero_stage": 3}),
    ("mistral", {"context": 2, "context_method": "ulysses"}),
    ("mistral", {"context": 2, "context_method": "ring"}),
    ("gpt2", {"pipeline": 2}),
]


def config_of(folder: Path, number: int) -> RunConfig:
    """Run `number`, from the weights that `roots import` has made of the model."""
    name, parallel = RUNS[number]
    model = read_config(folder / name).model.model_dump(exclude_unset=True)
    return small_config(
        folder / "train",
        folder,
        run={"name": f"run{number}"},
        model={**model, "sequence_length": LENGTH},
        parallel={"zero_persistence_threshold": 0, **parallel},
        training={
            "steps": STEPS,
            "micro_batch_size": 2,
            "global_batch_size": BATCH,
            "gradient_clipping": CLIPPING,
            "label_smoothing": SMOOTHING,
            "z_loss": Z_LOSS,
        },
        optimizer={
            "learning_rate": RATE,
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "epsilon": EPSILON,
            "weight_decay": DECAY,
        },
        schedule={"name": "constant", "warmup_steps": 0},
        data={"valid": [str(folder / "valid")], "mask_document_end": True},
        evaluation={"every_steps": STEPS, "steps": EVALUATED},
        checkpoint={"weights": str(folder / name)},
    )


def train_all(rank: int, ranks: int, configs: list[RunConfig]) -> None:
    """Train every config by the real loop; what it found is in the run folders."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    process.initialise(environment, device)
    # What nothing here reads, and takes longer to measure than all steps.
    with mock.patch("roots.training.assemble.device_peak", return_value=Peak(1e9, "none")):
        for config in configs:
            _train(config, ranks, device)


def _train(config: RunConfig, ranks: int, device: Device) -> None:
    with ExitStack() as stack:
        train_loop(assemble(config, plan_batch(config, ranks), device, stack))


class PlainLoop:
    """A model of transformers under torch.optim.AdamW."""

    def __init__(self, case: Case, config: RunConfig) -> None:
        self.model = build(case).eval()
        self.window = getattr(self.model.config, "sliding_window", None)
        one_replica = config.parallel.model_ranks * config.parallel.context
        self.data = build_data(config, plan_batch(config, one_replica), 0)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [each for each in parameters if each.dim() > 1], "weight_decay": DECAY},
            {"params": [each for each in parameters if each.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)

    def train(self) -> tuple[list[float], list[float]]:
        """Loss and norm of every step."""
        losses, norms = [], []
        for batches, _ in self.data.train.iterate(0):
            logits, tokens, labels = self._logits(batches)
            smoothed = _token_losses(logits, labels, SMOOTHING)
            loss = _mean(smoothed + Z_LOSS * logits.logsumexp(-1).square(), tokens)
            self.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIPPING)
            self.optimizer.step()
            losses.append(loss.item())
            norms.append(norm.item())
        return losses, norms

    @torch.no_grad()
    def evaluate(self) -> float:
        """The plain cross-entropy of the held-out rows: mean over a row's tokens, then rows."""
        assert self.data.valid is not None
        found = []
        for batches in self.data.valid.batches():
            logits, tokens, labels = self._logits(batches)
            found.append(float(_mean(_token_losses(logits, labels, 0.0), tokens)))
        assert len(found) == EVALUATED
        return sum(found) / len(found)

    def _logits(self, batches: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, tokens and labels of a global batch; documents end where the token says so."""
        tokens, labels = (
            torch.cat([getattr(batch, name) for batch in batches])
            for name in ("tokens_BT", "labels_BT")
        )
        assert len(tokens) == BATCH
        document = (tokens == END).cumsum(1) - (tokens == END).long()
        seen = (document[:, :, None] == document[:, None, :]).tril()
        if self.window:
            seen = seen.triu(1 - self.window)
        mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]
        return self.model(tokens, attention_mask=mask).logits, tokens, labels


def _token_losses(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    lost = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing
    )
    return lost.view_as(labels)


def _mean(losses: Tensor, tokens: Tensor) -> Tensor:
    """From the end of a document nothing is predicted; what is counts alike within its row."""
    counts = (tokens != END).float()
    assert counts.sum(1).unique().numel() > 1, "rows of unequally many predicted tokens"
    return ((losses * counts).sum(1) / counts.sum(1)).mean()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, trained; the held-out set has fewer rows than an evaluation reads."""
    folder = tmp_path_factory.mktemp("transformers")
    write_dataset(folder / "train")
    write_dataset(folder / "valid", documents=10, seed=8)
    for name, case in MODELS.items():
        build(case).save_pretrained(folder / f"{name}-hf")
        call("import", folder / f"{name}-hf", "--to", folder / name)
    configs = [config_of(folder, number) for number in range(len(RUNS))]
    run_distributed(train_all, RANKS, configs)
    return folder


@pytest.mark.parametrize("name", list(MODELS))
def test_curves_are_those_of_a_plain_loop(name: str, folder: Path) -> None:
    numbers = [number for number, run in enumerate(RUNS) if run[0] == name]
    plain = PlainLoop(MODELS[name], config_of(folder, numbers[0]))
    before = plain.evaluate()
    losses, norms = plain.train()
    evaluated = [before, plain.evaluate()]
    assert losses[-1] < 0.95 * losses[0], "it learns"
    assert min(norms) > CLIPPING, "clipping bites"
    plain.model.save_pretrained(folder / f"{name}-plain")
    expected = tensors_in(folder / f"{name}-plain")
    for number in numbers:
        config = config_of(folder, number)
        records = read_metrics(config.run_directory / "metrics.jsonl")
        assert [each.loss for each in records] == pytest.approx(losses, rel=TOLERANCE), RUNS[number]
        assert [each.grad_norm for each in records] == pytest.approx(norms, rel=TOLERANCE)
        found = read_evaluations(config.run_directory / "evaluations.jsonl")
        assert [each.loss for each in found] == pytest.approx(evaluated, rel=TOLERANCE)
        target = folder / f"export{number}"
        call("export", config.run_directory / "checkpoints" / f"step_{STEPS:08d}", "--to", target)
        exported = tensors_in(target)
        assert exported.keys() == expected.keys()
        for key, weight in expected.items():
            # A step moves a weight by at most RATE.
            torch.testing.assert_close(exported[key], weight, rtol=TOLERANCE, atol=RATE * 1e-3)
