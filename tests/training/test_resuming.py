"""Which checkpoint a run goes on from: the newest good one, whatever happened to newer ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roots.checkpoint import folders, manifest
from roots.config import RunConfig
from roots.errors import ExitCode, RootsError
from roots.parallel.mesh import Mesh
from roots.parallel.topology import Topology
from roots.training.resuming import Candidates
from tests.helpers.checkpoints import STATE_NAME, flip_bit, save_checkpoint
from tests.helpers.distributed import run_distributed
from tests.helpers.manifests import edit_manifest
from tests.helpers.runs import small_config

LAYOUT = manifest.Layout(1, 1, 1, 0, "fp32")
FIX = "use another checkpoint of the run"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run with checkpoints of steps 2, 4 and 6."""
    config = small_config(tmp_path / "data", tmp_path)
    for step in (2, 4, 6):
        save_checkpoint(config, step, layout=LAYOUT)
    return config


def root_of(config: RunConfig) -> Path:
    return config.run_directory / folders.CHECKPOINTS_FOLDER


def step_of(config: RunConfig, step: int) -> Path:
    return root_of(config) / folders.step_name(step)


def names(config: RunConfig) -> list[str]:
    return sorted(path.name for path in root_of(config).iterdir())


def find(config: RunConfig, mesh: Mesh | None = None) -> Path | None:
    return Candidates(config, mesh or Mesh.single(), root_of(config), LAYOUT).find()


def refusal(config: RunConfig) -> tuple[str, ...]:
    before = names(config)
    with pytest.raises(RootsError) as caught:
        find(config)
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert names(config) == before
    return caught.value.lines


def changed(config: RunConfig, section: str, **fields: Any) -> RunConfig:
    part = getattr(config, section).model_copy(update=fields)
    return config.model_copy(update={section: part})


def unlink(folder: Path) -> tuple[str, str]:
    (folder / STATE_NAME).unlink()
    return STATE_NAME, "is missing"


def shorten(folder: Path) -> tuple[str, str]:
    path = folder / STATE_NAME
    length = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    return STATE_NAME, f"has {length - 10} bytes where the manifest says {length}"


def flip(folder: Path) -> tuple[str, str]:
    flip_bit(folder / STATE_NAME)
    return STATE_NAME, "does not have the checksum that the manifest records"


def replace_by_folder(folder: Path) -> tuple[str, str]:
    (folder / manifest.CONFIG_NAME).unlink()
    (folder / manifest.CONFIG_NAME).mkdir()
    return manifest.CONFIG_NAME, "is missing"


