"""One step of training through DeepSpeed: forward, backward, loss scaling, clipping, update.

`Engine` is what the loop sees; `ZeroEngine` drives deepspeed.initialize's engine for models of one
stage, `PipelineEngine` (pipeline.py) DeepSpeed's 1F1B schedule for several.
"""

from __future__ import annotations

import abc
import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.utils import safe_get_full_optimizer_state
from torch import Tensor, nn

from roots.checkpoint.boxes import Piece
from roots.checkpoint.store import TensorStore
from roots.checkpoint.weights import load_weights
from roots.config.batch import BatchPlan
from roots.config.run import RunConfig
from roots.data.batch import Batch
from roots.device import Device
from roots.errors import RootsError, problem
from roots.log import get_logger
from roots.models.init import weight_decay_groups
from roots.parallel.mesh import Mesh
from roots.parallel.mpu import DeepSpeedMpu
from roots.parallel.placement import Placement
from roots.parallel.process import all_reduce_mean, all_reduce_sum
from roots.parallel.shard import Shard, shard_of
from roots.parallel.shared_errors import together
from roots.training.engine.checkpoint_state import (
    EngineState,
    engine_state,
    kept_groups,
    read_back,
    settle,
    written_groups,
)
from roots.training.engine.decision import decide_steps
from roots.training.engine.deepspeed_json import (
    clips_outside_engine,
    deepspeed_config,
    effective_zero_stage,
)
from roots.training.engine.experts import announced_experts, files_of_a_dense_model
from roots.training.engine.gradients import LARGEST_NORM, clip_gradients_, global_gradient_norm
from roots.training.engine.loss_scale import ScaleNotes, own_the_scale
from roots.training.engine.one_replica import spare_copies
from roots.training.engine.optimizer import choose_optimizer, parameter_groups
from roots.training.engine.overflow import GradientWatch
from roots.training.engine.settings import count_steps_as_built, put_in_force, settings_of
from roots.training.engine.start import import_muon_uncompiled
from roots.training.engine.state_files import name_zero_stage, read_as_data
from roots.training.engine.zero import refuse_what_is_not_served
from roots.training.micro_batch import model_inputs, share_of
from roots.training.router_statistics import ExpertLoad, RouterWatch

_logger = get_logger(__name__)

