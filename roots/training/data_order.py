"""What a run that goes on reads: on in the order of its checkpoint, or a new phase of the data.

Within a phase (`data.phase`) the sample of every number is the one that it was. What decides that
is refused, a line for each field, where it has changed: which datasets there are, with which
weights, how much of them is trained on, how a text is cut into samples, how pairs are grouped. The
datasets themselves are compared by what is in them, so they may lie elsewhere. A higher phase
begins with the next sample of the run, and counts from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from roots.checkpoint.manifest import Manifest
from roots.config.data import DataConfig, DataSource
from roots.config.run import RunConfig
from roots.config.spans import span_plan
from roots.data.blend import Source
from roots.data.build import open_train
from roots.data.contents import contents_digest
from roots.data.record import DataRecord, SideRecord, SourceRecord
from roots.errors import problem
from roots.tokenizer.tokenizer import load_tokenizer


def record_of(config: RunConfig) -> DataRecord:
    """The data of `config`, of a run that begins with them.

    Reads up to two MiB of each dataset. Raises RootsError with every one that cannot be opened.
    """
    opened = open_train(config)
    return DataRecord(
        config.data.phase,
        tokenizer=_fingerprint(config, opened),
        sources=tuple(map(_recorded, config.data.train, opened)),
    )


def going_on(data: DataRecord, found: Manifest) -> DataRecord:
    """`data` as a run reads them that goes on from `found`."""
    stored = found.data or DataRecord()
    same = data.phase == stored.phase
    return replace(data, first_sample=stored.first_sample if same else found.consumed_samples)


@dataclass(frozen=True)
class DataOrder:
    """A checkpoint and a run that is to go on from it.

    before, found: config and manifest of the checkpoint in `folder`; now: the run's config;
    data: what lies at its prefixes, None on a rank that has not looked.
    """

    folder: Path
    before: RunConfig
    found: Manifest
    now: RunConfig
    data: DataRecord | None = None

    def differences(self) -> list[str]:
        """A line for everything that would give the run other samples than its checkpoint's."""
        phase, stored = self.now.data.phase, self._stored.phase
        lines = [*self._seed(), *self._tokenizer()]
        if phase < stored:
            fix = f"set data.phase={stored}, or resume from a checkpoint of phase {phase}"
            rule = f"is {stored} in checkpoint {self.folder}, and no run goes back to a phase"
            lines.append(problem("data.phase", phase, rule, fix))
        elif phase == stored:
            lines += [*self._fields(), *self._sources(), *self._batch_size()]
        return lines

    @property
    def _stored(self) -> DataRecord:
        return self.found.data or DataRecord()

    def _changed(self, field: str, value: object, rule: str) -> str:
        """The line on a field that another phase may change."""
        following = self._stored.phase + 1
        fix = f"set it back, or begin a new phase of the data with data.phase={following}"
        return problem(field, value, rule, fix)

    def _was(self, value: object) -> str:
        return f"is {value!r} in checkpoint {self.folder}"

    def _seed(self) -> Iterator[str]:
        seed, was = self.now.training.seed, self.before.training.seed
        if seed != was:
            fix = "set it back, or start a new run with another run.name"
            yield problem("training.seed", seed, self._was(was), fix)

    def _tokenizer(self) -> Iterator[str]:
        """Texts of another tokenizer are other ids of the same words, in any phase."""
        was = self._stored.tokenizer
        if was is None or self.data is None or self.data.tokenizer is None:
            return
        named = self.now.data.tokenizer
        if named is None:
            same = self.data.tokenizer == was
        else:
            same = load_tokenizer(named).has_ids_of(was)
        if not same:
            rule = f"the data of checkpoint {self.folder} were made with another tokenizer"
            fix = "use data of the same one, or start a new run with another run.name"
            yield problem("data.tokenizer", named, rule, fix)

    def _fields(self) -> Iterator[str]:
        """Lines on fields of `data` other than the datasets themselves."""
        before, now = self.before, self.now
        if now.objective != before.objective:
            yield self._changed("data.objective", now.objective, self._was(before.objective))
        if _share_trained(now.data) != _share_trained(before.data):
            if bool(now.data.valid) == bool(before.data.valid):
                yield self._changed("data.split", _split(now.data), self._was(_split(before.data)))
            else:
                was = self._was(_prefixes(before.data.valid))
                rule = f"{was}, and data.split takes documents from training where it is empty"
                yield self._changed("data.valid", _prefixes(now.data.valid), rule)
        if now.objective == before.objective == "pairs":
            size, was_size = now.data.group_batches, before.data.group_batches
            if size != was_size:
                yield self._changed("data.group_batches", size, self._was(was_size))
        if now.objective == before.objective == "span_corruption":
            yield from self._length_of_a_text()

    def _length_of_a_text(self) -> Iterator[str]:
        """How much text makes a sample, which decides where samples begin."""
        length, was_length = (span_plan(each).text_length for each in (self.now, self.before))
        if length == was_length:
            return
        for name in ("noise_density", "mean_span"):
            value, was = (getattr(each.data, name) for each in (self.now, self.before))
            if value != was:
                rule = (
                    f"{self._was(was)}, where a sample takes {was_length} tokens and not {length}"
                )
                yield self._changed(f"data.{name}", value, rule)

    def _sources(self) -> Iterator[str]:
        """Lines on the datasets: how many, then each one's contents and weight."""
        now, before = self.now.data.train, self.before.data.train
        if len(now) != len(before):
            rule = f"{self._was(_prefixes(before))}, {len(before)} and not {len(now)} datasets"
            yield self._changed("data.train", _prefixes(now), rule)
            return
        known = self._stored.sources
        shares, were = _shares(now), _shares(before)
        for number, (source, was) in enumerate(zip(now, before, strict=True)):
            name = f"data.train[{number}]"
            rule = None
            if len(known) != len(now):
                if Path(source.prefix).resolve() != Path(was.prefix).resolve():
                    rule = f"{self._was(was.prefix)}, which does not say what was in it"
            elif self.data is not None:
                rule = self._other_contents(self.data.sources[number], known[number], known)
            if rule is not None:
                yield self._changed(f"{name}.prefix", source.prefix, rule)
            if shares != were and source.weight != was.weight:
                yield self._changed(f"{name}.weight", source.weight, self._was(was.weight))

    def _other_contents(
        self, source: SourceRecord, was: SourceRecord, known: tuple[SourceRecord, ...]
    ) -> str | None:
        """What is wrong with a dataset; None if it is the one that it was, wherever it lies."""
        if source.sides == was.sides:
            return None
        place = f"in checkpoint {self.folder}"
        for number, each in enumerate(known):
            if each.sides == source.sides:
                return f"is data.train[{number}] {place}, and {was.prefix!r} is in its place"
        before = "it" if source.prefix == was.prefix else repr(was.prefix)
        if source.describe() != was.describe():
            return f"has {source.describe()}, where {before} had {was.describe()} {place}"
        return f"has other tokens, or the same in another order, than {before} had {place}"

    def _batch_size(self) -> Iterator[str]:
        size, was = (each.training.global_batch_size for each in (self.now, self.before))
        grouped = self.now.objective == "pairs" and self.now.data.group_batches > 1
        if grouped and size != was:
            rule = (
                f"{self._was(was)}, and batches that are grouped by length are other ones with "
                "another size"
            )
            yield self._changed("training.global_batch_size", size, rule)


