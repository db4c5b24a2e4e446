"""Bugs in what is measured and recorded: losses, tokens, speed, FLOPs."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "padding counted as predicted",
        "evaluation/perplexity.py",
        "tokens += window.predicted_tokens",
        "tokens += batch.labels_BT.numel()",
        "tests/evaluation/test_perplexity.py",
    ),
    PlantedBug(
        "last batch weighs as a full one",
        "evaluation/pairs.py",
        "nats += float(loss) * len(numbers)",
        "nats += float(loss) * batch_size",
        "tests/evaluation/test_pairs.py",
    ),
    PlantedBug(
        "bits that are nats",
        "evaluation/perplexity.py",
        "bits = total_nats / math.log(2) / num_bytes",
        "bits = total_nats / num_bytes",
        "tests/evaluation/test_perplexity.py",
    ),
    PlantedBug(
        "windows skip a token",
        "data/windows.py",
        "for begin in range(0, indexed.num_tokens - 1, sequence_length):",
        "for begin in range(0, indexed.num_tokens - 1, sequence_length + 1):",
        "tests/data/test_windows.py",
    ),
    PlantedBug(
        "documents alone under learned positions",
        "evaluation/perplexity.py",
        "return rules.separate_documents and (rules.reset_positions or not absolute)",
        "return rules.separate_documents and (rules.reset_positions or absolute or not absolute)",
        "tests/evaluation/test_perplexity.py",
    ),
    PlantedBug(
        "smoothing in evaluation",
        "models/head.py",
        "label_smoothing=self.label_smoothing if self.training else 0.0,",
        "label_smoothing=self.label_smoothing,",
        "tests/models/test_encoder_decoder.py -k 'label_smoothing'",
    ),
    PlantedBug(
        "z-loss in evaluation",
        "models/head.py",
        "z_loss=self.z_loss if self.training else 0.0,",
        "z_loss=self.z_loss,",
        "tests/models/test_encoder_decoder.py -k 'label_smoothing'",
    ),
    PlantedBug(
        "mean of the loop's last evaluation batch alone",
        "training/loop.py",
        "loss = sum(losses) / len(losses)",
        "loss = losses[-1]",
        "tests/training/test_loop.py",
    ),
    PlantedBug(
        "first byte of every document left out",
        "evaluation/perplexity.py",
        "first = 1 if document == 0 or rules.mask_document_end else 0",
        "first = 1",
        "tests/evaluation/test_perplexity.py -k 'every_byte'",
    ),
    PlantedBug(
        "tokens counted twice",
        "training/loop.py",
        "samples = point.consumed_samples + run.plan.global_batch_size",
        "samples = point.consumed_samples + 2 * run.plan.global_batch_size",
        "tests/training/test_loop.py",
    ),
    PlantedBug(
        "utilisation of one device",
        "training/callbacks/throughput.py",
        "total_peak = self.peak.flops_per_second * self.num_devices",
        "total_peak = self.peak.flops_per_second",
        "tests/training/callbacks/test_throughput.py",
    ),
    PlantedBug(
        "norm logged after clipping",
        "training/engine/step.py",
        ("self._norm, self.config.training.gradient_clipping)\n"),
        (
            "self._norm, self.config.training.gradient_clipping)\n"
            "            self._norm = global_gradient_norm(parameters, self.mesh)\n"
        ),
        "tests/training/test_adamw.py",
    ),
    PlantedBug(
        "values of attention not counted",
        "planner/flops.py",
        "return 2 * 2 * keys * model.num_heads * model.head_size",
        "return 2 * keys * model.num_heads * model.head_size",
        "tests/planner/test_flops.py",
    ),
    PlantedBug(
        "FLOPs of all experts",
        "planner/flops.py",
        "moe.top_k * expert_parameters(model)",
        "moe.num_experts * expert_parameters(model)",
        "tests/planner/test_flops.py",
    ),
    PlantedBug(
        "exact matches without normalising",
        "evaluation/texts.py",
        "exact = sum(normalised(text) == normalised(reference) for text, reference in pairs)",
        "exact = sum(text == reference for text, reference in pairs)",
        "tests/evaluation/test_texts.py",
    ),
    PlantedBug(
        "F1 of distinct words",
        "evaluation/texts.py",
        "common = sum((Counter(words) & Counter(wanted)).values())",
        "common = len(set(words) & set(wanted))",
        "tests/evaluation/test_texts.py",
    ),
    PlantedBug(
        "targets evaluated without their end",
        "evaluation/pairs.py",
        "targets = [[*ids, end] for ids in texts]",
        "targets = [[*ids] for ids in texts]",
        "tests/evaluation/test_pairs.py -k writes",
    ),
    PlantedBug(
        "backward pass counted once",
        "planner/flops.py",
        "BACKWARD_TO_FORWARD = 2",
        "BACKWARD_TO_FORWARD = 1",
        "tests/planner/test_flops.py",
    ),
    PlantedBug(
        "FLOPs of the padded vocabulary",
        "planner/flops.py",
        "head=2 * (model.hidden_size * model.vocab_size + transform),",
        "head=2 * (model.hidden_size * model.padded_vocab_size + transform),",
        "tests/planner/test_flops.py",
    ),
    PlantedBug(
        "speed of one replica",
        "training/loop.py",
        "run.throughput.rates(run.plan.global_batch_size, micro_batches, seconds)",
        (
            "run.throughput.rates(\n"
            "        run.plan.global_batch_size // run.plan.data_parallel, micro_batches, seconds\n"
            "    )"
        ),
        "tests/training/test_loop.py",
    ),
]
