"""The typed config of a run: the only author of what the engine is told. Never imports torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roots.config.batch import BatchPlan, plan_batch
    from roots.config.load import dump_config, load_config, parse_config
    from roots.config.run import RunConfig

__all__ = ["BatchPlan", "RunConfig", "dump_config", "load_config", "parse_config", "plan_batch"]

# Found when asked for: whoever needs one section does not load the reader of YAML and every rule.
_HOMES = {
    "BatchPlan": "batch",
    "plan_batch": "batch",
    "dump_config": "load",
    "load_config": "load",
    "parse_config": "load",
    "RunConfig": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
