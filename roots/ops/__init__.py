"""Operators of the models: one file an op, each with a reference and a list of implementations."""

from roots.ops.attention import attention
from roots.ops.attention_block import attention_block
from roots.ops.attention_dropout import AttentionDropout
from roots.ops.attention_ranges import KeyRanges
from roots.ops.bias_dropout_add import bias_dropout_add
from roots.ops.bias_gelu import bias_gelu
from roots.ops.check_finite import check_finite
from roots.ops.cross_entropy import cross_entropy, softmax_gradient_, softmax_statistics
from roots.ops.dropout import dropout
from roots.ops.few_rows.attention_rows import attention_rows
from roots.ops.few_rows.huge_pages import empty_in_huge_pages, move_to_huge_pages
from roots.ops.few_rows.linear_few_rows import linear_few_rows, quantise_rows
from roots.ops.layer_norm import layer_norm
from roots.ops.rms_norm import rms_norm
from roots.ops.rotary import rotary, rotary_, rotary_table, table_of_frequencies
from roots.ops.scaled_masked_softmax import scaled_masked_softmax
from roots.ops.status import table
from roots.ops.swiglu import swiglu

__all__ = [
    "AttentionDropout",
    "KeyRanges",
    "attention",
    "attention_block",
    "attention_rows",
    "bias_dropout_add",
    "bias_gelu",
    "check_finite",
    "cross_entropy",
    "dropout",
    "empty_in_huge_pages",
    "layer_norm",
    "linear_few_rows",
    "move_to_huge_pages",
    "quantise_rows",
    "rms_norm",
    "rotary",
    "rotary_",
    "rotary_table",
    "scaled_masked_softmax",
    "softmax_gradient_",
    "softmax_statistics",
    "swiglu",
    "table",
    "table_of_frequencies",
]
