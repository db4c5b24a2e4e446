"""What a run that goes on reads: the order of its checkpoint, or a phase of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roots.checkpoint import folders, manifest
from roots.config import RunConfig, parse_config
from roots.data.indexed import IndexedWriter
from roots.data.record import DataRecord
from roots.errors import RootsError
from roots.parallel.mesh import Mesh
from roots.training.data_order import DataOrder, going_on, record_of
from roots.training.resuming import Candidates
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.runs import VOCAB_SIZE, small_config

LAYOUT = manifest.Layout(1, 1, 1, 0, "fp32")
FOLDER = Path("run/checkpoints/step_00000002")
NEXT = "set it back, or begin a new phase of the data with data.phase=1"
IS = f"in checkpoint {FOLDER}"
SPANS = {"model.architecture": "encoder_decoder"}
PAIRS = {**SPANS, "data.objective": "pairs"}
GROUPED = {**PAIRS, "data.pad_multiple": 2, "data.group_batches": 2}
BASE = {
    "model.vocab_size": 100,
    "model.sequence_length": 32,
    "training.global_batch_size": 8,
    "data.train": [{"prefix": "a", "weight": 2.0}, {"prefix": "b", "weight": 1.0}],
    "data.valid": ["v"],
}


def config_of(*settings: dict[str, Any]) -> RunConfig:
    """A config of the later settings of each dotted field; nothing at its prefixes is opened."""
    tree: dict[str, dict[str, Any]] = {}
    for each in (BASE, *settings):
        for name, value in each.items():
            section, field = name.split(".")
            tree.setdefault(section, {})[field] = value
    return parse_config(tree)


def lines_of(
    before: RunConfig, now: RunConfig, stored: DataRecord | None = None, consumed: int = 16
) -> list[str]:
    found = manifest.Manifest(2, consumed, LAYOUT, {}, data=stored)
    return DataOrder(FOLDER, before, found, now).differences()


@pytest.mark.parametrize(
    ("base", "field", "value", "line"),
    [
        (
            {},
            "data.train",
            ["a"],
            f"data.train='a': is 'a,b' {IS}, 2 and not 1 datasets",
        ),
        ({}, "data.train", "1 a 1 b", f"data.train[0].weight=1.0: is 2.0 {IS}"),
        (
            {},
            "data.valid",
            [],
            f"data.valid='': is 'v' {IS}, and data.split takes documents from training where it "
            "is empty",
        ),
        (
            {"data.valid": []},
            "data.valid",
            ["v"],
            f"data.valid='v': is '' {IS}, and data.split takes documents from training where it "
            "is empty",
        ),
        (
            {"data.valid": []},
            "data.split",
            "90,10,0",
            f"data.split='90,10,0': is '969,30,1' {IS}",
        ),
        (
            SPANS,
            "data.objective",
            "pairs",
            f"data.objective='pairs': is 'span_corruption' {IS}",
        ),
        (GROUPED, "data.group_batches", 4, f"data.group_batches=4: is 2 {IS}"),
        (
            GROUPED,
            "training.global_batch_size",
            16,
            f"training.global_batch_size=16: is 8 {IS}, and batches that are grouped by length are "
            "other ones with another size",
        ),
        (
            SPANS,
            "data.noise_density",
            0.5,
            f"data.noise_density=0.5: is 0.15 {IS}, where a sample takes 34 tokens and not 46",
        ),
        (
            {**SPANS, "data.noise_density": 0.5},
            "data.mean_span",
            1.0,
            f"data.mean_span=1.0: is 3.0 {IS}, where a sample takes 46 tokens and not 31",
        ),
    ],
)
def test_what_decides_the_order_is_refused(
    base: dict[str, Any], field: str, value: Any, line: str
) -> None:
    before, now = config_of(base), config_of(base, {field: value})
    assert lines_of(before, now) == [f"{line}; {NEXT}"]
    assert lines_of(before, config_of(base, {field: value, "data.phase": 1})) == []


def test_every_field_that_changed_has_its_line() -> None:
    base = {**SPANS, "data.valid": []}
    now = {"data.noise_density": 0.5, "data.mean_span": 2.0, "data.split": "90,10,0"}
    found = lines_of(config_of(base), config_of(base, now, {"data.train": "5 c 1 b"}))
    assert [line.partition("=")[0] for line in found] == [
        "data.split",
        "data.noise_density",
        "data.mean_span",
        "data.train[0].prefix",
        "data.train[0].weight",
    ]


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        ({}, "data.separate_documents", False),
        ({}, "data.mask_document_end", True),
        ({}, "data.valid", ["w"]),
        ({}, "data.num_workers", 1),
        ({}, "data.cache_directory", "elsewhere"),
        ({}, "data.split", "90,10,0"),
        ({"data.valid": []}, "data.split", "969,1,30"),
        ({"data.valid": [], "data.split": "1,0,0"}, "data.valid", ["v"]),
        ({}, "data.train", "4 a 2 b"),
        ({}, "data.train", "2 ./a 1 b"),
        ({"data.train": ["a"]}, "data.train", "3 a"),
        ({}, "data.objective", "causal"),
        (PAIRS, "data.pad_multiple", 2),
        ({"model.architecture": "encoder"}, "data.noise_density", 0.5),
        # A text of as many tokens, in other spans.
        (SPANS, "data.mean_span", 2.0),
        ({}, "training.micro_batch_size", 2),
        ({}, "training.global_batch_size", 12),
    ],
)
def test_what_masks_or_measures_may_change(base: dict[str, Any], field: str, value: Any) -> None:
    assert lines_of(config_of(base), config_of(base, {field: value})) == []


def test_a_phase_is_left_for_a_higher_one_alone() -> None:
    stored, other = DataRecord(2, 40), {"data.train": ["c"]}
    before = config_of({"data.phase": 2})
    assert lines_of(before, config_of({"data.phase": 5}, other), stored) == []
    assert lines_of(before, config_of({"data.phase": 1}, other), stored) == [
        f"data.phase=1: is 2 {IS}, and no run goes back to a phase; set data.phase=2, or resume "
        "from a checkpoint of phase 1"
    ]
    (line,) = lines_of(before, config_of({"data.phase": 2}, other), stored)
    assert line.endswith("set it back, or begin a new phase of the data with data.phase=3")
    seed = {"training.seed": 5, "data.phase": 3}
    assert lines_of(before, config_of(seed), stored) == [
        f"training.seed=5: is 1234 {IS}; set it back, or start a new run with another run.name"
    ]


def test_where_a_phase_begins() -> None:
    record = DataRecord(1, tokenizer="t")
    found = manifest.Manifest(2, 16, LAYOUT, {})
    assert going_on(record, found) == replace(record, first_sample=16)
    inside = replace(found, consumed_samples=64, data=replace(record, first_sample=16))
    assert going_on(record, inside) == replace(record, first_sample=16)
    assert going_on(replace(record, phase=3), inside).first_sample == 64
    assert going_on(DataRecord(), found).first_sample == 0


# What lies at the prefixes.


def write_texts(prefix: Path, texts: Sequence[Sequence[int]], tokenizer: str = "test") -> Path:
    with IndexedWriter(prefix, VOCAB_SIZE) as writer:
        for text in texts:
            writer.add(np.array([*text, 0]))
        writer.finish(tokenizer=tokenizer, end_of_document=0)
    return prefix


def find(config: RunConfig) -> Path | None:
    root = config.run_directory / folders.CHECKPOINTS_FOLDER
    return Candidates(config, Mesh.single(), root, LAYOUT).find()


def refusal(config: RunConfig) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        find(config)
    return caught.value.lines


class Saved:
    """Two datasets, and a checkpoint that has read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = write_texts(folder / "first", [[1, 2, 3], [4, 5], [6]])
        self.second = write_texts(folder / "second", [[7, 8], [9, 1]])
        self.checkpoint = save_checkpoint(
            self.config(), 2, layout=LAYOUT, data=record_of(self.config())
        )

    def config(self, *prefixes: Path, **data: Any) -> RunConfig:
        train = [str(prefix) for prefix in prefixes or (self.first, self.second)]
        valid = [str(self.second)]
        return small_config(Path("x"), self.folder, data={"train": train, "valid": valid, **data})

    def move(self, prefix: Path, to: Path) -> Path:
        to.parent.mkdir(exist_ok=True)
        for ending in (".bin", ".idx", ".json"):
            shutil.move(f"{prefix}{ending}", f"{to}{ending}")
        return to


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path)


