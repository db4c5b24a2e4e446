"""A checkpoint of any layout, on this process alone or on its part of another layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from roots.checkpoint import check_model, load_model_weights, read_config, resolve_checkpoint
from roots.config.partition import cut_blocks
from roots.config.run import RunConfig
from roots.device import Device
from roots.errors import RootsError, problem
from roots.exchange.hf.tokenizer_files import fed_documents, find_tokenizer
from roots.generation.network import Network, StageLayers
from roots.models.build import build_model, model_layers
from roots.models.decoder import Decoder
from roots.models.encoder import Encoder
from roots.models.encoder_decoder import EncoderDecoder
from roots.models.init import materialise
from roots.models.options import BuildOptions, compute_dtype
from roots.parallel.mesh import Mesh
from roots.planner.stages import block_weights
from roots.tokenizer.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, in evaluation mode, and the config it was trained with."""

    checkpoint: Path
    config: RunConfig
    network: Decoder | Encoder | EncoderDecoder

    @property
    def decoder(self) -> Decoder:
        """The model as a decoder. Raises RootsError for another architecture."""
        if not isinstance(self.network, Decoder):
            raise self._other_architecture("decoder", "continues text and predicts each next token")
        return self.network

    @property
    def encoder_decoder(self) -> EncoderDecoder:
        """The model as an encoder-decoder. Raises RootsError for another architecture."""
        if not isinstance(self.network, EncoderDecoder):
            raise self._other_architecture("encoder_decoder", "writes a target for every source")
        return self.network

    def _other_architecture(self, needed: str, does: str) -> RootsError:
        architecture = self.config.model.architecture
        rule = f"must be {needed}, which alone {does}"
        where = f"model.architecture of {self.checkpoint}"
        return RootsError(problem(where, architecture, rule, "give another checkpoint"))


@dataclass(frozen=True)
class LoadedNetwork:
    """A decoder on this rank's part of a layout, and the config it was trained with."""

    checkpoint: Path
    config: RunConfig
    network: Network


def load_model(path: str | Path, device: Device, mesh: Mesh | None = None) -> LoadedModel:
    """Load the checkpoint meant by `path`: a step folder, a run's (then its latest), or a URL.

    mesh: its tensor and expert ranks share the model, and pipeline stages it has one; None: this
          process has it whole
    Raises RootsError if there is none, its files are not those that were saved, or its tensors do
    not fit its config.
    """
    checkpoint, config = _found(path)
    options = BuildOptions.for_use(config, inference_dtype(config, device))
    network = build_model(config.model, mesh or Mesh.single(), options=options)
    _fill(checkpoint, network, device)
    return LoadedModel(checkpoint, config, network)


def load_network(path: str | Path, device: Device, mesh: Mesh | None = None) -> LoadedNetwork:
    """Load the decoder in the checkpoint meant by `path`, see `load_model`, on any layout.

    Raises RootsError as `load_model`, and for another architecture.
    """
    mesh = mesh or Mesh.single()
    if mesh.pipeline.size == 1:
        model = load_model(path, device, mesh)
        return LoadedNetwork(model.checkpoint, model.config, Network.of(model.decoder, mesh))
    checkpoint, config = _found(path)
    options = BuildOptions.for_use(config, inference_dtype(config, device))
    held = stage_layers(config, mesh, options)
    _fill(checkpoint, held.modules, device)
    return LoadedNetwork(checkpoint, config, Network(config.model, held, mesh))


def stage_layers(config: RunConfig, mesh: Mesh, options: BuildOptions) -> StageLayers:
    """The layers of this rank's pipeline stage of a decoder, not yet filled.

    Stages are balanced by parameters.
    """
    stage, stages = mesh.pipeline.rank, mesh.pipeline.size
    factories = model_layers(config.model, mesh, options)
    blocks = cut_blocks("parameters", block_weights(config.model), 0, stages)
    # The embedding stands before the blocks, and what ends the model behind them.
    cuts = [0, *(1 + cut for cut in blocks[1:-1]), len(factories)]
    here = factories[cuts[stage] : cuts[stage + 1]]
    return StageLayers.of_kinds((each.kind, each.build()) for each in here)


def _found(path: str | Path) -> tuple[Path, RunConfig]:
    checkpoint = resolve_checkpoint(path)
    check_model(checkpoint)
    return checkpoint, read_config(checkpoint)


def _fill(checkpoint: Path, module: nn.Module, device: Device) -> None:
    """Give a module the values of a checkpoint, in evaluation mode."""
    materialise(module, device.torch)
    load_model_weights(checkpoint, module)
    module.eval()


def inference_dtype(config: RunConfig, device: Device) -> torch.dtype:
    """The precision of the training; fp32 for fp16 on a CPU, which has no fast fp16."""
    if device.kind == "cpu" and config.training.precision == "fp16":
        return torch.float32
    return compute_dtype(config.training.precision)


def tokenizer_of(model: LoadedModel | LoadedNetwork, given: str | None) -> Tokenizer:
    """The tokenizer `given`, else the one in the checkpoint, else the one named in its config.

    It begins and ends texts as those of the training. Raises RootsError if there is none, if it
    cannot be loaded, and if the one given has another vocabulary.
    """
    where, _ = find_tokenizer(model.config, model.checkpoint, given)
    if where is None:
        named = model.config.data.tokenizer
        rule = "is not set" if named is None else "does not exist here, though it is named"
        rule += f" in the config of {model.checkpoint}"
        fix = "give --tokenizer DIR" if named is None else "give its folder as --tokenizer DIR"
        raise RootsError(problem("data.tokenizer", named, rule, fix))
    return load_tokenizer(where, fed=fed_documents(model.checkpoint))
