"""The table of `roots info`: for every op, dtype and device the choice, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence

from roots.ops.attention import IMPLEMENTATIONS as ATTENTION
from roots.ops.bias_dropout_add import IMPLEMENTATIONS as BIAS_DROPOUT_ADD
from roots.ops.bias_gelu import IMPLEMENTATIONS as BIAS_GELU
from roots.ops.check_finite import IMPLEMENTATIONS as CHECK_FINITE
from roots.ops.cross_entropy import IMPLEMENTATIONS as CROSS_ENTROPY
from roots.ops.dispatch import OpStatus, status_of
from roots.ops.dropout import IMPLEMENTATIONS as DROPOUT
from roots.ops.few_rows.attention_rows import IMPLEMENTATIONS as ATTENTION_ROWS
from roots.ops.few_rows.linear_few_rows import IMPLEMENTATIONS as LINEAR_FEW_ROWS
from roots.ops.layer_norm import IMPLEMENTATIONS as LAYER_NORM
from roots.ops.rms_norm import IMPLEMENTATIONS as RMS_NORM
from roots.ops.rotary import IMPLEMENTATIONS as ROTARY
from roots.ops.scaled_masked_softmax import IMPLEMENTATIONS as SCALED_MASKED_SOFTMAX
from roots.ops.swiglu import IMPLEMENTATIONS as SWIGLU


def table(devices: Sequence[str] = ("cpu",)) -> list[OpStatus]:
    """Return a row for every op, case, device kind ("cpu", "cuda") and dtype."""
    rows = status_of("attention", ATTENTION, devices, ("", "documents", "window", "dropout", "lse"))
    rows += status_of("layer_norm", LAYER_NORM, devices, ("", "residual"))
    rows += status_of("rms_norm", RMS_NORM, devices, ("", "residual"))
    rows += status_of("rotary", ROTARY, devices)
    rows += status_of("bias_gelu", BIAS_GELU, devices)
    rows += status_of("swiglu", SWIGLU, devices)
    rows += status_of("cross_entropy", CROSS_ENTROPY, devices)
    rows += status_of("dropout", DROPOUT, devices)
    rows += status_of("bias_dropout_add", BIAS_DROPOUT_ADD, devices, ("", "bias", "dropout"))
    rows += status_of("scaled_masked_softmax", SCALED_MASKED_SOFTMAX, devices)
    rows += status_of("check_finite", CHECK_FINITE, devices)
    cases = ("", "int8_weight", "many_rows")
    rows += status_of("linear_few_rows", LINEAR_FEW_ROWS, devices, cases)
    rows += status_of("attention_rows", ATTENTION_ROWS, devices)
    return rows
