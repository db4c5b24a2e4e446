"""What torch does, in one process."""

from __future__ import annotations

import pickle
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from torch.utils.file_baton import FileBaton

from tests.contracts.contract import Place, contract
from tests.contracts.tiny import raised_by

SETTINGS = "roots/training/engine/settings.py"
GRADIENTS = "roots/training/engine/gradients.py"
DCP = "roots/parallel/distributed_checkpoint.py"


@contract(
    ["exp_avg bfloat16", "other bfloat16", "step float32"],
    of="torch",
    relied_on=SETTINGS,
)
def load_state_dict_casts_all_but_step(place: Place) -> list[str]:
    """`Optimizer.load_state_dict` casts every tensor of the state but `step` to the dtype of the
    parameter, integers too."""
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([parameter])
    state = {"exp_avg": torch.ones(2), "other": torch.ones(2, dtype=torch.int64)}
    state["step"] = torch.ones(())
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {0: state}, "param_groups": groups})
    loaded = optimizer.state[parameter]
    return [f"{name} {str(loaded[name].dtype).removeprefix('torch.')}" for name in sorted(loaded)]


@contract(["Tensor", "saved"], of="torch", relied_on=SETTINGS)
def load_state_dict_brings_counts_and_settings(place: Place) -> list[str]:
    """AdamW makes a tensor of a count of steps that is a number, and takes the state's settings for
    its groups."""
    parameter = nn.Parameter(torch.ones(2))
    state = {0: {"exp_avg": torch.ones(2), "step": 3}}
    saved = torch.optim.AdamW([parameter], lr=0.5).state_dict()["param_groups"]
    optimizer = torch.optim.AdamW([parameter], lr=0.25)
    optimizer.load_state_dict({"state": state, "param_groups": saved})
    kind = type(optimizer.state[parameter]["step"]).__name__
    return [kind, "saved" if optimizer.param_groups[0]["lr"] == 0.5 else "new"]


@contract([[0.0, 0.0], [0.0, 0.0]], of="torch", relied_on=GRADIENTS)
def clip_grad_norm_zeroes_what_overflows(place: Place) -> list[list[float]]:
    """`clip_grad_norm_` of finite gradients whose norm overflows float32 makes them all zero, for
    each implementation."""
    found = []
    for foreach in (False, True):
        parameter = nn.Parameter(torch.ones(2))
        parameter.grad = torch.full((2,), 3e38)
        nn.utils.clip_grad_norm_([parameter], 1.0, foreach=foreach)
        found.append(parameter.grad.tolist())
    return found


@contract([True, True], of="torch", relied_on=GRADIENTS)
def float32_norm_of_a_long_tensor_is_off(place: Place) -> list[bool]:
    """The float32 norm of 12 million numbers on a CPU is off by more than 1e-5; those of its rows,
    added in float64, are not."""
    numbers = torch.full((12_000, 1_000), 0.1)
    exact = 0.1 * (12e6**0.5)
    whole = float(torch.linalg.vector_norm(numbers))
    rows = torch.linalg.vector_norm(numbers, dim=-1).double().square().sum().sqrt()
    return [abs(whole / exact - 1) > 1e-5, abs(float(rows) / exact - 1) < 1e-6]


