"""Start and end of the process group, and communication outside autograd (identity at size 1)."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from roots.device import Device, LaunchEnvironment, set_environment
from roots.errors import RootsError, problem
from roots.parallel.mesh import Axis

T = TypeVar("T")
LOOPBACK = ("127.0.0.1", "localhost")
# Ranks of one machine start together, so that the first of them is not far.
_MEETING_SECONDS = 5.0


def initialise(env: LaunchEnvironment, device: Device, timeout_seconds: float = 1800.0) -> None:
    """Join the processes of this run into one group: NCCL on GPUs, Gloo on CPUs.

    A lone process meets nobody and therefore opens no port; the ranks of one machine listen on its
    loopback alone. Does nothing if already initialised. Raises RootsError if the rendezvous at
    MASTER_ADDR:MASTER_PORT fails, on rank 0 also where another program has that port.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if device.kind == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    if env.world_size == 1:
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        )
        return
    address = f"{env.master_addr}:{env.master_port}"
    try:
        if _on_one_machine(env):
            # Gloo reads this; NCCL chooses for itself.
            set_environment({"GLOO_SOCKET_IFNAME": "lo"}, overwrite=False)
            dist.init_process_group(
                backend,
                store=_loopback_store(env, timeout),
                rank=env.rank,
                world_size=env.world_size,
                timeout=timeout,
            )
        else:
            dist.init_process_group(
                backend,
                init_method=f"tcp://{address}",
                rank=env.rank,
                world_size=env.world_size,
                timeout=timeout,
            )
    except (dist.DistError, OSError) as error:
        if _port_is_taken(error):
            rule = f"another program on host {socket.gethostname()} has this port, where all "
            rule += f"{env.world_size} processes were to meet"
            fix = "end it, or set MASTER_PORT to a free one"
            # Without its cause: no other rank is to blame.
            raise RootsError(problem("MASTER_PORT", env.master_port, rule, fix)) from None
        reason = str(error).splitlines()[0]
        raise RootsError(
            problem(
                "MASTER_ADDR:MASTER_PORT",
                address,
                f"all {env.world_size} processes must meet there ({reason})",
                "check the address, that the port is free, and that every node was started",
            )
        ) from error


def _port_is_taken(error: Exception) -> bool:
    """Whether rank 0 cannot listen for that reason; of torch's store only the text says it."""
    return getattr(error, "errno", 0) == errno.EADDRINUSE or "EADDRINUSE" in str(error)


def _on_one_machine(env: LaunchEnvironment) -> bool:
    """Whether all ranks meet at the loopback of one machine, and not in a store of torchrun's."""
    alone = env.local_world_size == env.world_size and env.master_addr in LOOPBACK
    return alone and not dist.is_torchelastic_launched()


def _loopback_store(env: LaunchEnvironment, timeout: timedelta) -> dist.TCPStore:
    """The store that the ranks meet in. One that torch opens itself listens on every interface."""
    host, port = LOOPBACK[0], env.master_port
    if env.rank != 0:
        # A store that finds nobody tries again after half a second at the earliest.
        await_listener(host, port, min(_MEETING_SECONDS, timeout.total_seconds()))
        return dist.TCPStore(host, port, env.world_size, is_master=False, timeout=timeout)
    listener = socket.create_server((host, port), backlog=max(128, env.world_size))
    # The store owns the socket from here on.
    return dist.TCPStore(
        host,
        port,
        env.world_size,
        is_master=True,
        timeout=timeout,
        master_listen_fd=listener.detach(),
    )


def await_listener(host: str, port: int, seconds: float) -> bool:
    """Wait until somebody listens at `port`; False if nobody has within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=1.0).close()
        except OSError:
            time.sleep(0.01)
        else:
            return True
    return False


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier(axis: Axis) -> None:
    """Wait until every rank of `axis` is here."""
    if axis.group is not None:
        dist.barrier(group=axis.group)


def broadcast_object(axis: Axis, value: T, source: int = 0) -> T:
    """Give every rank of `axis` the picklable value of the rank with index `source` on it."""
    if axis.group is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=axis.ranks[source], group=axis.group)
    return box[0]


def anywhere(axis: Axis, flag: bool) -> bool:
    """Whether `flag` is set on any rank of `axis`, equal on all of them.

    Communication: one all-reduce of a number, however many ranks there are.
    """
    return bool(largest(axis, int(flag)))


def largest(axis: Axis, number: int) -> int:
    """The largest `number` of all ranks of `axis`, on all of them.

    Communication: one all-reduce of a number.
    """
    if axis.group is None:
        return number
    device = "cuda" if dist.get_backend(axis.group) == "nccl" else "cpu"
    return int(all_reduce_max(axis, torch.tensor([number], device=device)))


def all_gather_object(axis: Axis, value: T) -> list[T]:
    """The picklable values of all ranks of `axis`, in rank order."""
    if axis.group is None:
        return [value]
    values: list[T | None] = [None] * axis.size
    dist.all_gather_object(values, value, group=axis.group)
    return values  # type: ignore[return-value]  # every None has been replaced


def all_gather_tensors(axis: Axis, tensor: Tensor) -> list[Tensor]:
    """The equally shaped tensors of all ranks of `axis`, in rank order; outside autograd."""
    if axis.group is None:
        return [tensor]
    mine = tensor.detach().contiguous()
    parts = [torch.empty_like(mine) for _ in range(axis.size)]
    dist.all_gather(parts, mine, group=axis.group)
    return parts


def all_reduce_sum(axis: Axis, tensor: Tensor) -> Tensor:
    """Elementwise sum over `axis` in a new tensor; at size 1 the tensor itself."""
    return _all_reduce(axis, tensor, dist.ReduceOp.SUM)


def all_reduce_max(axis: Axis, tensor: Tensor) -> Tensor:
    """Elementwise maximum over `axis` in a new tensor; at size 1 the tensor itself."""
    return _all_reduce(axis, tensor, dist.ReduceOp.MAX)


def all_reduce_mean(axis: Axis, tensor: Tensor) -> Tensor:
    """Elementwise mean over `axis` in a new tensor of floats; at size 1 the tensor itself."""
    return all_reduce_sum(axis, tensor) / axis.size if axis.group is not None else tensor


def _all_reduce(axis: Axis, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if axis.group is None:
        return tensor
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op=operation, group=axis.group)
    return result


def send_on(tensors: Sequence[Tensor], axis: Axis) -> None:
    """Send to the next rank of `axis`, which knows what comes.

    Communication: one message a tensor; returns when the tensors may be changed.
    """
    for tensor in tensors:
        dist.send(tensor.contiguous(), axis.ranks[axis.rank + 1], group=axis.group)


def receive(
    shapes: Sequence[Sequence[int]], axis: Axis, *, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """What the rank before this one on `axis` sends: tensors of these shapes."""
    tensors = [torch.empty(*shape, dtype=dtype, device=device) for shape in shapes]
    for tensor in tensors:
        dist.recv(tensor, axis.ranks[axis.rank - 1], group=axis.group)
    return tensors
