"""A run whose machine is lost goes on from its mirror, and may name checkpoints by URLs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from roots.checkpoint import folders, manifest, retention
from roots.checkpoint.mirror import Mirror
from roots.checkpoint.storage import storage_at
from roots.checkpoint.stored import StoredCheckpoints
from roots.config import RunConfig
from roots.errors import ExitCode, RootsError
from roots.parallel.mesh import Mesh
from roots.training.resuming import Candidates
from tests.helpers.checkpoints import STATE_NAME, WEIGHTS_NAME, flip_bit, save_checkpoint
from tests.helpers.distributed import run_distributed
from tests.helpers.places import place_of
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import differences, run, state_of

LAYOUT = manifest.Layout(1, 1, 1, 0, "fp32")
STEPS = 6


def config_of(tmp_path: Path, **checkpoint: Any) -> RunConfig:
    place = place_of("memory", tmp_path)
    return small_config(tmp_path / "data", tmp_path, checkpoint={"mirror": place, **checkpoint})


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run with checkpoints of steps 2, 4 and 6, here and in its mirror."""
    config = config_of(tmp_path)
    for step in (2, 4, 6):
        save_checkpoint(config, step, layout=LAYOUT)
    mirror_of(config).follow()
    return config


def root_of(config: RunConfig) -> Path:
    return config.run_directory / folders.CHECKPOINTS_FOLDER


def mirror_of(config: RunConfig) -> Mirror:
    storage = storage_at(url_of(config))
    return Mirror(root_of(config), StoredCheckpoints(storage), retention.Keep(0))


def url_of(config: RunConfig) -> str:
    return f"{config.checkpoint.mirror}/{config.run.name}"


def candidates(config: RunConfig) -> Candidates:
    return Candidates(config, Mesh.single(), root_of(config), LAYOUT, mirror_of(config))


def lose_all(config: RunConfig) -> None:
    shutil.rmtree(config.run_directory)
    root_of(config).mkdir(parents=True)


def test_fresh_machine_goes_on_from_the_mirror(config: RunConfig) -> None:
    lose_all(config)
    found = candidates(config).find()
    assert found == root_of(config) / folders.step_name(6)
    assert sorted(path.name for path in root_of(config).iterdir()) == ["latest", found.name]
    assert (root_of(config) / "latest").read_text() == found.name
    sealed = manifest.read_manifest(found)
    assert manifest.damage_of(found, sealed, sealed.files) == []


def test_what_is_good_here_comes_first(config: RunConfig) -> None:
    flip_bit(root_of(config) / folders.step_name(6) / STATE_NAME)
    assert candidates(config).find() == root_of(config) / folders.step_name(4)


def test_mirror_stands_in_where_all_here_is_damaged(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 6):
        flip_bit(root_of(config) / folders.step_name(step) / STATE_NAME)
    assert candidates(config).find() == root_of(config) / folders.step_name(6)
    kept = sorted(path.name for path in root_of(config).glob("damaged_*"))
    assert kept == [f"damaged_{folders.step_name(step)}" for step in (2, 4, 6)]
    assert caplog.messages[-1] == f"{root_of(config)}/step_00000006 is the newest good checkpoint"


def test_run_does_not_begin_anew_over_a_mirror_without_a_good_one(config: RunConfig) -> None:
    lose_all(config)
    storage = storage_at(url_of(config))
    for step in (2, 4, 6):
        storage.remove(f"{folders.step_name(step)}/{manifest.MANIFEST_NAME}")
    with pytest.raises(RootsError) as caught:
        candidates(config).find()
    assert caught.value.lines == (
        *(manifest.no_manifest(f"{url_of(config)}/{folders.step_name(n)}") for n in (6, 4, 2)),
        f"checkpoint.mirror='{url_of(config)}': holds none that is good; bring the files back from "
        "a copy, or set another run.name to begin anew",
    )


def test_fresh_start_does_not_overlook_the_mirror(config: RunConfig) -> None:
    lose_all(config)
    never = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"resume": "never"})}
    )
    with pytest.raises(RootsError) as caught:
        candidates(never).find()
    assert caught.value.lines == (
        f"checkpoint.resume='never': cannot start afresh over {url_of(config)}/step_00000006; set "
        "checkpoint.resume=auto to go on from there, or another run.name",
    )


def test_mirror_of_another_model_is_refused(config: RunConfig) -> None:
    lose_all(config)
    model = config.model.model_copy(update={"num_layers": 2})
    with pytest.raises(RootsError, match=r"model\.num_layers=2: is 4 in checkpoint"):
        candidates(config.model_copy(update={"model": model})).find()


def test_resume_and_weights_take_urls(config: RunConfig, tmp_path: Path) -> None:
    url = f"{url_of(config)}/{folders.step_name(4)}"
    wishes = config.checkpoint.model_copy(update={"resume": url, "weights": url})
    other = config.run.model_copy(update={"name": "other"})
    fresh = config.model_copy(update={"checkpoint": wishes, "run": other})
    weights = candidates(fresh).find_weights()
    assert weights is not None
    assert weights.parent.parent == tmp_path / "other" / "fetched"
    assert (weights / WEIGHTS_NAME).is_file()
    assert not (weights / STATE_NAME).exists()
    found = candidates(fresh).find()
    assert found == weights
    assert (weights / STATE_NAME).is_file()


@pytest.mark.distributed
def test_lost_run_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data")
    place = place_of("file", tmp_path)
    config = small_config(
        prefix,
        tmp_path / "runs",
        training={"steps": STEPS},
        parallel={"zero_stage": 1},
        checkpoint={"every_steps": 2, "keep_last": 2, "mirror": place},
    )
    assert set(run_distributed(run, 2, config)) == {ExitCode.DONE}
    stored = mirror_of(config).stored
    assert stored.names() == [folders.step_name(step) for step in (4, 6)]
    final = root_of(config) / folders.step_name(STEPS)
    whole = state_of(final)
    shutil.rmtree(config.run_directory)
    stored.remove(folders.step_name(STEPS))
    assert set(run_distributed(run, 2, config)) == {ExitCode.DONE}
    assert differences(whole, state_of(final)) == []
    assert stored.names() == [folders.step_name(step) for step in (4, 6)]
    assert len(list((config.run_directory / "metrics.jsonl").open())) == STEPS - 4
    # What was not copied is, also by a start that has nothing left to train.
    stored.remove(folders.step_name(STEPS))
    assert run_distributed(run, 1, config) == [ExitCode.DONE]
    assert stored.names() == [folders.step_name(step) for step in (4, 6)]