def _recorded(named: DataSource, source: Source) -> SourceRecord:
    sides = [source.indexed] if source.target is None else [source.indexed, source.target]
    records = (SideRecord(len(each), each.num_tokens, contents_digest(each)) for each in sides)
    return SourceRecord(named.prefix, named.weight, tuple(records))


def _fingerprint(config: RunConfig, sources: list[Source]) -> str | None:
    """Of the tokenizer that made the data, as far as they or the config say."""
    made = (source.indexed.description for source in sources)
    for description in made:
        if description is not None:
            return description.tokenizer
    named = config.data.tokenizer
    return None if named is None else load_tokenizer(named).fingerprint


def _share_trained(data: DataConfig) -> float:
    """Of the documents of every dataset."""
    return 1.0 if data.valid else data.split[0] / sum(data.split)


def _shares(sources: Sequence[DataSource]) -> list[float]:
    """Of each source in the blend, added up as in csrc/data/index.cpp: equal ones, equal blends."""
    *_, total = accumulate((source.weight for source in sources), initial=0.0)
    return [source.weight / total for source in sources]


def _split(data: DataConfig) -> str:
    return ",".join(f"{weight:g}" for weight in data.split)


def _prefixes(sources: Sequence[DataSource]) -> str:
    return ",".join(source.prefix for source in sources)
