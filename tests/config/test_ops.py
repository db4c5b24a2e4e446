"""The names that the config accepts for an op are those that roots.ops offers."""

from __future__ import annotations

import importlib
from typing import get_args

import pytest

from roots.config.data import OpsConfig

# Ops without a field of their own, and the field that chooses for them.
SHARED = [
    ("dropout", "bias_dropout_add", "IMPLEMENTATIONS"),
    ("cross_entropy", "cross_entropy", "GRADIENT_IMPLEMENTATIONS"),
]


@pytest.mark.parametrize(
    ("field", "module", "table"),
    [*((name, name, "IMPLEMENTATIONS") for name in OpsConfig.model_fields), *SHARED],
)
def test_config_knows_the_implementations_of_every_op(field: str, module: str, table: str) -> None:
    offered = getattr(importlib.import_module(f"roots.ops.{module}"), table)
    accepted = get_args(OpsConfig.model_fields[field].annotation)
    assert accepted == ("auto", *(implementation.name for implementation in offered))
