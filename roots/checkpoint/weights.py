"""The weights of a checkpoint, read by any layout and in any part, whatever layout wrote them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from roots.checkpoint.boxes import Piece
from roots.checkpoint.manifest import MANIFEST_NAME, WEIGHTS_FOLDER, read_manifest
from roots.checkpoint.store import TensorStore
from roots.checkpoint.tensor_file import SUFFIX
from roots.errors import RootsError, problem
from roots.parallel.shard import Shard


class WeightStore(TensorStore):
    """The weights of one checkpoint, readable by any slice of any tensor."""

    def __init__(self, folder: Path) -> None:
        """Index the files below `folder/weights`, of a finished checkpoint those of its manifest.

        Raises RootsError if there are none, or one is not of this format.
        """
        files = sorted((folder / WEIGHTS_FOLDER).glob(f"*{SUFFIX}"))
        if (folder / MANIFEST_NAME).is_file():
            files = [folder / name for name in read_manifest(folder).weights]
        if not files:
            rule = f"holds no {WEIGHTS_FOLDER}/*{SUFFIX}"
            fix = "give a checkpoint that ROOTS has saved"
            raise RootsError(problem("checkpoint", str(folder), rule, fix))
        super().__init__(folder, files)


def load_weights(folder: Path, parameters: Iterable[tuple[Shard, Tensor]]) -> None:
    """Copy stored weights into local `parameters`, whatever layout wrote them."""
    with torch.no_grad():
        WeightStore(folder).fill(
            Piece(shard.name, shard, 0, parameter.detach().view(-1))
            for shard, parameter in parameters
        )
