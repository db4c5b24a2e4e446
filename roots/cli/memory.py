"""What to say when memory was not enough, with the ways out that the command has."""

from __future__ import annotations

import re
from collections.abc import Sequence

from roots.errors import problem

_ASKED = re.compile(r"(?:tried|unable) to allocate (\d[\d.,]* \w+)", re.IGNORECASE)
# torch's allocator of the host, Python and numpy do not name a device.
_OF_A_GPU = re.compile("CUDA|HIP|CUBLAS|NCCL|GPU")

_TRAINING = (
    "lower training.micro_batch_size, set parallel.recompute=full, raise parallel.zero_stage, "
    "offload with parallel.offload_optimizer=cpu, or cut the model over more ranks with "
    "parallel.tensor or parallel.pipeline"
)
_WAYS_OUT = {
    "train": _TRAINING,
    "verify": _TRAINING,
    "generate": "give fewer prompts at once, or lower --max-new-tokens or --beams",
    "evaluate": "lower --batch-size",
    "preprocess": "lower --workers",
}
_ANYWHERE = "end what else takes memory, or use a machine that has more"


def memory_line(error: BaseException, arguments: Sequence[str]) -> str:
    """The one line for `error`, which `arguments` (of the command line) ended with."""
    from roots.device import launch_environment

    text = str(error)
    asked = _ASKED.search(text)
    where = "GPU" if _OF_A_GPU.search(text) else "host"
    environment = launch_environment()
    rank = f" on rank {environment.rank}" if environment.world_size > 1 else ""
    rule = f"was not enough{rank}" + (f" for another {asked.group(1)}" if asked else "")
    command = next((word for word in arguments if not word.startswith("-")), "")
    return problem(f"memory of the {where}", None, rule, _WAYS_OUT.get(command, _ANYWHERE))
