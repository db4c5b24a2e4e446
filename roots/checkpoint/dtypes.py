"""How safetensors files spell the dtypes of torch."""

from __future__ import annotations

import torch

from roots.errors import RootsError, problem

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype of `fp32`, `bf16` or `fp16`."""
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in known:
        rule = f"must be one of {', '.join(known)}"
        raise RootsError(problem("--dtype", name, rule, "leave it out to keep what is stored"))
    return known[name]
