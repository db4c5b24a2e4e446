"""A checkpoint of any layout as one module on this process, for generation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from roots.checkpoint import check_model, load_model_weights, read_config, resolve_checkpoint
from roots.config.run import RunConfig
from roots.device import Device
from roots.errors import RootsError, problem
from roots.exchange.hf.tokenizer_files import fed_documents, find_tokenizer
from roots.models.build import build_model
from roots.models.decoder import Decoder
from roots.models.encoder import Encoder
from roots.models.encoder_decoder import EncoderDecoder
from roots.models.init import materialise
from roots.models.options import BuildOptions, compute_dtype
from roots.parallel.mesh import Mesh
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


def load_model(path: str | Path, device: Device) -> LoadedModel:
    """Load the checkpoint meant by `path`: a step folder, a run's (then its latest), or a URL.

    Raises RootsError if there is none, its files are not those that were saved, or its tensors do
    not fit its config.
    """
    checkpoint = resolve_checkpoint(path)
    check_model(checkpoint)
    config = read_config(checkpoint)
    # The parameters of an inference model do not depend on how the training was laid out.
    options = BuildOptions(
        dtype=inference_dtype(config, device),
        separate_documents=config.data.separate_documents,
        reset_positions=config.data.reset_positions,
        ops=config.ops,
    )
    network = build_model(config.model, Mesh.single(), options=options)
    materialise(network, device.torch)
    load_model_weights(checkpoint, network)
    return LoadedModel(checkpoint, config, network.eval())


def inference_dtype(config: RunConfig, device: Device) -> torch.dtype:
    """The precision of the training; fp32 for fp16 on a CPU, which has no fast fp16."""
    if device.kind == "cpu" and config.training.precision == "fp16":
        return torch.float32
    return compute_dtype(config.training.precision)


def tokenizer_of(model: LoadedModel, given: str | None) -> Tokenizer:
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
