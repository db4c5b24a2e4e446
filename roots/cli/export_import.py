"""`roots export` and `roots import`: models to and from other formats, without a GPU."""

from __future__ import annotations

import json
import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from roots.cli.options.trained import AsJson, Checkpoint

if TYPE_CHECKING:
    from roots.exchange.imported_checkpoint import Exchanged

_SMALLEST_SHARD = 1000
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class ExportFormat(str, Enum):
    """What an export writes."""

    HF = "hf"
    GGUF = "gguf"


class ImportFormat(str, Enum):
    """What an import reads."""

    HF = "hf"
    MEGATRON = "megatron"


class DtypeChoice(str, Enum):
    """A dtype of weights."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


Dtype = Annotated[
    Optional[DtypeChoice],  # noqa: UP045  # typer evaluates this on Python 3.10 too
    typer.Option(help="Convert the weights; default: keep what is stored."),
]
ShardSize = Annotated[
    str, typer.Option(metavar="SIZE", help="Largest file of weights, as 5GB or 500MB.")
]


def export(
    checkpoint: Checkpoint,
    *,
    to: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the model.")],
    kind: Annotated[
        ExportFormat, typer.Option("--format", help="Folder for transformers, or for llama.cpp.")
    ] = ExportFormat.HF,
    shard_size: ShardSize = "5GB",
    dtype: Dtype = None,
    tokenizer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Folder of the tokenizer, or `bytes`; default: that of the training."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model in CHECKPOINT, saved on any layout, as a folder that others load."""
    from roots.checkpoint import resolve_checkpoint
    from roots.cli.progress import shown

    shard_bytes = _bytes(shard_size)
    found = resolve_checkpoint(checkpoint)
    wanted = _torch_dtype(dtype)
    if kind is ExportFormat.GGUF:
        from roots.exchange.gguf.exporting import export_gguf

        written = export_gguf(found, to, dtype=wanted, tokenizer=tokenizer)
    else:
        from roots.exchange.hf.exporting import export_hf

        with shown("exporting") as report:
            written = export_hf(
                found,
                to,
                dtype=wanted,
                shard_bytes=shard_bytes,
                tokenizer=tokenizer,
                report=report,
            )
    _report(written, found, as_json)


def import_model(
    source: Annotated[Path, typer.Argument(help="Folder of a model of another format.")],
    *,
    to: Annotated[Path, typer.Option(metavar="CHECKPOINT", help="New folder of the checkpoint.")],
    kind: Annotated[
        ImportFormat, typer.Option("--from", help="Hugging Face, or Megatron-core's torch_dist.")
    ] = ImportFormat.HF,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="YAML with the `model` section, for a Megatron folder without its args."),
    ] = None,
    shard_size: ShardSize = "5GB",
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Write the model in SOURCE as a checkpoint that `checkpoint.weights` trains on any layout."""
    from roots.cli.progress import shown

    shard_bytes = _bytes(shard_size)
    wanted = _torch_dtype(dtype)
    if kind is ImportFormat.MEGATRON:
        from roots.exchange.megatron.importing import import_megatron

        with shown("importing") as report:
            written = import_megatron(
                source, to, config=config, dtype=wanted, shard_bytes=shard_bytes, report=report
            )
    else:
        from roots.exchange.hf.importing import import_hf

        with shown("importing") as report:
            written = import_hf(source, to, dtype=wanted, shard_bytes=shard_bytes, report=report)
    _report(written, source, as_json)


def _report(written: Exchanged, source: Path, as_json: bool) -> None:
    if as_json:
        document = {
            "source": str(source),
            "folder": str(written.folder),
            "architecture": written.architecture,
            "tensors": written.tensors,
            "parameters": written.parameters,
            "bytes": written.num_bytes,
            "files": list(written.files),
            "tokenizer": written.tokenizer,
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"source        {source}")
    typer.echo(f"written       {written.folder}")
    typer.echo(f"architecture  {written.architecture}")
    typer.echo(f"parameters    {written.parameters:,} in {written.tensors} tensors")
    typer.echo(f"weights       {written.num_bytes:,} bytes in {len(written.files)} files")
    typer.echo(f"tokenizer     {written.tokenizer}")


def _bytes(text: str) -> int:
    """Bytes of `5GB`, `500MB`, `10KB` or `1000`. Raises RootsError."""
    from roots.errors import RootsError, problem

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    size = 0 if match is None else int(float(match[1]) * _UNITS[match[2]])
    if size < _SMALLEST_SHARD:
        rule = "must be a number of bytes such as 5GB, 500MB or 1000000, and at least 1KB"
        raise RootsError(problem("--shard-size", text, rule, "write it that way"))
    return size


def _torch_dtype(choice: DtypeChoice | None):  # noqa: ANN202 - a torch.dtype, not yet imported
    from roots.checkpoint.dtypes import dtype_named

    return None if choice is None else dtype_named(choice.value)
