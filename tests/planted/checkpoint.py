"""Bugs in what is saved and read back."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "part of a stored box read from its beginning",
        "checkpoint/tensor_file.py",
        "offsets = tuple(a + b for a, b in zip(stored.start, part.offsets, strict=True))",
        "offsets = stored.start",
        "tests/checkpoint/test_weights.py",
    ),
    PlantedBug(
        "fused parts taken for rows that follow one another",
        "checkpoint/boxes.py",
        "offsets = _with(box.offsets, dim, first + low - local)",
        "offsets = _with(box.offsets, dim, shard.intervals[0][0] + low)",
        "tests/checkpoint/test_weights.py",
    ),
    PlantedBug(
        "oldest checkpoint taken for the latest",
        "checkpoint/folders.py",
        "return found[-1] if found else None",
        "return found[0] if found else None",
        "tests/checkpoint/test_folders.py",
    ),
    PlantedBug(
        "samples consumed not in the manifest",
        "training/resume_point.py",
        "            self.consumed_samples,\n",
        "            self.step,\n",
        "tests/integration/test_resume.py -k documented_fields",
    ),
    PlantedBug(
        "an update does not wait for the copy of what it changes",
        "training/engine/step.py",
        "        self.before_update()\n        return self._reason is not None\n",
        "        return self._reason is not None\n",
        "tests/training/engine/test_decision.py -k one_nan",
    ),
    PlantedBug(
        "nobody asks an update to wait for a copy",
        "training/saving.py",
        "            engine.before_update = self.wait_for_copy\n",
        "",
        "tests/training/test_saving.py -k waits_for_the_copy",
    ),
    PlantedBug(
        "config of the run that resumes is not the model's",
        "training/saving.py",
        "        return dump_config(self._config)\n",
        (
            "        before = folders.latest_checkpoint(self._root)\n"
            "        kept = self._config if before is None else folders.read_config(before)\n"
            "        return dump_config(kept)\n"
        ),
        "tests/training/test_course.py -k told_when",
    ),
    PlantedBug(
        "adam counts from zero after a resume",
        "training/engine/checkpoint_state.py",
        "set_steps_made(optimizer, state.updates)",
        "set_steps_made(optimizer, 0)",
        "tests/training/test_adamw.py -k after_a_resume",
    ),
    PlantedBug(
        "loss scale of a new run after a resume",
        "training/engine/checkpoint_state.py",
        "_set_scale(optimizer, state.loss_scale)",
        "_set_scale(optimizer, None)",
        "tests/training/test_adamw.py -k after_a_resume",
    ),
    PlantedBug(
        "fields that the checkpoint alone reads may change",
        "training/resuming.py",
        "idle = idle_fields(model) & idle_fields(self.config.model)",
        "idle = idle_fields(self.config.model)",
        "tests/integration/test_resume.py -k another_model",
    ),
    PlantedBug(
        "another seed goes on from a checkpoint",
        "training/data_order.py",
        "        if seed != was:\n",
        "        if False:\n",
        "tests/integration/test_resume.py -k changed_seed",
    ),
    PlantedBug(
        "the first file of a checkpoint read alone",
        "training/resuming.py",
        "share = names[self.mesh.rank :: self.mesh.world.size]",
        "share = names[:1]",
        "tests/training/test_resuming.py -k ranks",
    ),
    PlantedBug(
        "damaged checkpoints left in the way",
        "training/resuming.py",
        "        if self.mesh.rank != 0 or not damaged:\n",
        "        if True:\n",
        "tests/training/test_resuming.py -k set_aside",
    ),
    PlantedBug(
        "the worst checkpoints kept for the best",
        "checkpoint/retention.py",
        "kept.update(-step for _, step in sorted(measured)[: keep.best])",
        "kept.update(-step for _, step in sorted(measured)[-keep.best :])",
        "tests/checkpoint/test_retention.py",
    ),
]
