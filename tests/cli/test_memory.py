"""Memory that was not enough: one line with the ways out, and exit code 2, in every command."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from roots.cli import main as entry
from roots.cli.memory import memory_line
from roots.errors import RootsError, ran_out_of_memory
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import VOCAB_SIZE, write_dataset

TRAINING = (
    "lower training.micro_batch_size, set parallel.recompute=full, raise parallel.zero_stage, "
    "offload with parallel.offload_optimizer=cpu, or cut the model over more ranks with "
    "parallel.tensor or parallel.pipeline"
)
GPU = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of "
    "which 3.00 GiB is free.\nProcess 1 has 76 GiB in use."
)


def of_torch() -> None:
    torch.empty(1 << 54, dtype=torch.uint8)


def of_numpy() -> None:
    np.empty(1 << 54, dtype=np.uint8)


def of_python() -> None:
    bytearray(1 << 54)


def of_a_gpu() -> None:
    raise torch.OutOfMemoryError(GPU)


def of_a_library() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def of_the_system() -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize(
    ("fail", "line"),
    [
        (of_torch, "memory of the host: was not enough for another 18014398509481984 bytes"),
        (of_numpy, "memory of the host: was not enough for another 16.0 PiB"),
        (of_python, "memory of the host: was not enough"),
        (of_a_gpu, "memory of the GPU: was not enough for another 20.00 GiB"),
        (of_a_library, "memory of the GPU: was not enough"),
        (of_the_system, "memory of the host: was not enough"),
    ],
    ids=lambda value: getattr(value, "__name__", "line"),
)
@pytest.mark.parametrize(
    ("command", "ways_out"),
    [
        ("train", TRAINING),
        ("evaluate", "lower --batch-size"),
        ("export", "end what else takes memory, or use a machine that has more"),
    ],
)
def test_one_line_with_the_ways_out(
    fail: Callable[[], None],
    line: str,
    command: str,
    ways_out: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(entry, "run_command", lambda words: fail())
    with pytest.raises(SystemExit) as caught:
        entry.main([command, "config.yaml"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"roots: error: {line}; {ways_out}\n"


def test_the_rank_is_named_and_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    line = memory_line(torch.OutOfMemoryError(GPU), ["train", "c.yaml"])
    assert line.startswith("memory of the GPU: was not enough on rank 3 for another 20.00 GiB; ")
    monkeypatch.setattr(entry, "run_command", lambda words: of_a_gpu())
    with pytest.raises(torch.OutOfMemoryError):
        entry.main(["train", "c.yaml", "--debug"])


def ending(rank: int, world_size: int, arguments: list[str]) -> tuple[object, str]:
    """Exit code and stderr of the command line, in a process of its own."""
    with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as caught:
        entry.main(arguments)
    return caught.value.code, told.getvalue()


def test_a_model_that_does_not_fit_ends_in_one_line(tmp_path: Path) -> None:
    """The real way, up to the first parameter: 4,194,304 x 1,048,576 of four bytes."""
    prefix = write_dataset(tmp_path / "data")
    path = tmp_path / "run.yaml"
    path.write_text(
        f"run: {{directory: {tmp_path}}}\n"
        f"model: {{hidden_size: 4194304, num_layers: 1, num_heads: 4, vocab_size: {VOCAB_SIZE}, "
        "vocab_multiple: 1048576, sequence_length: 16}\n"
        "training: {precision: fp32, steps: 1, micro_batch_size: 1, global_batch_size: 1}\n"
        f"data: {{train: [{prefix}]}}\n"
    )
    ((code, told),) = run_distributed(ending, 1, ["train", str(path)])
    assert code == 2
    assert told.splitlines()[-1] == (
        "roots: error: memory of the host: was not enough for another 17592186044416 bytes; "
        f"{TRAINING}"
    )
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), OSError(errno.ENOSPC, "full"), RootsError("memory")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert not ran_out_of_memory(error)
