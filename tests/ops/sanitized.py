"""The few quick cases of every op that run under sanitizers, which are tens of times slower.

    python -m tests.ops.sanitized cuda        # pytest's -k expression for all of them on that place

In the simulator: tests/simulator/test_planted_bugs.py (AddressSanitizer and
UndefinedBehaviorSanitizer). On a GPU: tests/bench/gpu.sh (compute-sanitizer).
"""

from __future__ import annotations

import sys

# Of attention: all of its kernels, at one of their tiles' borders.
CASES = {
    "attention": "see_nothing or test_packed or causal-2x33x33",
    "bias_dropout_add": "129 and 0.2 and float16",
    "bias_gelu": "odd_addresses or not_finite or threads",
    "check_finite": "first_of_several or only_elements",
    "cross_entropy": "padded_columns or slice_of_padding",
    "layer_norm": "residual and 46 or threads or only_the_new",
    "rms_norm": "residual and 37 or threads or only_the_new",
    "rotary": "fused_projection or part_of_a_tensor",
    "scaled_masked_softmax": "grid or a_query_without_keys",
    "swiglu": "odd_addresses or not_finite or threads",
}


def of_op(op: str, place: str) -> str:
    """The -k expression of one op's cases."""
    return f"test_{op}.py and {place} and ({CASES[op]})"


def of_all(place: str) -> str:
    """The -k expression of every op's cases."""
    return f"{place} and (" + " or ".join(f"test_{op}.py and ({CASES[op]})" for op in CASES) + ")"


if __name__ == "__main__":
    print(of_all(sys.argv[1]))