Anomaly = Literal["loss", "gradient", "floor", "spike"]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did. `grad_norm` is before clipping, None if it overflowed.

    `overflow` names the first parameter whose gradient was not finite, and its rank; "" if none.
    `experts` is the load of the experts, None for a dense model. `anomaly` says why a step was
    skipped, beyond a loss scale that is found: the loss is not finite, or a gradient without loss
    scaling, or at its floor, or the loss is a spike; None if nothing of the kind.
    """

    loss: float
    grad_norm: float | None
    loss_scale: float
    skipped: bool
    overflow: str = ""
    experts: ExpertLoad | None = None
    anomaly: Anomaly | None = None


class Engine(abc.ABC):
    """The model on this rank together with its optimizer, driven one global batch at a time."""

    def __init__(
        self,
        config: RunConfig,
        plan: BatchPlan,
        mesh: Mesh,
        device: Device,
        engine: Any,
        watch: GradientWatch,
    ) -> None:
        self.config = config
        self.plan = plan
        self.mesh = mesh
        self.device = device
        self.deepspeed = engine
        self._watch = watch
        self._routers = RouterWatch(self.module, plan.accumulation)
        self._norm: Tensor | None = None
        self._place = Placement.on(
            mesh,
            sequence=config.parallel.sequence,
            zigzag=config.parallel.context_method == "ring",
        )
        self._settings = settings_of(engine.optimizer)
        # Whether a loss is a spike, so that the step is left out; asked alike on every rank.
        self.is_spike: Callable[[float], bool] = lambda loss: False
        self.agreed_loss = math.nan
        # Called in every step before weights and optimizer state change: until then what is in
        # memory is that of the step before, and may be copied beside forward and backward.
        self.before_update: Callable[[], None] = lambda: None
        self._reason: Anomaly | None = None
        self._notes = ScaleNotes()
        decide_steps(engine.optimizer, self._is_skipped)
        own_the_scale(engine.optimizer, config.loss_scale, self._notes)

    def train_step(self, micro_batches: Sequence[Batch], learning_rate: float) -> StepResult:
        """Train on this replica's micro-batches of one global batch with `learning_rate`.

        They are of whole samples; ranks of one context axis take their tokens of the same ones.

        The loss is the mean over the global batch, equal on every rank. A loss or gradient that is
        not finite on any rank, an infinite norm, and a loss that `is_spike`, skip the update on all
        of them; overflowing gradients also lower the loss scale of fp16, down to its minimum. The
        parameter whose gradient is not finite and its rank are logged on every rank.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        scale = self.loss_scale
        self._watch.start_step()
        self._routers.start_step(scale)
        loss = self._forward_backward_step([self.receive(batch) for batch in micro_batches])
        skipped = not self.deepspeed.was_step_applied()
        norm = self._norm if self._norm is not None else self.deepspeed.get_global_grad_norm()
        known = None if norm is None or skipped else float(norm)
        anomaly = self._anomaly() if skipped else None
        overflow = self._attribute_overflow() if skipped and anomaly != "spike" else ""
        load = self._routers.load(self.mesh) if self.config.model.moe.num_experts else None
        return StepResult(float(loss), known, scale, skipped, overflow, load, anomaly)

    @abc.abstractmethod
    def _forward_backward_step(self, micro_batches: Sequence[Batch]) -> Tensor:
        """Run the whole step; return the mean loss over the global batch."""

    @abc.abstractmethod
    def _own_loss(self) -> Tensor:
        """Mean loss of this replica's micro-batches, once all have gone forward; 0 on a rank of a
        pipeline that does not have it."""

    @abc.abstractmethod
    def evaluate(self, micro_batches: Sequence[Batch]) -> float:
        """Mean loss over this and all other replicas' micro-batches, without training."""

    @property
    @abc.abstractmethod
    def module(self) -> nn.Module:
        """The parameters of this rank."""

    @property
    def loss_scale(self) -> float:
        """The factor on the loss in the next backward pass; 1 outside fp16."""
        if self.config.training.precision != "fp16":
            return 1.0
        return float(self.deepspeed.optimizer.loss_scale)

    def weights(self) -> Iterator[tuple[Shard, Tensor]]:
        """This rank's parameters with their records; gathers ZeRO-3's shards one at a time.

        Communication at ZeRO-3: one all-gather over the replica axis per parameter.
        """
        for name, parameter in self.module.named_parameters():
            shard = shard_of(parameter, name)
            if hasattr(parameter, "ds_id"):
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield shard, parameter.detach().clone()
            else:
                yield shard, parameter.detach()

    def first_moments(self) -> Iterator[tuple[Shard, Tensor]]:
        """Adam's running mean of this rank's clipped gradients, once a step has been made.

        Communication: with ZeRO, one all-reduce or all-gather over the data axis per parameter.
        """
        plain = effective_zero_stage(self.config) == 0
        optimizer = self.deepspeed.optimizer
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            # DeepSpeed's ZeRO 1 and 2 link a parameter to its moments after the step of the first
            # parameter group, when the moments of the second are not there yet.
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.module.named_parameters():
            if plain:
                moment = self.deepspeed.basic_optimizer.state[parameter]["exp_avg"]
            else:
                moment = safe_get_full_optimizer_state(parameter, "exp_avg")
            yield shard_of(parameter, name), moment.detach()

    def written_groups(self) -> Iterator[list[Piece]]:
        """What this rank writes of a checkpoint, group by group; see checkpoint_state.py."""
        return written_groups(self.deepspeed.optimizer, self.module, self.mesh)

    def kept_groups(self) -> Iterator[list[Piece]]:
        """What this rank needs to go on on this layout, group by group; see checkpoint_state.py."""
        return kept_groups(self.deepspeed.optimizer, self.module)

    def written_pieces(self) -> Iterator[Piece]:
        """What this rank writes of a checkpoint; a piece is good until the next is asked for."""
        return chain.from_iterable(self.written_groups())

    def kept_pieces(self) -> Iterator[Piece]:
        """What this rank needs to go on; a piece is good until the next is asked for."""
        return chain.from_iterable(self.kept_groups())

    @property
    def pieces_stay(self) -> bool:
        """Whether pieces are all good together until `before_update`: nothing is on NVMe."""
        return not getattr(self.deepspeed.optimizer, "swap_optimizer", False)

    def state(self) -> EngineState:
        """The numbers of a checkpoint that all ranks have alike."""
        return engine_state(self.deepspeed.optimizer)

    def restore(self, store: TensorStore, state: EngineState) -> None:
        """Take over what any layout has saved; every rank must call.

        Settings of the optimizer and of the loss scale are those of this run's config. Raises
        RootsError for a tensor that is missing or of another shape.
        """
        self.before_update()
        optimizer, module = self.deepspeed.optimizer, self.module
        together(self.mesh.world, lambda: read_back(optimizer, module, store, state))
        settle(optimizer)
        own_the_scale(self.deepspeed.optimizer, self.config.loss_scale, self._notes)

    def save_deepspeed_files(self, folder: Path, tag: str, client_state: Mapping[str, Any]) -> None:
        """Write DeepSpeed's own files to `folder/tag`; every rank must call."""
        with files_of_a_dense_model(self.deepspeed):
            self.deepspeed.save_checkpoint(
                str(folder), tag=tag, client_state=dict(client_state), save_latest=False
            )

    def load_deepspeed_files(self, folder: Path, tag: str) -> None:
        """Restore weights, optimizer and loss scaler from DeepSpeed's files of the same layout.

        Their settings are those of this run's config, and not of the one that has saved.
        """
        with files_of_a_dense_model(self.deepspeed), read_as_data(self.deepspeed):
            loaded, _ = self.deepspeed.load_checkpoint(str(folder), tag=tag)
        if loaded is None:
            rule = "holds no state that DeepSpeed can read"
            raise RootsError(
                problem("checkpoint", str(folder / tag), rule, "resume from another checkpoint")
            )
        optimizer = self.deepspeed.optimizer
        put_in_force(optimizer, self._settings, self.config.training.gradient_clipping)
        count_steps_as_built(self.deepspeed.basic_optimizer)
        own_the_scale(optimizer, self.config.loss_scale, self._notes)
        # DeepSpeed's file of the weights is one replica's, with the experts of that rank alone.
        named = ((shard_of(each, name), each) for name, each in self.module.named_parameters())
        experts = [(shard, each) for shard, each in named if shard.expert]
        if experts:
            load_weights(folder / tag, experts)

    def receive(self, batch: Batch) -> Batch:
        """This context rank's part of the micro-batch, on its device."""
        mine = share_of(batch, self._place)
        return Batch(*(tensor.to(self.device.torch, non_blocking=True) for tensor in mine))

    def _is_skipped(self) -> bool:
        """Whether the update is left out, and why; every rank must call.

        Where DeepSpeed would do neither right (fp32 at stage 0) it also measures, asking of the
        norm what DeepSpeed asks elsewhere, and clips.
        Communication: one all-reduce of two numbers over all ranks.
        """
        found = self._watch.found()
        if clips_outside_engine(self.config):
            parameters = list(self.module.parameters())
            self._norm = global_gradient_norm(parameters, self.mesh)
            found = found or not float(self._norm) <= LARGEST_NORM
            clip_gradients_(parameters, self._norm, self.config.training.gradient_clipping)
        # Ranks of the tensor axis have the loss of the same samples.
        share = self._own_loss().double() / (self.mesh.replica.size * self.mesh.tensor.size)
        mine = torch.stack([torch.full_like(share, found), share])
        bad, self.agreed_loss = all_reduce_sum(self.mesh.world, mine).tolist()
        self._reason = None
        if not math.isfinite(self.agreed_loss):
            self._reason = "loss"
        elif bad:
            self._reason = "gradient"
        elif self.is_spike(self.agreed_loss):
            self._reason = "spike"
        self._notes.unrelated = self._reason in ("loss", "spike")
        self.before_update()
        return self._reason is not None

    def _anomaly(self) -> Anomaly | None:
        """Why the step just made was skipped, unless for a loss scale that goes down."""
        if self._notes.unrelated:
            return self._reason
        if self.config.training.precision == "fp16":
            return "floor" if self._notes.at_floor else None
        # Or finite ones, of which DeepSpeed has found the sum or the norm not to be.
        return "gradient"

    def _attribute_overflow(self) -> str:
        """Name and log whose gradient was not finite; every rank must call."""
        culprit = self._watch.culprit(self.mesh)
        _logger.warning("overflow: the first gradient that is not finite is that of %s", culprit)
        return culprit


