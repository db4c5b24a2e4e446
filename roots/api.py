"""What `import roots` gives: configs, training and trained models, in one process.

The functions are those behind the commands. A mistake in the input raises RootsError, whose
`lines` are what the command would print. A model or batch on several ranks is for the commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from roots.checkpoint import resolve_checkpoint
from roots.config import load as config_load
from roots.config.batch import plan_batch
from roots.config.rules.batch import batch_rule
from roots.config.rules.table import TRAINING_RULES
from roots.config.run import RunConfig
from roots.data.build import DataSources
from roots.data.build import build_data as build_sources
from roots.data.indexed import IndexedDataset
from roots.device import current_device, launch_environment, name_accelerator
from roots.errors import ExitCode, RootsError, problem
from roots.evaluation.datasets import evaluate_dataset
from roots.evaluation.perplexity import Perplexity
from roots.generation.beam import BeamOptions
from roots.generation.load import LoadedModel, load_model, tokenizer_of
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.generation.texts import write_texts
from roots.models.build import build_model as build_network
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.planner.stages import balanced_stages_have_experts
from roots.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from roots.training.callbacks.metrics import StepRecord


def load_config(path: str | Path, *overrides: str) -> RunConfig:
    """Read a YAML file, and what it extends; `overrides` as "training.steps=20" win over it.

    Raises RootsError with every problem, one line each.
    """
    return config_load.load_config(path, overrides)


@dataclass(frozen=True)
class Training:
    """A run that has trained.

    folder:      of config.yaml, metrics.jsonl and checkpoints
    metrics:     what was measured, a record a step: loss in nats, lr, grad_norm, step_seconds, ...
    interrupted: a signal ended it early, after a good checkpoint; `train` again goes on from there
    """

    folder: Path
    metrics: tuple[StepRecord, ...]
    interrupted: bool

    @property
    def losses(self) -> list[float]:
        """The loss of every step, in nats per token."""
        return [record.loss for record in self.metrics]

    @property
    def checkpoint(self) -> Path:
        """The folder of the latest checkpoint."""
        return resolve_checkpoint(self.folder)


def train(config: RunConfig) -> Training:
    """Train in this process, from the latest checkpoint of the run's folder if it has one.

    SIGINT and SIGTERM end it after a step and a checkpoint. Raises RootsError where the config or
    its data are wrong, where it needs more ranks than one, and where the training diverges.
    """
    _refuse_no_config(config)
    _refuse_several_ranks()
    rules = (*TRAINING_RULES, balanced_stages_have_experts, batch_rule(1))
    if lines := [line for rule in rules for line in rule(config)]:
        raise RootsError(*lines)
    name_accelerator()
    # Loads DeepSpeed, which takes seconds that nothing else here needs.
    from roots.training.assemble import train_in_process
    from roots.training.callbacks.metrics import METRICS_FILE, read_metrics

    code = train_in_process(config)
    folder = config.run_directory
    metrics = tuple(read_metrics(folder / METRICS_FILE))
    return Training(folder, metrics, code is ExitCode.INTERRUPTED)


def _refuse_no_config(config: object) -> None:
    if isinstance(config, RunConfig):
        return
    rule = f"is a {type(config).__name__}, and must be a config"
    fix = "use roots.load_config(PATH), or roots.parse_config(TREE)"
    raise RootsError(problem("config", config, rule, fix))


def _refuse_several_ranks() -> None:
    ranks = launch_environment().world_size
    if ranks > 1:
        rule = "roots.train is for one process"
        raise RootsError(
            problem("WORLD_SIZE", ranks, rule, "use launch/local.sh, or `roots train`")
        )


def build_model(config: RunConfig) -> nn.Module:
    """The network of `config` with the initial weights of its seed, on this process' device.

    Called with tokens_BT, document_starts_BT and dropout_keys_B (B samples of T tokens) it gives
    logits_BTV; with labels and weights of the loss as well, the mean loss in nats per token. Its
    parameters are those that any layout starts from.
    """
    _refuse_no_config(config)
    network = build_network(config.model, Mesh.single(), options=BuildOptions.of_run(config))
    device = current_device().torch
    initialise(network, config.training.seed, config.model, device=device)
    return network


def build_data(config: RunConfig) -> DataSources:
    """The data of `config` for one process: `train.iterate(step)` gives the batches from a step on.

    Each item is the list of micro-batches of one optimizer step, and the state to go on from.
    Raises RootsError with every dataset that cannot be opened.
    """
    _refuse_no_config(config)
    return build_sources(config, plan_batch(config, 1), 0)


def load(checkpoint: str | Path) -> Model:
    """A trained model of any layout: the folder or URL of a step, a run (its latest) or an import.

    Raises RootsError if there is none, or if its files are not those that were saved.
    """
    return Model(load_model(checkpoint, current_device()))


class Model:
    """A trained model in this process, ready to write and to be measured."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    @property
    def config(self) -> RunConfig:
        """The config of its training."""
        return self._loaded.config

    @property
    def checkpoint(self) -> Path:
        """The folder it was read from."""
        return self._loaded.checkpoint

    @property
    def network(self) -> nn.Module:
        """The torch module, in evaluation mode."""
        return self._loaded.network

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of the training. Raises RootsError if it is not found."""
        return tokenizer_of(self._loaded, None)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        greedy: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 1234,
    ) -> str:
        """The text that continues `prompt`, without it; equal arguments give equal text.

        temperature: divides the logits
        top_k:       only the k likeliest tokens; 0: all
        top_p:       only the likeliest tokens that together reach this probability

        Raises RootsError for a model that is no decoder, and for a prompt that is too long.
        """
        sampling = SamplingOptions(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p)
        options = GenerationOptions(max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        return self._write(prompt, options)

    def search(
        self,
        prompt: str,
        *,
        beams: int = 4,
        length_penalty: float = 1.0,
        max_new_tokens: int = 64,
    ) -> str:
        """The likeliest text of a beam search: after `prompt`, or the target of this source.

        Raises RootsError for an encoder without a decoder, and for a prompt that is too long.
        """
        options = BeamOptions(
            num_beams=beams, length_penalty=length_penalty, max_new_tokens=max_new_tokens
        )
        return self._write(prompt, options)

    def _write(self, prompt: object, options: GenerationOptions | BeamOptions) -> str:
        if not isinstance(prompt, str):
            rule = f"is a {type(prompt).__name__}, and must be one text"
            raise RootsError(problem("prompt", prompt, rule, "call once for every text"))
        return write_texts(self._loaded, self.tokenizer, [prompt], options)[0].text

    def evaluate(self, data: str | Path) -> Perplexity:
        """Loss, perplexity and bits per byte on the dataset with the prefix `data`.

        Raises RootsError for a model that is no decoder, and for data that do not fit it.
        """
        return evaluate_dataset(self._loaded, IndexedDataset(str(data)), tokenizer=self.tokenizer)
