"""A DeepSpeed that is too old is told in one line, whatever it lacks."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from roots.errors import RootsError
from roots.parallel import pipeline
from roots.training.engine.accelerator import refuse_older

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
