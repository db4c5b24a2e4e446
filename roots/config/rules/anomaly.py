"""Rules of the sections `anomaly` and `checks`."""

from __future__ import annotations

from collections.abc import Iterator

from roots.config.run import RunConfig
from roots.errors import problem


def snapshots_in_memory(config: RunConfig) -> Iterator[str]:
    """A snapshot is a copy of what is in memory, and what is on NVMe is not."""
    parallel = config.parallel
    if not config.anomaly.rewinds or "nvme" not in (
        parallel.offload_optimizer,
        parallel.offload_parameters,
    ):
        return
    name = "non_finite" if config.anomaly.non_finite == "rewind" else "spike"
    yield problem(
        f"anomaly.{name}",
        "rewind",
        "needs a snapshot in memory of all that is trained, of which parallel.offload_* keeps a "
        "part on NVMe",
        f"set anomaly.{name}=skip, or offload to cpu",
    )


def replay_of_whole_models(config: RunConfig) -> Iterator[str]:
    """A gradient is computed a second time outside of DeepSpeed, which needs all layers here."""
    every = config.checks.replay_every_steps
    if every == 0:
        return
    fix = "set checks.replay_every_steps=0"
    if config.parallel.pipeline > 1:
        rule = "needs whole models, and with parallel.pipeline > 1 a rank has a part of the layers"
        yield problem("checks.replay_every_steps", every, rule, fix)
    if config.parallel.zero_stage == 3:
        rule = "needs whole weights, and with parallel.zero_stage=3 a rank has a part of each"
        yield problem("checks.replay_every_steps", every, rule, fix)


ANOMALY_RULES = (snapshots_in_memory, replay_of_whole_models)
