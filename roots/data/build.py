"""The data of a run, from its config: the one entry for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from roots.config.batch import BatchPlan
from roots.config.data import DataSource
from roots.config.run import RunConfig
from roots.data.blend import Source
from roots.data.gpt import split_documents
from roots.data.indexed import IndexedDataset
from roots.data.loader import StepReader, TrainSource, ValidSource
from roots.data.objectives.choice import batch_maker
from roots.data.objectives.pairs import open_pairs
from roots.data.sampler import DataState, Order, seed_of_phase
from roots.errors import RootsError, problem
from roots.tokenizer.tokenizer import load_tokenizer

_TRAIN, _VALID = 0, 1


@dataclass(frozen=True)
class DataSources:
    """What a run reads, and the datasets behind it.

    `valid` is None, and `valid_sets` empty, where the config never evaluates.
    """

    train: TrainSource
    valid: ValidSource | None
    train_sets: Sequence[Source]
    valid_sets: Sequence[Source]


def build_data(
    config: RunConfig,
    batch_plan: BatchPlan,
    data_rank: int,
    *,
    needs_data: bool = True,
    state: DataState | None = None,
    steps_left: int | None = None,
) -> DataSources:
    """Open the datasets of `config` for one data-parallel rank.

    `state`: how far the run has consumed them, None of one that begins; `steps_left`: how many
    steps follow, by default all of the config.
    Every rank may call this at once: the first builds and caches the sample indices, the others
    wait for that. Where `needs_data` is false, the batches are empty lists and no index is built.
    Raises RootsError with every dataset that cannot be opened, one line each.
    """
    evaluates = config.evaluation.every_steps > 0
    train_set = open_train(config)
    valid_set = _open(config, config.data.valid, "data.valid") if evaluates else []
    _check_tokenizers([*train_set, *valid_set], config.data.tokenizer)
    train, valid = _sources(config, train_set, valid_set)

    size, seed = batch_plan.global_batch_size, config.training.seed

    def reader(
        sources: Sequence[Source], order: Order, num_steps: int, *, grouped: bool
    ) -> StepReader:
        maker = None
        if needs_data:
            maker = batch_maker(config, sources, order, grouped=grouped)
        return StepReader(maker, batch_plan, data_rank, num_steps=num_steps)

    state = DataState() if state is None else state
    wanted = config.training.steps if steps_left is None else steps_left
    wanted += state.next_step(size)
    order = Order(
        seed_of_phase(seed, config.data.phase),
        (wanted + config.anomaly.spare_batches) * size,
        state.left_over(size),
    )
    steps = reader(train, order, wanted, grouped=True)
    source = TrainSource(steps, config.data.num_workers, state)
    if not evaluates:
        return DataSources(source, None, train, [])
    # The same in all phases, so that losses can be compared.
    fixed = Order(seed, config.evaluation.steps * size)
    held_out = reader(valid, fixed, config.evaluation.steps, grouped=False)
    return DataSources(source, ValidSource(held_out), train, valid)


def open_train(config: RunConfig) -> list[Source]:
    """The datasets of `data.train`, whole. Raises RootsError with the problems of all of them."""
    if not config.data.train:
        fix = "add `data.train=PREFIX`, made by `roots preprocess`"
        raise RootsError(problem("data.train", None, "names no data to train on", fix))
    return _open(config, config.data.train, "data.train")


def _open(config: RunConfig, sources: Sequence[DataSource], field: str) -> list[Source]:
    """Open every dataset whole. Raises RootsError with the problems of all of them."""
    pairs = config.objective == "pairs"
    opened: list[Source] = []
    lines: list[str] = []
    for number, source in enumerate(sources):
        try:
            if pairs:
                indexed, target = open_pairs(source.prefix)
            else:
                indexed, target = IndexedDataset(source.prefix), None
            opened.append(Source(indexed, range(indexed.num_documents), source.weight, target))
        except RootsError as error:
            lines.extend(f"{field}[{number}].prefix: {line}" for line in error.lines)
    if lines:
        raise RootsError(*lines)
    return opened


def _sources(
    config: RunConfig, train: list[Source], valid: list[Source]
) -> tuple[list[Source], list[Source]]:
    """Return what to train on and what to evaluate on, split by document where they are one."""
    if config.data.valid:
        return train, valid
    evaluates = config.evaluation.every_steps > 0
    parts = [_parts(source, config.data.split) for source in train]
    for part in (_TRAIN, _VALID)[: 1 + evaluates]:
        for source, ranges in zip(train, parts, strict=True):
            if not ranges[part]:
                count = source.indexed.num_documents
                name = ("train", "valid")[part]
                rule = f"leaves no document of {source.indexed.prefix} ({count}) for {name}"
                fix = "change the split, or give data.valid a dataset of its own"
                shown = ",".join(f"{weight:g}" for weight in config.data.split)
                raise RootsError(problem("data.split", shown, rule, fix))
    return (
        [replace(s, documents=r[_TRAIN]) for s, r in zip(train, parts, strict=True)],
        [replace(s, documents=r[_VALID]) for s, r in zip(train, parts, strict=True)],
    )


def _parts(source: Source, split: tuple[float, float, float]) -> tuple[range, ...]:
    return split_documents(source.indexed.num_documents, split)


def _check_tokenizers(sources: Sequence[Source], configured: str | None) -> None:
    """Refuse data of different tokenizers, or of another than `data.tokenizer`.

    As far as the side files tell: a dataset without one passes. What ends a document is the choice
    of whoever preprocesses, the same one for all.
    """
    tokenizer = None if configured is None else load_tokenizer(configured)
    datasets = [(source.indexed, source.target) for source in sources]
    first: IndexedDataset | None = None
    for indexed in [dataset for pair in datasets for dataset in pair if dataset is not None]:
        made = indexed.description
        if made is None:
            continue
        first = indexed if first is None else first
        known = first.description
        assert known is not None, "the first dataset is one that says how it was made"
        fix = "preprocess the text with the same one"
        if tokenizer is not None and not tokenizer.has_ids_of(made.tokenizer):
            rule = f"was made with another tokenizer than data.tokenizer {configured}"
            raise RootsError(problem(indexed.prefix, None, rule, fix))
        if known.end_of_document != made.end_of_document:
            rule = f"must be {known.end_of_document}, as in {first.prefix}"
            fix = "preprocess the text with the same --end-token"
            shown = f"{indexed.prefix} end_of_document"
            raise RootsError(problem(shown, made.end_of_document, rule, fix))
        if tokenizer is None and known.tokenizer != made.tokenizer:
            rule = f"was made with another tokenizer than {first.prefix}"
            raise RootsError(problem(indexed.prefix, None, rule, fix))