def test_the_same_data_may_lie_elsewhere(saved: Saved) -> None:
    assert find(saved.config()) == saved.checkpoint
    moved = saved.move(saved.first, saved.folder / "disk" / "other")
    assert find(saved.config(moved, saved.second)) == saved.checkpoint
    # Nothing there any more, where the config says it is.
    (line,) = refusal(saved.config())
    assert line.startswith(f"data.train[0].prefix: {saved.first}.idx: no such file; ")


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (
            [[1, 2, 3], [4, 5]],
            "has 7 tokens in 2 documents, where {was} had 9 tokens in 3 documents in checkpoint "
            "{c}",
        ),
        # As many documents and tokens: the same ones in another order, and one token another.
        (
            [[6], [4, 5], [1, 2, 3]],
            "has other tokens, or the same in another order, than {was} had in checkpoint {c}",
        ),
        (
            [[1, 2, 3], [4, 5], [7]],
            "has other tokens, or the same in another order, than {was} had in checkpoint {c}",
        ),
    ],
)
@pytest.mark.parametrize("moved", [False, True])
def test_other_data_are_refused_before_an_index_is_built(
    texts: list[list[int]], rule: str, moved: bool, saved: Saved
) -> None:
    if not moved:
        saved.move(saved.first, saved.folder / "away")
    prefix = write_texts(saved.folder / "new" if moved else saved.first, texts)
    was = repr(str(saved.first)) if moved else "it"
    assert refusal(saved.config(prefix, saved.second)) == (
        f"data.train[0].prefix={str(prefix)!r}: {rule.format(was=was, c=saved.checkpoint)}; {NEXT}",
    )
    assert find(saved.config(prefix, saved.second, phase=1)) == saved.checkpoint
    assert not list(saved.folder.rglob("index-cache"))