@pytest.mark.parametrize("damage", [unlink, shorten, flip, replace_by_folder])
def test_damaged_newest_is_named_and_set_aside(
    config: RunConfig, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    name, rule = damage(step_of(config, 6))
    assert find(config) == step_of(config, 4)
    kept = root_of(config) / "damaged_step_00000006"
    assert caplog.messages == [
        f"checkpoint file='{step_of(config, 6)}/{name}': {rule}; {FIX}",
        f"step_00000006 is damaged, and kept as {kept}",
        f"{step_of(config, 4)} is the newest good checkpoint",
    ]
    assert names(config) == ["damaged_step_00000006", "latest", "step_00000002", "step_00000004"]
    assert (root_of(config) / "latest").read_text() == "step_00000004"
    caplog.clear()
    assert find(config) == step_of(config, 4)
    assert caplog.messages == []


def test_manifest_counts_as_a_file(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    path = step_of(config, 6) / manifest.MANIFEST_NAME
    path.write_text(path.read_text().replace('"step": 6', '"step": 7'))
    assert find(config) == step_of(config, 4)
    assert caplog.messages[0] == (
        f"manifest='{path}': is not readable (ValueError: it does not have the checksum that it "
        f"records); {FIX}"
    )


def test_checkpoint_without_its_manifest_is_kept_and_never_forgotten(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """A save that did not end has another name: this one was whole once."""
    (step_of(config, 6) / manifest.MANIFEST_NAME).unlink()
    assert find(config) == step_of(config, 4)
    kept = root_of(config) / "damaged_step_00000006"
    assert caplog.messages == [
        manifest.no_manifest(str(step_of(config, 6))),
        f"step_00000006 is damaged, and kept as {kept}",
        f"{step_of(config, 4)} is the newest good checkpoint",
    ]
    assert (kept / STATE_NAME).is_file()
    for step in (2, 4):
        (step_of(config, step) / manifest.MANIFEST_NAME).unlink()
    lines = refusal(config)
    assert lines[:2] == tuple(manifest.no_manifest(str(step_of(config, step))) for step in (4, 2))
    assert "2 are damaged" in lines[2]


def test_several_damaged_ones_are_passed_by(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    flip(step_of(config, 6)), unlink(step_of(config, 4))
    assert find(config) == step_of(config, 2)
    files = [line.split("'")[1] for line in caplog.messages if "file=" in line]
    assert files == [str(step_of(config, step) / STATE_NAME) for step in (6, 4)]
    # The run saves them anew; if that goes wrong too, both are kept.
    save_checkpoint(config, 4, layout=LAYOUT)
    flip(step_of(config, 4))
    assert find(config) == step_of(config, 2)
    assert names(config)[:3] == [
        "damaged_step_00000004",
        "damaged_step_00000004_1",
        "damaged_step_00000006",
    ]


def test_older_damage_is_of_no_account(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    flip(step_of(config, 2))
    assert find(config) == step_of(config, 6)
    assert caplog.messages == []


def test_all_damaged_is_an_error_that_names_them(config: RunConfig) -> None:
    for step in (2, 4, 6):
        flip(step_of(config, step))
    rule = "does not have the checksum that the manifest records"
    fix = "bring the files back from a copy, or set another run.name to begin anew"
    assert refusal(config) == (
        *(
            f"checkpoint file='{step_of(config, step)}/{STATE_NAME}': {rule}; {FIX}"
            for step in (6, 4, 2)
        ),
        f"checkpoint.resume='auto': no checkpoint in {root_of(config)} is good: 3 are damaged; "
        f"{fix}",
    )


def test_only_one_that_is_damaged(tmp_path: Path) -> None:
    config = small_config(tmp_path / "data", tmp_path)
    unlink(save_checkpoint(config, 2, layout=LAYOUT))
    assert refusal(config)[-1].startswith(
        f"checkpoint.resume='auto': the only checkpoint in {root_of(config)} is damaged; bring "
    )


@pytest.mark.parametrize("whole_run", [False, True])
def test_damaged_one_that_was_named_is_refused(config: RunConfig, whole_run: bool) -> None:
    folder = step_of(config, 6)
    name, rule = flip(folder)
    wish = str(config.run_directory if whole_run else folder)
    named = changed(config, "checkpoint", resume=wish)
    assert refusal(named) == (f"checkpoint file='{folder}/{name}': {rule}; {FIX}",)


def test_another_model_moves_nothing(config: RunConfig) -> None:
    flip(step_of(config, 6))
    (line,) = refusal(changed(config, "training", seed=5))
    assert line.startswith(f"training.seed=5: is 1234 in checkpoint {step_of(config, 4)}; ")


def test_newer_format_is_no_damage(config: RunConfig) -> None:
    edit_manifest(step_of(config, 6), lambda tree: tree.update(version=99))
    (line,) = refusal(config)
    assert f"checkpoint='{step_of(config, 6)}': is roots-checkpoint version 99" in line
    assert line.endswith("use the ROOTS that wrote it")


def test_fresh_start(tmp_path: Path) -> None:
    config = small_config(tmp_path / "data", tmp_path)
    assert find(config) is None
    assert find(changed(config, "checkpoint", resume="never")) is None


def find_on_rank(rank: int, world_size: int, config: RunConfig, *seeds: int) -> tuple[bool, object]:
    """Whether a rank speaks of what it is refused with, and the lines; or what it finds."""
    mesh = Mesh.create(Topology(data=world_size))
    config = changed(config, "training", seed=seeds[rank]) if seeds else config
    try:
        return False, find(config, mesh)
    except RootsError as error:
        return error.speaks, error.lines


def test_ranks_read_a_share_each_and_agree(config: RunConfig) -> None:
    """Of three files each rank reads one, so that one rank alone sees the damage."""
    flip(step_of(config, 6)), replace_by_folder(step_of(config, 4))
    assert run_distributed(find_on_rank, 3, config) == [(False, step_of(config, 2))] * 3
    assert names(config)[:2] == ["damaged_step_00000004", "damaged_step_00000006"]
    flip(step_of(config, 2))
    found = run_distributed(find_on_rank, 3, config)
    assert [speaks for speaks, _ in found] == [True, False, False]
    assert len(found[0][1]) == 2
    assert [lines for _, lines in found] == [found[0][1]] * 3


def test_what_one_rank_refuses_moves_nothing_on_another(config: RunConfig) -> None:
    flip(step_of(config, 6))
    before, seed = names(config), config.training.seed
    (speaks, lines), other = run_distributed(find_on_rank, 2, config, seed, 5)
    assert (speaks, other) == (True, (False, lines))
    assert [line.split(":")[0] for line in lines] == ["training.seed=5"]
    assert names(config) == before


FOLDERS = "give a folder like RUN/checkpoints/step_00000100, or the folder of a run"


@pytest.mark.parametrize("wish", ["always", "nowhere", "True"])
def test_resume_that_is_no_checkpoint_names_the_field_and_its_words(
    config: RunConfig, wish: str
) -> None:
    assert refusal(changed(config, "checkpoint", resume=wish)) == (
        f"checkpoint.resume='{wish}': does not exist; {FOLDERS}; auto is the newest good one of "
        "this run, and never a fresh start",
    )


def refused_weights(config: RunConfig, wish: str) -> tuple[str, ...]:
    given = changed(config, "checkpoint", weights=wish)
    with pytest.raises(RootsError) as caught:
        Candidates(given, Mesh.single(), root_of(config), LAYOUT).find_weights()
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    return caught.value.lines


def test_weights_that_are_no_checkpoint_name_the_field(config: RunConfig) -> None:
    assert refused_weights(config, "nowhere") == (
        f"checkpoint.weights='nowhere': does not exist; {FOLDERS}",
    )


def test_empty_urls_name_the_field(config: RunConfig, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/empty"
    rule = (
        "is no finished checkpoint and holds none; give the URL of a folder like step_00000100, or "
        "of the folder of a run"
    )
    assert refused_weights(config, url) == (f"checkpoint.weights='{url}': {rule}",)
    assert refusal(changed(config, "checkpoint", resume=url)) == (
        f"checkpoint.resume='{url}': {rule}",
    )


def test_weights_of_another_model_say_what_helps(config: RunConfig) -> None:
    folder = step_of(config, 6)
    other = changed(config, "model", num_layers=2)
    assert refused_weights(other, str(folder)) == (
        f"model.num_layers=2: is 4 in checkpoint {folder}; use the model of the config stored as "
        f"{folder}/config.yaml, or set checkpoint.weights to a checkpoint of this model",
    )
