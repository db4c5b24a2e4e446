"""Bugs of pipelines: tied weights, micro-batches, what other stages know."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "tied head scaled twice",
        "models/head.py",
        "y: Tensor = self.tokens(x_BTH, labels_BT, loss_weights_BT)",
        "y: Tensor = self.tokens(x_BTH * self.tokens.scale, labels_BT, loss_weights_BT)",
        "tests/models/test_build.py -k chained",
    ),
    PlantedBug(
        "bias of a tied head left out of the norm",
        "parallel/pipeline.py",
        ("        self._count_once(tied_weight)\n"),
        "",
        "tests/parallel/test_layouts_pairs.py -k 'bert-tp2-pp2'",
    ),
    PlantedBug(
        "evaluation of the first micro-batch alone",
        "training/engine/pipeline.py",
        "num_micro_batches=self.plan.accumulation, reduce_output",
        "num_micro_batches=1, reduce_output",
        "tests/parallel/test_layouts_pairs.py -k 'transformer-pp2'",
    ),
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
        "norm counts the second copy of a tied weight",
        "training/engine/gradients.py",
        ('    if getattr(parameter, "ds_pipe_replicated", False):\n        return False\n'),
        "",
        "tests/parallel/test_layouts_pairs.py -k 'transformer-pp2'",
    ),
    PlantedBug(
        "bf16 gradients of early stages from a stale buffer",
        "training/engine/deepspeed_json.py",
        '"bf16": {"enabled": True, "immediate_grad_update": True}}',
        '"bf16": {"enabled": True}}',
        "tests/parallel/test_layouts.py -k 'one_process_in_bf16 and pp2-zero1 and not tp2'",
    ),
    PlantedBug(
        "smoothing and z-loss lost in a pipeline",
        "training/engine/pipeline.py",
        "options = replace(BuildOptions.of_run(config), device=device.torch)",
        (
            "options = replace(BuildOptions.of_run(config), device=device.torch)\n"
            "    options = replace(options, label_smoothing=0.0, z_loss=0.0)"
        ),
        "tests/parallel/test_layouts_pairs.py -k 'transformer-pp2'",
    ),
    PlantedBug(
        "recompute every k-th block of a stage",
        "models/options.py",
        'return replace(self, recompute="none") if index % self.recompute_every else self',
        "return self",
        "tests/models/test_decoder.py -k recompute",
    ),
]
