"""The composition root: from a config to a run, in the order in which the parts need each other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from torch import nn

from roots.checkpoint import load_model_weights
from roots.config.batch import BatchPlan, plan_batch
from roots.config.load import dump_config
from roots.config.run import RunConfig
from roots.data.build import DataSources, build_data
from roots.data.sampler import DataState
from roots.device import (
    Device,
    LaunchEnvironment,
    current_device,
    launch_environment,
    prepend_to_path,
    set_environment,
)
from roots.errors import ExitCode
from roots.evaluation.harness.in_training import TaskEvaluation
from roots.files import remove_partials, write_atomically
from roots.log import configure, get_logger
from roots.models.build import build_model
from roots.models.init import initialise, materialise
from roots.models.options import BuildOptions
from roots.parallel import process
from roots.parallel.mesh import Mesh
from roots.parallel.shared_errors import together
from roots.parallel.topology import Topology
from roots.parallel.watchdog.recorder import recorder_of_process
from roots.parallel.watchdog.start import join
from roots.training.callbacks.callback import (
    CallbackList,
    MetricsCallback,
    ProgressCallback,
    TrackerCallback,
    replay,
)
from roots.training.callbacks.ledger import Ledger
from roots.training.callbacks.metrics import (
    CHECKPOINTS_FILE,
    EvaluationWriter,
    MetricsWriter,
    SaveWriter,
)
from roots.training.callbacks.overview import describe_layout, opening_lines
from roots.training.callbacks.peak import Peak, device_peak
from roots.training.callbacks.progress import Progress
from roots.training.callbacks.throughput import Throughput
from roots.training.callbacks.trackers import WandbTracker, build_trackers
from roots.training.checkpointing import Checkpointer
from roots.training.engine.accelerator import prepare_accelerator
from roots.training.engine.pipeline import build_pipeline_engine
from roots.training.engine.step import Engine, build_zero_engine
from roots.training.loop import Run, train_loop
from roots.training.mirroring import open_mirror
from roots.training.ownership import Opening, open_run
from roots.training.resume_point import ResumePoint
from roots.training.signals import StopSignals
from roots.training.stopping import deadline_of
from roots.training.travelling_tokenizer import tokenizer_files, tokenizer_of_run

_logger = get_logger(__name__)


def run_training(
    config: RunConfig, local_rank: int, signals: StopSignals, opening: Opening
) -> ExitCode:
    """Train `config` in this process, which is one rank of the run. Raises RootsError.

    `signals`: the context that has heard of signals since the process began; `opening`: of the run,
    which the process has made before it imported this module.
    """
    code = train_in_process(config, local_rank, signals, opening)
    # Only after success: with NCCL, leaving the group waits for ranks that may be gone.
    process.shutdown()
    return code


def train_in_process(
    config: RunConfig,
    local_rank: int = -1,
    signals: StopSignals | None = None,
    opening: Opening | None = None,
) -> ExitCode:
    """As `run_training`, but the process group stays for the next call, as DeepSpeed needs it.

    `opening`: of the run; None: it is made here.
    """
    environment = launch_environment()
    configure(rank=environment.rank)
    if local_rank < 0:
        local_rank = environment.local_rank
    device = start_process(environment, local_rank)
    plan = plan_batch(config, environment.world_size)
    with ExitStack() as stack:
        opening = opening or stack.enter_context(open_run(config, environment.rank, time.time()))
        told = (lambda: False) if signals is None else signals.stop_requested
        marks = opening.ledger.marks
        watched = join(config.watchdog, config.run_directory, environment, device, told, marks)
        stack.enter_context(watched)
        run = assemble(config, plan, device, stack, opening, watched.explain)
        return run.ledger.end(train_loop(run, signals))


def start_process(environment: LaunchEnvironment, local_rank: int) -> Device:
    """Choose the device and set up DeepSpeed for it; before anything else of DeepSpeed is used."""
    # DeepSpeed reads ranks from the environment and builds its ops with this interpreter's ninja.
    set_environment(
        {
            "RANK": str(environment.rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(environment.world_size),
            "MASTER_ADDR": environment.master_addr,
            "MASTER_PORT": str(environment.master_port),
        }
    )
    prepend_to_path(str(Path(sys.executable).parent))
    device = current_device(local_rank)
    if device.kind == "cuda":
        # Slurm may show each task one GPU only; DeepSpeed takes LOCAL_RANK for the device's index.
        set_environment({"LOCAL_RANK": str(device.index)})
    prepare_accelerator(device)
    return device


def assemble(
    config: RunConfig,
    plan: BatchPlan,
    device: Device,
    stack: ExitStack,
    opening: Opening | None = None,
    explain: Callable[..., None] | None = None,
) -> Run:
    """Build every part of the run. Called by all ranks; an error of one is raised on all.

    `opening`: of the run; None: made here, and the run folder is its own until `stack` closes.
    `explain`: raises the cause of an error, as the `__exit__` of the run's watch.
    """
    mesh = Mesh.create(topology_of(config, plan))
    opening = opening or stack.enter_context(open_run(config, mesh.rank, time.time()))
    deadline = together(mesh.world, lambda: deadline_of(config))
    ownership = together(mesh.world, opening.own)
    mirror = open_mirror(config, mesh, stack, opening.ledger.marks)
    checkpointer = Checkpointer(config, mesh, ownership, mirror)
    found = checkpointer.find()
    ledger = opening.ledger
    if explain is not None:
        # First of all that hears of an error.
        stack.push(explain)
    tell_layout(ledger, config, mesh, device)
    start = checkpointer.where_from(found)
    ledger.reads(start.data)
    data = together(mesh.world, lambda: open_data(config, plan, mesh, start))
    checkpointer.saver.tokenizer_files = together(mesh.world, lambda: tokenizer_files(config))
    weights = checkpointer.find_weights() if found is None else None
    engine = build_engine(config, plan, mesh, device, weights=weights)
    if found is not None:
        start = replace(checkpointer.load(engine, found), data=start.data)
    # Ranks of one machine share its cores: a peak measured alone would never be reached together.
    process.barrier(mesh.world)
    throughput = Throughput(
        model=config.model,
        peak=mean_peak(device_peak(device, config.training.precision), mesh),
        num_devices=mesh.world.size,
    )
    tasks = open_tasks(config, mesh)
    callbacks = together(mesh.world, lambda: build_callbacks(config, mesh, start))
    for line in opening_lines(config, plan, mesh.topology, data, str(device.torch)):
        _logger.info("%s", line)
    _logger.info("speed    %s", throughput.describe())
    return Run(
        config=config,
        plan=plan,
        mesh=mesh,
        device=device,
        engine=engine,
        data=data,
        callbacks=callbacks,
        checkpointer=checkpointer,
        throughput=throughput,
        start=start,
        deadline=deadline,
        ledger=ledger,
        tasks=tasks,
    )


def topology_of(config: RunConfig, plan: BatchPlan) -> Topology:
    """The sizes of all axes."""
    parallel = config.parallel
    return Topology(
        tensor=parallel.tensor,
        data=plan.data_parallel,
        pipeline=parallel.pipeline,
        context=parallel.context,
        expert=parallel.expert,
    )


def open_data(config: RunConfig, plan: BatchPlan, mesh: Mesh, start: ResumePoint) -> DataSources:
    """What this rank reads from `start` on."""
    return build_data(
        config,
        plan,
        mesh.data.rank,
        needs_data=mesh.pipeline.rank in (0, mesh.pipeline.size - 1),
        state=DataState(start.consumed_samples, start.data.first_sample),
        steps_left=max(0, config.training.steps - start.step),
    )


def build_engine(
    config: RunConfig, plan: BatchPlan, mesh: Mesh, device: Device, *, weights: Path | None = None
) -> Engine:
    """The model under DeepSpeed: one stage under ZeRO, or several in a pipeline.

    It starts from its initial values, or from those of the checkpoint `weights`.
    """

    def fill(module: nn.Module) -> None:
        if weights is None:
            initialise(module, config.training.seed, config.model, device=device.torch)
            return
        materialise(module, device.torch)
        together(mesh.world, lambda: load_model_weights(weights, module))
        _logger.info("started from the weights of %s", weights)

    if mesh.pipeline.size > 1:
        return build_pipeline_engine(config, plan, mesh, device, fill)
    model = build_model(config.model, mesh, options=BuildOptions.of_run(config))
    fill(model)
    return build_zero_engine(config, plan, mesh, device, model)


def open_tasks(config: RunConfig, mesh: Mesh) -> TaskEvaluation | None:
    """The tasks that the model is asked meanwhile, if there are some."""
    if not config.evaluation.tasks:
        return None
    words = together(mesh.world, lambda: tokenizer_of_run(config))
    return TaskEvaluation(config, mesh, words)


def tell_layout(ledger: Ledger, config: RunConfig, mesh: Mesh, device: Device) -> None:
    """Let the ledger know what this run is, now that its ranks have met."""
    every = config.checkpoint.every_steps, config.checkpoint.local_every_steps
    ledger.met(
        _waited(mesh, device),
        ranks=mesh.world.size,
        layout=describe_layout(config, mesh.topology),
        save_every_steps=min(filter(None, every), default=0),
    )


def _waited(mesh: Mesh, device: Device) -> Callable[[], float] | None:
    """How many seconds this process has waited in collectives so far; None: not measured."""
    if mesh.world.size == 1:
        return lambda: 0.0
    # On a GPU they return before they are done.
    recorder = recorder_of_process() if device.kind == "cpu" else None
    return None if recorder is None else lambda: recorder.seconds


def mean_peak(mine: Peak, mesh: Mesh) -> Peak:
    """The mean over all ranks, since a measured peak differs a little on each."""
    peaks = process.all_gather_object(mesh.world, mine.flops_per_second)
    return Peak(sum(peaks) / len(peaks), mine.source)


def build_callbacks(config: RunConfig, mesh: Mesh, start: ResumePoint) -> CallbackList:
    """What records and shows the run: on global rank 0 alone."""
    if mesh.rank != 0:
        return CallbackList([])
    folder = config.run_directory
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder / "config.yaml")
    write_atomically(folder / "config.yaml", dump_config(config))
    metrics = MetricsWriter(folder / "metrics.jsonl", start.step)
    evaluations = EvaluationWriter(folder / "evaluations.jsonl", start.step)
    saves = SaveWriter(folder / CHECKPOINTS_FILE, start.step)
    trackers = build_trackers(config, folder, mesh.rank, start.step, start.new_course)
    every = config.tracking.log_every_steps
    for tracker in trackers:
        if isinstance(tracker, WandbTracker) and tracker.begun_anew:
            replay(TrackerCallback([tracker], every), folder, start.step)
    return CallbackList(
        [
            MetricsCallback(metrics, evaluations, saves),
            TrackerCallback(trackers, every),
            ProgressCallback(Progress(config.training.steps, every)),
        ]
    )