class ZeroEngine(Engine):
    """A model of one pipeline stage under ZeRO 0 to 3."""

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self.deepspeed.module

    def _forward_backward_step(self, micro_batches: Sequence[Batch]) -> Tensor:
        self.deepspeed.train()
        self._losses: list[Tensor] = []
        for batch in micro_batches:
            loss = self._loss(batch)
            self._losses.append(loss.detach())
            self.deepspeed.backward(loss)
            self.deepspeed.step()
        return all_reduce_mean(self.mesh.replica, self._own_loss())

    def _own_loss(self) -> Tensor:
        return torch.stack(self._losses).mean()

    def evaluate(self, micro_batches: Sequence[Batch]) -> float:
        """Mean loss over all replicas' micro-batches, without training."""
        self.deepspeed.eval()
        with torch.no_grad():
            losses = [self._loss(self.receive(batch)) for batch in micro_batches]
        return float(all_reduce_mean(self.mesh.replica, torch.stack(losses).mean()))

    def _loss(self, batch: Batch) -> Tensor:
        inputs = model_inputs(self.config.model, batch)
        return self.deepspeed(*inputs, batch.labels_BT, batch.loss_weights_BT)


def build_zero_engine(
    config: RunConfig, plan: BatchPlan, mesh: Mesh, device: Device, module: nn.Module
) -> ZeroEngine:
    """Put `module` (initialised, one stage) under DeepSpeed."""
    watch = GradientWatch(module, config.ops.check_finite)
    with announced_experts(module, config, mesh):
        engine = initialise_deepspeed(config, plan, device, module, mpu=DeepSpeedMpu(mesh))
    return ZeroEngine(config, plan, mesh, device, engine, watch)


def initialise_deepspeed(
    config: RunConfig, plan: BatchPlan, device: Device, module: nn.Module, mpu: Any
) -> Any:
    """Call deepspeed.initialize with ROOTS' optimizer and JSON; return DeepSpeed's engine."""
    refuse_what_is_not_served(config, device)
    stage = effective_zero_stage(config)
    if stage != config.parallel.zero_stage:
        _logger.info(
            "parallel.zero_stage=%d runs as %d: without ZeRO, DeepSpeed's 16-bit optimizers take "
            "the gradient norm of one tensor shard only, and save the state of one rank's experts",
            config.parallel.zero_stage,
            stage,
        )
    factory = choose_optimizer(config, device)
    groups = parameter_groups(config, *weight_decay_groups(module))
    import_muon_uncompiled()
    # DeepSpeed prints its memory statistics whatever its log level.
    with contextlib.redirect_stdout(io.StringIO()):
        engine, _, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=groups,
            optimizer=factory,
            config=deepspeed_config(config, plan),
            mpu=mpu,
        )
    if type(engine.optimizer) is BF16_Optimizer:
        name_zero_stage(engine.optimizer)
    if plan.data_parallel * config.parallel.context == 1:
        spare_copies(engine)
    return engine
