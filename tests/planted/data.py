"""Bugs in the order of samples, in weights, masks and documents, in what is cached."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "weights of a sample by its length",
        "data/batch.py",
        "weights = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1.0)",
        "weights = mask / mask.shape[1]",
        "tests/data/test_batch.py",
    ),
    PlantedBug(
        "second token of a document masked for the first",
        "data/batch.py",
        "mask[starts[:, 1:] == np.arange(1, starts.shape[1])] = 0.0",
        "mask[starts[:, :-1] == np.arange(starts.shape[1] - 1)] = 0.0",
        "tests/data/test_batch.py",
    ),
    PlantedBug(
        "positions reset where documents are told apart alone",
        "data/batch.py",
        "told_apart = rules.separate_documents or rules.reset_positions",
        "told_apart = rules.separate_documents",
        "tests/data/test_batch.py",
    ),
    PlantedBug(
        "samples skip the token between them",
        "data/gpt.py",
        ("start = (first + place) * self.sequence_length\n"),
        ("start = (first + place) * (self.sequence_length + 1)\n"),
        "tests/data/test_gpt.py",
    ),
    PlantedBug(
        "sample that straddles epochs belongs to the later one",
        "data/index.py",
        "return -(-epoch * self.epoch_tokens // self.sequence_length)",
        "return epoch * self.epoch_tokens // self.sequence_length",
        "tests/data/test_index.py",
    ),
    PlantedBug(
        "every block of epochs in the order of the first",
        "data/index.py",
        'len(lengths), count, _from_epoch(derive_key(seed, "documents"), first)',
        'len(lengths), count, derive_key(seed, "documents")',
        "tests/data/test_index.py",
    ),
    PlantedBug(
        "cached order of another seed",
        "data/gpt.py",
        ('            "seed": self._seed,\n'),
        "",
        "tests/data/test_gpt.py",
    ),
    PlantedBug(
        "cached order of another split",
        "data/gpt.py",
        (
            '            "first_document": self.documents.start,\n'
            '            "last_document": self.documents.stop,\n'
        ),
        "",
        "tests/data/test_gpt.py",
    ),
    PlantedBug(
        "cached blend of other weights",
        "data/blend.py",
        '{"arrays": "blend", "weights": weights, "num_samples": num_samples}',
        '{"arrays": "blend", "num_samples": num_samples}',
        "tests/data/test_blend.py",
    ),
    PlantedBug(
        "split rounded down",
        "data/gpt.py",
        "bounds.append(round(num_documents * (sum(weights[:position]) / total)))",
        "bounds.append(int(num_documents * (sum(weights[:position]) / total)))",
        "tests/data/test_gpt.py",
    ),
    PlantedBug(
        "dropout masks repeat every step",
        "data/sampler.py",
        "return [derive_key(seed, use, step, place) for place in places]",
        "return [derive_key(seed, use, place) for place in places]",
        "tests/data/test_sampler.py",
    ),
    PlantedBug(
        "state of the step before",
        "data/loader.py",
        "yield batches, DataState((step + 1) * size)",
        "yield batches, DataState(step * size)",
        "tests/data/test_loader.py",
    ),
    PlantedBug(
        "resumed run reads from the beginning",
        "training/loop.py",
        "run.data.train.iterate(point.step)",
        "run.data.train.iterate(0)",
        "tests/training/test_loop.py",
    ),
    PlantedBug(
        "masked tokens weigh by the length of the row",
        "data/objectives/masked.py",
        "weights[row, chosen] = 1.0 / max(len(chosen), 1)",
        "weights[row, chosen] = 1.0 / labels.shape[1]",
        "tests/data/objectives/test_masked.py",
    ),
    PlantedBug(
        "sentinels count up",
        "data/objectives/span_corruption.py",
        "sentinel = first_sentinel - number",
        "sentinel = first_sentinel + number - plan.spans + 1",
        "tests/data/objectives/test_span_corruption.py",
    ),
    PlantedBug(
        "pairs in the same order every epoch",
        "data/objectives/pairs.py",
        "place_in_order(derive_key(self._key, epoch), len",
        "place_in_order(self._key, len",
        "tests/data/objectives/test_pairs.py",
    ),
    PlantedBug(
        "padding of a source counted",
        "data/objectives/rows.py",
        "source_lengths_B=torch.tensor([len(source) for source in sources], dtype=torch.int64),",
        "source_lengths_B=torch.full((len(sources),), source_size, dtype=torch.int64),",
        "tests/data/objectives/test_pairs.py",
    ),
    PlantedBug(
        "document goes on with the start of the one before",
        "data/gpt.py",
        ("starts[filled : filled + count] = filled\n"),
        ("starts[filled : filled + count] = before\n"),
        "tests/data/test_gpt.py",
    ),
]
