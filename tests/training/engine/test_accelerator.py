"""A DeepSpeed that is too old is told in one line, and its own old calls in none."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import sys
import warnings
from pathlib import Path

import pytest
from deepspeed.utils import logging as deepspeed_log

from roots.config import RunConfig
from roots.errors import RootsError
from roots.parallel import pipeline
from roots.training.engine.accelerator import ignore_known_warnings, refuse_older
from roots.verify.curve import train_curve
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.parallel.layouts import overflow_at_first

DUALPIPEV = "deepspeed.runtime.pipe.dualpipev"


def test_an_older_deepspeed_is_refused() -> None:
    with pytest.raises(RootsError) as caught:
        refuse_older("0.19.7")
    assert caught.value.lines == (
        "deepspeed='0.19.7': must be 0.19.8 or newer; older ones train pipelines or ZeRO 3 "
        "otherwise; run `pip install 'deepspeed>=0.19.8'`",
    )


@pytest.mark.parametrize("version", ["0.19.8", "0.19.10+cu130", "0.20.0", "1.0.0rc1"])
def test_newer_ones_are_taken(version: str) -> None:
    refuse_older(version)


def test_what_an_older_one_lacks_is_no_error_of_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is looked at when a run starts, which is after all imports."""
    monkeypatch.setitem(sys.modules, DUALPIPEV, None)
    spec = importlib.util.find_spec(pipeline.__name__)
    assert spec is not None
    assert spec.loader is not None
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)
    assert not issubclass(older.DualPipeVModule, older.PipelineModule)


def said_on_stderr(rank: int, world_size: int, configs: list[RunConfig]) -> list[str]:
    """What each of these runs writes there on this rank."""
    said = []
    for config in configs:
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            train_curve(config, tensors=False)
        said.append(stderr.getvalue())
    return said


@pytest.mark.distributed
def test_no_rank_warns_of_what_deepspeed_calls(tmp_path: Path) -> None:
    """It gathers and scatters by names that torch is about to give up."""
    prefix = write_dataset(tmp_path / "data")
    layouts = [{"zero_stage": 1}, {"zero_stage": 2}, {"zero_stage": 3}, {"pipeline": 2}]
    configs = [
        small_config(prefix, tmp_path, training={"steps": 2}, parallel=layout) for layout in layouts
    ]
    for said in run_distributed(said_on_stderr, 2, configs):
        assert [text for text in said if "Warning" in text] == []


def said_of_a_bad_step(rank: int, world_size: int, configs: list[RunConfig]) -> list[list[str]]:
    """What ROOTS and DeepSpeed log in each of these runs, whose first gradient is infinite."""
    told = []
    for config in configs:
        said, ours = io.StringIO(), logging.getLogger("roots")
        handler, theirs = logging.StreamHandler(said), deepspeed_log.logger
        for logger in (ours, theirs):
            logger.addHandler(handler)
        train_curve(config, tamper=overflow_at_first, tensors=False)
        theirs.warning("[deepspeed] what else it has to say")
        for logger in (ours, theirs):
            logger.removeHandler(handler)
        told.append(said.getvalue().splitlines())
    return told


@pytest.mark.distributed
def test_of_a_step_that_is_left_out_roots_alone_speaks(tmp_path: Path) -> None:
    """DeepSpeed would say the same of a spike, whose gradients are finite."""
    prefix = write_dataset(tmp_path / "data")
    configs = [
        small_config(
            prefix, tmp_path, training={"steps": 2, "precision": "bf16"}, parallel={"zero_stage": n}
        )
        for n in (0, 1, 3)
    ]
    (told,) = run_distributed(said_of_a_bad_step, 1, configs)
    for lines in told:
        overflow, last = lines
        assert overflow.startswith("overflow: the first gradient that is not finite is that of ")
        assert last == "[deepspeed] what else it has to say"


def test_other_warnings_stay() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ignore_known_warnings()
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_gather_coalesced"):
            text = f"`torch.distributed.{name}` is deprecated. Please use something else instead."
            warnings.warn(text, FutureWarning, stacklevel=1)
            warnings.warn(text, DeprecationWarning, stacklevel=1)
    names = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_gather_coalesced")
    assert [(each.category, str(each.message).split("`")[1]) for each in caught] == [
        (DeprecationWarning, f"torch.distributed.{names[0]}"),
        (DeprecationWarning, f"torch.distributed.{names[1]}"),
        (FutureWarning, f"torch.distributed.{names[2]}"),
        (DeprecationWarning, f"torch.distributed.{names[2]}"),
    ]
