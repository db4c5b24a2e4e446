"""Bugs of pipelines: tied weights, micro-batches, what other stages know."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "tied copy starts with values of its own",
        "models/init.py",
        ("    name = shard.tied_to or shard.name\n"),
        ("    name = shard.name\n"),
        "tests/models/test_init.py -k tied_copy",
    ),
    PlantedBug(
        "expert loads of the first stage alone",
        "training/router_statistics.py",
        "layers = [row for part in all_gather_object(mesh.pipeline, rows) for row in part]",
        "layers = rows",
        "tests/training/test_router_statistics.py",
    ),
    PlantedBug(
        "bf16 gradients of early stages from a stale buffer",
        "training/engine/deepspeed_json.py",
        '"bf16": {"enabled": True, "immediate_grad_update": True}}',
        '"bf16": {"enabled": True}}',
        "tests/parallel/test_layouts.py -k 'one_process_in_bf16 and pp2-zero1 and not tp2'",
    ),
    PlantedBug(
        "recompute every k-th block of a stage",
        "models/options.py",
        'return replace(self, recompute="none") if index % self.recompute_every else self',
        "return self",
        "tests/models/test_decoder.py -k recompute",
    ),
]
