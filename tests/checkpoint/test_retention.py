"""Which checkpoints stay: rules that hold for any steps and losses, and what the removal spares."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roots.checkpoint import folders, manifest, retention
from roots.checkpoint.retention import Keep, steps_to_keep
from roots.errors import RootsError

LAYOUT = manifest.Layout(1, 1, 1, 0, "fp32")
# Few values, so that equal losses are common.
losses = st.dictionaries(st.integers(0, 40), st.none() | st.sampled_from([0.5, 1.0, 2.0, 3.5]))
keeps = st.builds(Keep, st.integers(0, 4), st.integers(0, 12), st.integers(0, 4))


def save(root: Path, step: int, loss: float | None = None) -> Path:
    path = root / folders.step_name(step)
    path.mkdir(parents=True)
    (path / "weights").write_text("w")
    files = manifest.describe_files(path, ["weights"])
    manifest.write_manifest(path, manifest.Manifest(step, step, LAYOUT, files, loss))
    return path


def steps_below(root: Path) -> list[int]:
    return [folders.step_of(path) for path in folders.finished_checkpoints(root)]


@given(losses=losses, keep=keeps)
def test_newest_multiples_and_best_stay_and_nothing_else(
    losses: dict[int, float | None], keep: Keep
) -> None:
    kept = steps_to_keep(losses, keep)
    assert kept <= set(losses)
    if keep.last == 0:
        assert kept == set(losses)
        return
    for step, loss in losses.items():
        newer = sum(other > step for other in losses)
        better = sum(
            other is not None and loss is not None and (other, -at) < (loss, -step)
            for at, other in losses.items()
        )
        wanted = (
            newer < keep.last
            or (keep.every_steps > 0 and step % keep.every_steps == 0)
            or (loss is not None and better < keep.best)
        )
        assert (step in kept) == wanted, step


@given(losses=losses.filter(bool), keep=keeps)
def test_newest_stays(losses: dict[int, float | None], keep: Keep) -> None:
    assert max(losses) in steps_to_keep(losses, keep)


@given(losses=losses, keep=keeps)
def test_choosing_after_every_save_is_choosing_once(
    losses: dict[int, float | None], keep: Keep
) -> None:
    left: dict[int, float | None] = {}
    for step in sorted(losses):
        left[step] = losses[step]
        kept = steps_to_keep(left, keep)
        left = {each: loss for each, loss in left.items() if each in kept}
    assert set(left) == steps_to_keep(losses, keep)


@given(losses=losses, keep=keeps)
def test_more_is_kept_by_more(losses: dict[int, float | None], keep: Keep) -> None:
    kept = steps_to_keep(losses, keep)
    if keep.last:
        assert kept <= steps_to_keep(losses, Keep(keep.last + 1, keep.every_steps, keep.best))
    assert kept <= steps_to_keep(losses, Keep(keep.last, keep.every_steps, keep.best + 1))


@settings(max_examples=20, deadline=None)
@given(losses=losses, keep=keeps)
def test_what_is_removed_is_what_is_not_chosen(
    losses: dict[int, float | None], keep: Keep, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("root")
    for step, loss in losses.items():
        save(root, step, loss)
    removed = [folders.step_of(path) for path in retention.apply(root, keep)]
    assert removed == sorted(set(losses) - steps_to_keep(losses, keep))
    assert steps_below(root) == sorted(steps_to_keep(losses, keep))


def test_best_are_those_of_what_the_run_judges_by(tmp_path: Path) -> None:
    """As its newest one says; those judged by something else cannot be compared with it."""
    costs = {1: ("cloze/acc", -0.9), 2: ("cloze/acc", -0.5), 3: ("loss", None), 4: ("other", -9.0)}
    costs |= {5: ("cloze/acc", None), 6: ("cloze/acc", -0.1)}
    for step, best in costs.items():
        path = save(tmp_path, step, loss=float(step))
        sealed = manifest.read_manifest(path)
        manifest.write_manifest(path, dataclasses.replace(sealed, best=best))
        assert manifest.read_manifest(path).best == best
    removed = retention.apply(tmp_path, Keep(1, best=2))
    assert [folders.step_of(path) for path in removed] == [3, 4, 5]
    with pytest.raises(RootsError) as caught:
        retention.prune(tmp_path / "none", Keep(1, best=2))
    assert "chooses by held-out losses" in caught.value.lines[0]


def test_unfinished_and_set_aside_ones_are_spared_and_do_not_count(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / folders.step_name(4)).mkdir()
    (tmp_path / "superseded_step_00000009").mkdir()
    assert retention.apply(tmp_path, Keep(2)) == [tmp_path / folders.step_name(1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000002",
        "step_00000003",
        "step_00000004",
        "superseded_step_00000009",
    ]


@pytest.mark.parametrize("damage", ["missing", "short", "manifest"])
def test_nothing_is_removed_unless_the_newest_is_sealed(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    if damage == "missing":
        (newest / "weights").unlink()
        line = f"checkpoint file='{newest}/weights': is missing; use another checkpoint of the run"
    elif damage == "short":
        (newest / "weights").write_text("")
        rule = "has 0 bytes where the manifest says 1"
        line = f"checkpoint file='{newest}/weights': {rule}; use another checkpoint of the run"
    else:
        (newest / manifest.MANIFEST_NAME).write_text("[]")
        rule = "is not readable (TypeError: no object)"
        line = f"manifest='{newest}/manifest.json': {rule}; use another checkpoint of the run"
    assert retention.apply(tmp_path, Keep(1)) == []
    assert steps_below(tmp_path) == [1, 2]
    assert caplog.messages == [f"kept all checkpoints, since the newest is not whole: {line}"]


def test_older_one_with_a_broken_manifest_has_no_loss(tmp_path: Path) -> None:
    broken = save(tmp_path, 1, 0.1)
    (broken / manifest.MANIFEST_NAME).write_text("{")
    save(tmp_path, 2, 0.2), save(tmp_path, 3, math.pi)
    assert retention.apply(tmp_path, Keep(1, best=1)) == [broken]


def test_link_to_a_checkpoint_loses_the_link_alone(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    target = save(elsewhere, 1)
    save(root, 2)
    (root / target.name).symlink_to(target)
    assert retention.apply(root, Keep(1)) == [root / target.name]
    assert steps_below(root) == [2]
    assert steps_below(elsewhere) == [1]
