"""ROOTS: pretraining of large language models in tensor, pipeline and data parallel."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roots.api import Model, Training, build_data, build_model, load, load_config, train
    from roots.config.load import dump_config, parse_config
    from roots.config.run import RunConfig
    from roots.errors import ExitCode, RootsError

__version__ = "0.1.0"

# Where each name comes from when it is asked for: `import roots` alone loads nothing.
HOMES = {
    "load_config": "roots.api",
    "parse_config": "roots.config.load",
    "dump_config": "roots.config.load",
    "RunConfig": "roots.config.run",
    "train": "roots.api",
    "Training": "roots.api",
    "load": "roots.api",
    "Model": "roots.api",
    "build_model": "roots.api",
    "build_data": "roots.api",
    "RootsError": "roots.errors",
    "ExitCode": "roots.errors",
}

__all__ = [
    "ExitCode",
    "Model",
    "RootsError",
    "RunConfig",
    "Training",
    "build_data",
    "build_model",
    "dump_config",
    "load",
    "load_config",
    "parse_config",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
