"""What DeepSpeed's stock `ds_to_universal` has to know of a ROOTS checkpoint.

The tool joins tensor-parallel slices by patterns of parameter names which the training code must
have put into the checkpoint (`universal_checkpoint_info`). Here they follow from the Shard records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from deepspeed.checkpoint.constants import (
    PARAMETER_WITH_ROW_PARALLELISM_PATTERNS,
    PARAMETER_WITH_SUB_PARAMS,
    TP_REPLICATED_PARAMETER_PATTERNS,
    UNIVERSAL_CHECKPOINT_INFO,
    UNIVERSAL_CHECKPOINT_VERSION_KEY,
    UNIVERSAL_CHECKPOINT_VERSION_VALUE,
)

from roots.parallel.shard import Shard

# DeepSpeed has a constant for it since 0.19.6. An older one is to be refused by its version
# (roots.training.engine.accelerator), and not for a missing name.
SUB_PARAM_SHARD_WIDTHS = "sub_param_shard_widths"


def universal_checkpoint_info(
    shards: Iterable[tuple[str, Shard]], tensor_size: int
) -> dict[str, Any]:
    """Compose the client state for `save_checkpoint`; nothing where experts are spread out.

    The tool puts a parameter together from the parts of its name that all replicas hold, but those
    of a spread-out expert have the same name on every rank of the expert axis and are different
    experts: their parts would be joined to one tensor of no meaning. Without its entry the tool
    says that it is missing and converts nothing.

    `shards` are (DeepSpeed's parameter name, record) of every parameter of the model, over all
    pipeline stages; `tensor_size` is the tensor-parallel degree.
    """
    replicated, rows = [], []
    fused: list[dict[str, Any]] = []
    widths: dict[str, list[list[int]]] = {}
    for name, shard in shards:
        if shard.expert:
            return {}
        pattern = re.escape(name) + "$"
        if shard.dim is None or tensor_size == 1:
            replicated.append(pattern)
        elif len(shard.intervals) > 1:
            sizes = [(stop - start) * tensor_size for start, stop in shard.intervals]
            shape = tuple(
                tuple(sizes) if dim == shard.dim else size for dim, size in enumerate(shard.shape)
            )
            fused.append({"patterns": [pattern], "shape": shape, "partition_dim": shard.dim})
            widths[pattern] = [[size // tensor_size] * tensor_size for size in sizes]
        elif shard.dim == 1:
            rows.append(pattern)
    return {
        UNIVERSAL_CHECKPOINT_INFO: {
            UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE,
            TP_REPLICATED_PARAMETER_PATTERNS: replicated,
            PARAMETER_WITH_ROW_PARALLELISM_PATTERNS: rows,
            PARAMETER_WITH_SUB_PARAMS: fused,
            SUB_PARAM_SHARD_WIDTHS: widths,
        }
    }
