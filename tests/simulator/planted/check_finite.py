"""Bugs in check_finite: exponents, the borders of tensors and chunks, who is told."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_FILE = "check_finite.cu"
_ANYWHERE = "tests/ops/test_check_finite.py -k 'simulator and anywhere and bfloat16'"
_SEVERAL = "tests/ops/test_check_finite.py -k 'simulator and several'"

BUGS = [
    PlantedBug(
        "bfloat16 read with the exponent of float16",
        _FILE,
        "return {0x00007f80u, 0x7f800000u};",
        "return {0x00007c00u, 0x7c000000u};",
        _ANYWHERE,
        seeds=(0,),
    ),
    PlantedBug(
        "one of two 16-bit numbers not looked at",
        _FILE,
        "return (word & bits.lower) == bits.lower || (word",
        "return (word",
        _ANYWHERE,
        seeds=(0,),
    ),
    PlantedBug(
        "what one thread saw taken for the block's",
        _FILE,
        "__syncthreads_or(bad) != 0 && threadIdx.x == 0",
        "bad && threadIdx.x == 0",
        _ANYWHERE,
        seeds=(0,),
    ),
    PlantedBug(
        "chunks counted without the bytes before the tensor",
        _FILE,
        "ceil_div(before + table.bytes[i], kChunkBytes)",
        "ceil_div(table.bytes[i], kChunkBytes)",
        _ANYWHERE,
        seeds=(0,),
    ),
    PlantedBug(
        "packs beyond the end of the tensor",
        _FILE,
        "if (at >= 0 && at + 16 <= bytes)",
        "if (at >= 0 && at < bytes)",
        _ANYWHERE,
        seeds=(0,),
    ),
    PlantedBug(
        "a tensor's first chunk given to the tensor before",
        _FILE,
        "if (table.first_chunk[middle] <= blockIdx.x) {",
        "if (table.first_chunk[middle] < blockIdx.x) {",
        _SEVERAL,
        seeds=(0,),
    ),
    PlantedBug(
        "index in the launch told for that in the list",
        _FILE,
        "static_cast<unsigned long long>(table.index[low])",
        "static_cast<unsigned long long>(low)",
        _SEVERAL,
        seeds=(0,),
    ),
]
