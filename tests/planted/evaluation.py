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
        "run.callbacks.on_evaluate_end(step, sum(losses) / len(losses))",
        "run.callbacks.on_evaluate_end(step, losses[-1])",
        "tests/training/test_loop.py",
    ),
]
