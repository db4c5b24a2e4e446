"""A run is handed from layout to layout, a step on each, and stays the run of one process.

Each layout is the source of one checkpoint and the target of another here, in one relay for each
model and precision; `python -m tests.integration.relayout` hands over between every two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from roots.config import RunConfig
from roots.training.callbacks.metrics import StepRecord
from tests.helpers.distributed import run_distributed
from tests.integration.families import (
    DECODER,
    EXPERTS,
    PAIRS,
    Family,
    Layout,
    config_of,
    write_datasets,
)
from tests.integration.handing_over import (
    Job,
    apart,
    checkpoint_of,
    not_taken_over,
    train_all,
)
from tests.integration.runs import state_of

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Leg:
    """One step of a relay. `more`: what else changes there, by section."""

    layout: Layout
    precision: str
    more: dict[str, Any]


@dataclass(frozen=True)
class Relay:
    """A run on one layout after the other; the ranks of the layouts rise, but for the last."""

    name: str
    family: Family
    legs: tuple[Leg, ...]

    def config(self, leg: Leg, folder: Path, name: str) -> RunConfig:
        """The run as a leg trains it; one of the same length on all layouts."""
        steps = {"training": {"steps": len(self.legs)}}
        more = {**leg.more, **steps}
        return config_of(self.family, leg.layout, leg.precision, folder, name, **more)


def relay(family: Family, precision: str, names: Sequence[str] = ()) -> Relay:
    """A relay over the layouts, all without names, that ends on one process like it began."""
    chosen = [each for each in family.layouts if not names or each.name in names]
    legs = [Leg(each, precision, {}) for each in (*chosen, family.layout("one"))]
    # Samples that are read ahead are those that come next.
    legs[1] = replace(legs[1], more={"data": {"num_workers": 1}})
    return Relay(f"{family.name}-{precision}", family, tuple(legs))


def through_precisions() -> Relay:
    """Every precision after every other one."""
    steps = (
        *(("one", "fp32"), ("one", "bf16"), ("one", "fp32"), ("one-zero2", "fp16")),
        *(("dp2-zero2", "fp32"), ("pp2-folded", "bf16"), ("dp2-zero3-offload", "fp16")),
        ("dp2-zero2", "bf16"),
    )
    legs = [Leg(DECODER.layout(name), precision, {}) for name, precision in steps]
    return Relay("precisions", DECODER, tuple(legs))


IN_FP16 = ("one-zero2", "tp2", "pp2-folded", "dp2-zero1-offload", "dp4-zero3")
IN_BF16 = ("one", "pp2", "dp2-zero2", "dp2-zero3-offload")
RELAYS = (
    relay(DECODER, "fp32"),
    relay(EXPERTS, "fp32"),
    relay(PAIRS, "fp32"),
    relay(DECODER, "fp16", IN_FP16),
    relay(DECODER, "bf16", IN_BF16),
)
PRECISIONS = through_precisions()
WHOLE = "-whole"


@dataclass(frozen=True)
class Ran:
    """What all relays told, and where they are."""

    folder: Path
    told: dict[str, list[StepRecord]]

    def config(self, each: Relay, leg: int = -1, whole: bool = False) -> RunConfig:
        """The run of a leg, or that on one process all the way."""
        if not whole:
            return each.config(each.legs[leg], self.folder, each.name)
        one = Leg(each.family.layout("one"), each.legs[0].precision, {})
        return each.config(one, self.folder, each.name + WHOLE)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All relays at once: few processes, started once for each number of ranks."""
    ran = Ran(write_datasets(tmp_path_factory.mktemp("relayout")), {})
    jobs = [Job((ran.config(each, whole=True),)) for each in (*RELAYS, PRECISIONS)]
    for ranks, more in _starts(ran):
        told = run_distributed(train_all, ranks, [*jobs, *more], timeout_seconds=600)[0]
        jobs = []
        for name, records in told.items():
            ran.told.setdefault(name, []).extend(records)
    return ran


def _starts(ran: Ran) -> Iterator[tuple[int, list[Job]]]:
    """Numbers of ranks, and what these train."""
    relays = (*RELAYS, PRECISIONS)
    for ranks in (1, 2, 4):
        yield (
            ranks,
            [
                Job((ran.config(each, number),), number + 1)
                for each in relays
                for number, leg in enumerate(each.legs)
                if leg.layout.ranks == ranks and not _is_return(each, number)
            ],
        )
    last = [Job((ran.config(each),)) for each in relays if _is_return(each, len(each.legs) - 1)]
    yield 1, last


def _is_return(each: Relay, number: int) -> bool:
    """Whether the leg comes back to one process from several."""
    return each.legs[number].layout.ranks < each.legs[number - 1].layout.ranks and number > 0


@pytest.mark.parametrize("each", RELAYS, ids=lambda each: each.name)
def test_every_layout_takes_over_every_bit(each: Relay, ran: Ran) -> None:
    """What it would save at once is what the layout before it has saved: tensors and numbers."""
    for number in range(1, len(each.legs)):
        config = ran.config(each)
        names = [leg.layout.name for leg in each.legs[number - 1 : number + 1]]
        source = checkpoint_of(config, number)
        assert any(name.startswith("exp_avg") for name in state_of(source))
        assert not_taken_over(source, checkpoint_of(config, number, again=True)) == [], names


@pytest.mark.parametrize("each", RELAYS, ids=lambda each: each.name)
def test_run_over_all_layouts_is_that_of_one_process(each: Relay, ran: Ran) -> None:
    """Losses and norms of all steps, and at the end weights, moments, scale and samples."""
    config, whole = ran.config(each), ran.config(each, whole=True)
    steps = len(each.legs)
    found = apart(
        config,
        (ran.told[each.name], checkpoint_of(config, steps)),
        (ran.told[each.name + WHOLE], checkpoint_of(whole, steps)),
    )
    assert found.equal, found
    scales = {record.loss_scale for record in ran.told[each.name]}
    assert len(scales) > 1 or config.training.precision != "fp16"


def test_every_precision_takes_over_the_fp32_weights_of_every_other(ran: Ran) -> None:
    """With the moments, to the bit; 16-bit weights are those rounded, and the losses go on."""
    seen = set()
    for number, (before, now) in enumerate(pairwise(PRECISIONS.legs), start=1):
        seen.add((before.precision, now.precision))
        config = ran.config(PRECISIONS)
        stored = state_of(checkpoint_of(config, number))
        taken = state_of(checkpoint_of(config, number, again=True))
        masters = {name: taken.get(f"master/{name}", taken[name]) for name in _weights(taken)}
        for name in _weights(stored):
            expected = stored.get(f"master/{name}", stored[name])
            assert torch.equal(masters[name], expected), (before, now, name)
            assert torch.equal(taken[name], expected.to(DTYPES[now.precision])), (before, now, name)
            for kind in ("exp_avg", "exp_avg_sq"):
                key = f"{kind}/{name}"
                assert torch.equal(taken[key], stored[key]), (before, now, key)
        assert taken["updates"] == stored["updates"]
    assert {pair for pair in seen if len(set(pair)) == 2} == {
        (a, b) for a in DTYPES for b in DTYPES if a != b
    }
    found, expected = (ran.told[PRECISIONS.name + end] for end in ("", WHOLE))
    assert [each.loss for each in found] == pytest.approx(
        [each.loss for each in expected], rel=8 * 2.0**-7
    )


def _weights(state: dict[str, Any]) -> list[str]:
    return [name for name, value in state.items() if torch.is_tensor(value) and "/" not in name]