class Names(pickle.Unpickler):
    """Notes the names that a pickle asks for."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.found: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.found.add(f"{module}.{name}")
        return super().find_class(module, name)


DCP_NAMES = {
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "torch.Size",
    "torch.float32",
    "torch.int64",
    "torch.serialization._get_layout",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.filesystem._StoragePrefix",
    "torch.distributed.checkpoint.planner.BytesIOWriteData",
    "torch.distributed.checkpoint.planner.SavePlan",
    "torch.distributed.checkpoint.planner.TensorWriteData",
    "torch.distributed.checkpoint.planner.WriteItem",
    "torch.distributed.checkpoint.planner.WriteItemType",
    *(
        f"torch.distributed.checkpoint.metadata.{name}"
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


@contract([], of="torch", relied_on=DCP)
def metadata_names_known_classes(place: Place) -> list[str]:
    """The `.metadata` of a distributed checkpoint names the classes that ROOTS' reader admits, and
    no others."""
    state = {"weight": torch.ones(2, 3), "count": torch.ones(2, dtype=torch.int64), "step": 3}
    save(state, storage_writer=FileSystemWriter(place.folder / "dcp"))
    with (place.folder / "dcp" / ".metadata").open("rb") as file:
        names = Names(file)
        names.load()
    return sorted(names.found - DCP_NAMES)


@contract([True, "CheckpointException"], of="torch", relied_on=DCP)
def missing_keys_raise_no_exception(place: Place) -> list[Any]:
    """Loading a key that is not there raises CheckpointException, which `except Exception` lets
    pass: it is a BaseException."""
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.api import CheckpointException

    save({"a": torch.ones(1)}, checkpoint_id=place.folder / "one")
    raised = ""
    try:
        load({"b": torch.ones(1)}, checkpoint_id=place.folder / "one")
    except BaseException as error:  # noqa: BLE001 - that it is one is the point
        raised = type(error).__name__
    return [not issubclass(CheckpointException, Exception), raised]


@contract(
    [["tests.contracts.tiny.Line"], "UnpicklingError", "Line"],
    of="torch",
    relied_on="roots/training/engine/state_files.py",
)
def foreign_classes_are_named_and_refused(place: Place) -> list[Any]:
    """`get_unsafe_globals_in_checkpoint` names what is no data in a file of torch.save without
    loading it; `weights_only` refuses that, and `safe_globals` admits it by class."""
    from tests.contracts.tiny import FP16, Line

    path = place.folder / "file.pt"
    thing = Line.__new__(Line)
    thing.__dict__.update(FP16)
    torch.save({"thing": thing}, path)
    refused = raised_by(lambda: torch.load(path, weights_only=True)).partition(":")[0]
    with safe_globals([Line]):
        admitted = type(torch.load(path, weights_only=True)["thing"]).__name__
    return [get_unsafe_globals_in_checkpoint(str(path)), refused, admitted]


@contract([False, True], of="torch", relied_on="roots/training/engine/operator_build.py")
def a_dead_build_leaves_its_file(place: Place) -> list[bool]:
    """torch guards its builds of extensions by a file `lock`, whoever made it: one that was left
    behind stops every build after it until it is removed."""
    lock = place.folder / "lock"
    lock.touch()
    left = FileBaton(str(lock)).try_acquire()
    lock.unlink()
    return [left, FileBaton(str(lock)).try_acquire()]


@contract("127.0.0.1", of="torch", relied_on="roots/parallel/process.py")
def a_store_takes_the_socket_it_is_given(place: Place) -> str:
    """`TCPStore(master_listen_fd=)` listens on that socket alone, here the loopback's."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    copy = listener.dup()
    store = dist.TCPStore("127.0.0.1", port, 1, is_master=True, master_listen_fd=listener.detach())
    store.set("key", "value")
    host = copy.getsockname()[0] if store.get("key") == b"value" else ""
    copy.close()
    return str(host)


@contract([[1.0, 1.0], [0.5, 0.5]], of="torch", relied_on="roots/ops/attention.py")
def fully_masked_rows_in_fp16(place: Place) -> list[list[float]]:
    """A row of scores that is finfo.min everywhere attends to all keys alike, in fp16 as in fp32:
    a mask of finfo.min hides nothing where there is nothing else."""
    keys = torch.zeros(1, 1, 2, 8, dtype=torch.float16)
    values = torch.tensor([[[[2.0] * 8, [0.0] * 8]]], dtype=torch.float16)
    mask = torch.full((1, 2), torch.finfo(torch.float16).min, dtype=torch.float16)
    query = torch.zeros(1, 1, 1, 8, dtype=torch.float16)
    out = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    plain = torch.softmax(mask.float(), -1)
    return [out[0, 0, 0, :2].float().tolist(), plain[0].tolist()]