def test_exchanged_datasets_are_named(saved: Saved) -> None:
    first, second = str(saved.first), str(saved.second)
    place = f"in checkpoint {saved.checkpoint}, and"
    assert refusal(saved.config(saved.second, saved.first)) == (
        f"data.train[0].prefix={second!r}: is data.train[1] {place} {first!r} is in its place; "
        f"{NEXT}",
        f"data.train[1].prefix={first!r}: is data.train[0] {place} {second!r} is in its place; "
        f"{NEXT}",
    )


def test_both_sides_of_pairs_count(tmp_path: Path) -> None:
    for side in ("source", "target"):
        write_texts(tmp_path / f"p.{side}", [[1, 2], [3]])
    model = {"architecture": "encoder_decoder", "vocab_size": VOCAB_SIZE}
    data = {"objective": "pairs", "train": str(tmp_path / "p"), "valid": str(tmp_path / "p")}
    config = small_config(Path("x"), tmp_path, model=model, data=data)
    checkpoint = save_checkpoint(config, 2, layout=LAYOUT, data=record_of(config))
    assert find(config) == checkpoint
    for ending in (".bin", ".idx", ".json"):
        (tmp_path / f"p.target{ending}").unlink()
    write_texts(tmp_path / "p.target", [[1, 2], [3, 4, 5]])
    assert refusal(config) == (
        f"data.train[0].prefix='{tmp_path}/p': has 12 tokens in 2 pairs, where it had 10 tokens in "
        f"2 pairs in checkpoint {checkpoint}; {NEXT}",
    )


def test_a_checkpoint_that_says_nothing_of_its_data_is_held_to_their_names(tmp_path: Path) -> None:
    config = small_config(tmp_path / "gone", tmp_path)
    checkpoint = save_checkpoint(config, 2, layout=LAYOUT)
    assert find(config) == checkpoint
    other = str(tmp_path / "other")
    assert refusal(small_config(tmp_path / "other", tmp_path, data={"valid": ["v"]})) == (
        f"data.train[0].prefix={other!r}: is '{tmp_path}/gone' in checkpoint {checkpoint}, which "
        f"does not say what was in it; {NEXT}",
    )


def test_another_tokenizer_is_refused_in_any_phase(saved: Saved) -> None:
    new = write_texts(saved.folder / "new", [[1, 2, 3]], tokenizer="another")
    assert refusal(saved.config(new, phase=1)) == (
        f"data.tokenizer: the data of checkpoint {saved.checkpoint} were made with another "
        "tokenizer; use data of the same one, or start a new run with another run.name",
    )


def test_runs_without_datasets_have_none_that_changed() -> None:
    """As those that are fed by a caller of the library, which names no data."""
    nothing: dict[str, Any] = {"data.train": [], "data.valid": []}
    assert lines_of(config_of(nothing), config_of(nothing)) == []
