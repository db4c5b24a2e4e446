"""The sections `data`, `tracking`, `ops` and `run`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from roots.config.section import Section, is_null

# The names that roots.ops offers, repeated because a config is checked without torch.
KernelOp = Literal["auto", "roots", "simulator", "torch", "reference"]


# What is a folder of its own everywhere, and no option to any program.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LONGEST_NAME = 200
_WEIGHT = re.compile(r"\d+(\.\d*)?|\.\d+")


class DataSource(Section):
    """One preprocessed dataset and its share of the blend."""

    prefix: str = Field(description="path of the .bin/.idx pair without its ending")
    weight: float = Field(1.0, gt=0, description="share of samples, relative to the other sources")


def _listed(text: str) -> list[Any]:
    """The datasets that one text names: those between its commas, or pairs of weight and prefix."""
    words = text.split()
    pairs = list(zip(words[::2], words[1::2], strict=False))
    if len(words) % 2 == 0 and pairs and all(_WEIGHT.fullmatch(weight) for weight, _ in pairs):
        return [{"prefix": prefix, "weight": weight} for weight, prefix in pairs]
    return [each.strip() for each in text.split(",")]


class DataConfig(Section):
    """Where the tokens come from and how documents are treated."""

    objective: Literal["causal", "pairs", "span_corruption", "masked"] | None = Field(
        None,
        description="what is learned; null: causal for a decoder, span_corruption for an "
        "encoder_decoder, masked for an encoder",
    )
    train: tuple[DataSource, ...] = Field(
        (),
        description="training data: prefixes with weights; also PREFIX, a list of them, "
        "`PREFIX,PREFIX`, or with weights `0.3 PREFIX 0.7 PREFIX`",
    )
    valid: tuple[DataSource, ...] = Field(
        (),
        description="held-out data, as data.train; empty: split off the training data by document",
    )
    split: tuple[float, float, float] = Field(
        (969.0, 30.0, 1.0),
        description="weights of train, valid and test where `valid` is empty; also `969,30,1`",
    )
    phase: int = Field(
        0,
        ge=0,
        description="a run goes on in the phase of its checkpoint and reads on in the same order; "
        "a higher one begins another blend there, whose samples are counted from it",
    )
    tokenizer: str | None = Field(None, description="folder of the tokenizer, or `bytes`")
    separate_documents: bool = Field(
        True, description="attention of a decoder stays inside a document"
    )
    reset_positions: bool = Field(False, description="positions start again in every document")
    mask_document_end: bool = Field(
        False, description="no loss on what follows an end-of-document token"
    )
    begin_token: int | None = Field(
        None, ge=0, description="what an encoder_decoder writes after; null: end of document"
    )
    mask_token: int | None = Field(
        None, ge=0, description="what hides a token; null: the last one of model.vocab_size"
    )
    sentinel_token: int | None = Field(
        None,
        ge=0,
        description="what hides the first span of span_corruption, the next ones the tokens below "
        "it; null: the last one of model.vocab_size; released T5: 32099",
    )
    noise_density: float = Field(
        0.15, gt=0, lt=1, description="share of tokens hidden by span_corruption and masked"
    )
    mean_span: float = Field(3.0, ge=1, description="mean tokens of a span of span_corruption")
    pad_multiple: int | None = Field(
        None,
        gt=0,
        description="pad pairs to the longest of the global batch, rounded up to a multiple of "
        "this; null: to the model's lengths",
    )
    group_batches: int = Field(
        1,
        gt=0,
        description="global batches whose pairs are sorted by length together, for less padding",
    )
    cache_directory: str | None = Field(
        None, description="where sample indices are kept; null: folder index-cache beside the data"
    )
    num_workers: int = Field(0, ge=0, le=1, description="1: read batches ahead in a thread")

    @field_validator("train", "valid", mode="before")
    @classmethod
    def _accept_plain_prefixes(cls, value: Any) -> Any:
        """Accept `prefix`, `prefix,prefix`, lists of prefixes, and null for none.

        Megatron's `0.3 prefix 0.7 prefix`, a weight before every prefix, is read as it is there.
        """
        if is_null(value):
            return ()
        if isinstance(value, str):
            value = _listed(value)
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, (list, tuple)):
            return tuple({"prefix": item} if isinstance(item, str) else item for item in value)
        return value

    @field_validator("split", mode="before")
    @classmethod
    def _accept_comma_list(cls, value: Any) -> Any:
        """Accept Megatron's `969,30,1`."""
        return tuple(value.split(",")) if isinstance(value, str) else value


class TrackingConfig(Section):
    """What is shown and where it is recorded, besides metrics.jsonl."""

    log_every_steps: int = Field(10, gt=0, description="steps between log lines")
    tensorboard: bool = Field(True, description="write TensorBoard events")
    wandb: bool = Field(False, description="report to Weights & Biases")
    wandb_project: str = Field("roots", description="project name there")
    wandb_mode: Literal["online", "offline"] = Field(
        "offline", description="offline keeps it local"
    )


class OpsConfig(Section):
    """Implementation of each op: `auto`, or a name that `roots info` shows."""

    attention: Literal["auto", "roots", "simulator", "torch_sdpa", "reference"] = Field(
        "auto", description="fused softmax-attention"
    )
    layer_norm: KernelOp = Field("auto", description="layer norm")
    rms_norm: KernelOp = Field("auto", description="RMS norm")
    rotary: KernelOp = Field("auto", description="rotary position embedding")
    bias_gelu: KernelOp = Field("auto", description="gelu with fused bias")
    swiglu: KernelOp = Field("auto", description="gated MLP activation")
    dropout: KernelOp = Field("auto", description="counter-based dropout")
    cross_entropy: KernelOp = Field("auto", description="vocab-parallel cross-entropy")
    check_finite: KernelOp = Field("auto", description="search for gradients that are not finite")


class RunSection(Section):
    """Name and place of the run."""

    name: str = Field("run", description="name of the run's folder")
    directory: str = Field("runs", description="folder that holds the folders of runs")

    @field_validator("name")
    @classmethod
    def _name_a_folder(cls, value: str) -> str:
        """A name is one folder below `directory`: never the parent, never one further down."""
        if len(value) > _LONGEST_NAME:
            raise PydanticCustomError("name", f"Must have at most {_LONGEST_NAME} characters")
        if _PLAIN_NAME.fullmatch(value) is None:
            rule = "Must be letters, digits, '.', '_' and '-', with none of '.' and '-' in front"
            raise PydanticCustomError("name", rule)
        return value

    @property
    def run_directory(self) -> Path:
        """The folder of this run."""
        return Path(self.directory) / self.name
