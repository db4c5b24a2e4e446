"""Bugs in what is saved and read back."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "part of a stored slice read from its beginning",
        "checkpoint/weights.py",
        "first = piece.offset + position - piece.start",
        "first = piece.offset",
        "tests/checkpoint/test_weights.py",
    ),
    PlantedBug(
        "fused parts joined in the order of the files",
        "checkpoint/weights.py",
        "tuple(sorted(pieces[name], key=lambda p: (p.start, p.stop)))",
        "tuple(sorted(pieces[name], key=lambda p: (p.file, p.offset)))",
        "tests/checkpoint/test_weights.py",
    ),
    PlantedBug(
        "experts of the first rank on every rank",
        "training/engine/step.py",
        ("        if experts:\n            load_weights(folder / tag, experts)\n"),
        "",
        "tests/integration/test_resume.py -k 'stopped_and_resumed and bf16-ep2 and not pp2'",
    ),
    PlantedBug(
        "oldest checkpoint taken for the latest",
        "checkpoint/folders.py",
        "return found[-1] if found else None",
        "return found[0] if found else None",
        "tests/checkpoint/test_folders.py",
    ),
    PlantedBug(
        "experts of the first rank saved alone",
        "checkpoint/weights.py",
        "if expert_rank > 0 and not shard.expert:",
        "if expert_rank > 0:",
        "tests/checkpoint/test_weights.py",
    ),
    PlantedBug(
        "replicated tensors of a stage written by its last rank",
        "checkpoint/weights.py",
        '    place = f"pipeline_{pipeline_rank:03d}_tensor_{tensor_rank:03d}"',
        '    place = f"pipeline_000_tensor_{tensor_rank:03d}"',
        "tests/checkpoint/test_weights.py -k stages",
    ),
    PlantedBug(
        "samples consumed not in the manifest",
        "training/checkpointing.py",
        "            point.step, point.consumed_samples, self.layout, files, point.evaluation\n",
        "            point.step, point.step, self.layout, files, point.evaluation\n",
        "tests/integration/test_resume.py -k documented_fields",
    ),
    PlantedBug(
        "config of the run that resumes is not the model's",
        "training/checkpointing.py",
        "            text = dump_config(self.config)\n",
        (
            "            before = folders.latest_checkpoint(self.root)\n"
            "            kept = self.config if before is None else folders.read_config(before)\n"
            "            text = dump_config(kept)\n"
        ),
        "tests/training/test_course.py -k told_when",
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
        "training/resuming.py",
        ('            ("seed", self.config.training.seed, stored.training.seed),\n'),
        "",
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
        "        if self.mesh.rank == 0 and damaged:\n",
        "        if False:\n",
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
