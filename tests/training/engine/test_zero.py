"""Options of ZeRO that this machine cannot serve are refused in one line each."""

from __future__ import annotations

from typing import Any

import pytest
from deepspeed.accelerator import get_accelerator

from roots.config import RunConfig, parse_config
from roots.device import Device
from roots.errors import RootsError
from roots.training.engine.zero import refuse_what_is_not_served

CPU = Device("cpu", 0)


class _AsyncIO:
    """A builder that has found libaio, or has not."""

    def __init__(self, compatible: bool) -> None:
        self.compatible = compatible
        self.loaded = 0

    def load(self, verbose: bool = True) -> None:
        self.loaded += 1

    def is_compatible(self, verbose: bool = True) -> bool:
        return self.compatible


def config_of(**parallel: Any) -> RunConfig:
    return parse_config({"parallel": {"zero_stage": 3, **parallel}})


def test_nvme_needs_libaio(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(offload_parameters="nvme", nvme_path="/disk")
    found = {"AsyncIOBuilder": _AsyncIO(True)}
    monkeypatch.setattr(get_accelerator(), "create_op_builder", found.get)
    refuse_what_is_not_served(config, CPU)
    assert found["AsyncIOBuilder"].loaded == 1
    found["AsyncIOBuilder"] = _AsyncIO(False)
    with pytest.raises(RootsError) as caught:
        refuse_what_is_not_served(config, CPU)
    assert caught.value.lines == (
        "parallel.offload_parameters='nvme': needs DeepSpeed's async_io, which cannot be built "
        "here without libaio; install libaio-dev (Debian) or libaio-devel (Red Hat), or offload "
        "to cpu",
    )
    refuse_what_is_not_served(config_of(offload_parameters="cpu"), CPU)


def test_the_builder_of_deepspeed_answers_the_question() -> None:
    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    assert builder.is_compatible(verbose=False) in (True, False)


def test_quantized_communication_needs_gpus() -> None:
    config = config_of(zero_quantized_weights=True, zero_quantized_gradients=True)
    refuse_what_is_not_served(config, Device("cuda", 0))
    with pytest.raises(RootsError) as caught:
        refuse_what_is_not_served(config, CPU)
    assert caught.value.lines[0] == (
        "parallel.zero_quantized_weights=True: needs GPUs, because DeepSpeed's quantizer has no "
        "CPU implementation; set parallel.zero_quantized_weights=false on this machine"
    )
    assert len(caught.value.lines) == 2
