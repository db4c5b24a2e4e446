"""An imported T5 writes by beams what transformers' `generate` writes with the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from roots.data.objectives.choice import begin_token
from roots.device import Device
from roots.exchange.hf.importing import import_hf
from roots.generation.beam import BeamOptions, Hypothesis
from roots.generation.load import load_model
from roots.generation.write import write_targets
from tests.generation.test_beam_transformers import BEGIN, END, VOCAB, tiny_t5

SEEDS, BEAMS, NEW = range(5), 4, 16
LENGTHS = (7, 3, 7, 5, 1, 6)
# Gated, its stacks of different depths, and with so few buckets that far positions share some.
# The cache of `generate` has room for as many layers as the encoder has.
DEEPER: dict[str, Any] = {
    "num_layers": 3,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 4,
    "relative_attention_max_distance": 6,
}


def sources_of(seed: int) -> list[list[int]]:
    """Sources of different lengths, each with its end."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, VOCAB, (length,), generator=generator) for length in LENGTHS]
    return [[*row.tolist(), END] for row in rows]


def written_by_generate(
    model: Any, sources: list[list[int]], penalty: float
) -> list[tuple[list[int], float]]:
    """The best text of every source with its end, if it has one, and its score."""
    longest = max(len(source) for source in sources)
    padding = [longest - len(source) for source in sources]
    found = model.generate(
        torch.tensor([[*s, *[BEGIN] * p] for s, p in zip(sources, padding, strict=True)]),
        attention_mask=torch.tensor([[1] * (longest - p) + [0] * p for p in padding]),
        num_beams=BEAMS,
        length_penalty=penalty,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = [row[1:] for row in found.sequences.tolist()]
    ends = [text.index(END) + 1 if END in text else len(text) for text in texts]
    cut = [text[:end] for text, end in zip(texts, ends, strict=True)]
    return list(zip(cut, found.sequences_scores.tolist(), strict=True))


def assert_alike(found: list[Hypothesis], expected: list[tuple[list[int], float]]) -> None:
    for hypothesis, (text, score) in zip(found, expected, strict=True):
        end = [END] if hypothesis.stopped_by == "end_of_document" else []
        assert [*hypothesis.token_ids, *end] == text
        assert hypothesis.score == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize("penalty", [1.0, 0.0, 1.5, -1.0])
@pytest.mark.parametrize("changes", [{}, DEEPER], ids=["t5", "deeper"])
def test_texts_and_scores_are_those_of_the_original(
    changes: dict[str, Any], penalty: float, tmp_path: Path
) -> None:
    ended = 0
    for seed in SEEDS:
        theirs = tiny_t5(seed, **changes)
        theirs.save_pretrained(tmp_path / f"hf-{seed}")
        import_hf(tmp_path / f"hf-{seed}", tmp_path / f"roots-{seed}")
        model = load_model(tmp_path / f"roots-{seed}", Device("cpu", 0))
        sources = sources_of(seed)
        expected = written_by_generate(theirs, sources, penalty)
        options = BeamOptions(num_beams=BEAMS, length_penalty=penalty, max_new_tokens=NEW)
        begin = begin_token(model.config.data, END)
        for batch_size in (32, 2):
            found = write_targets(
                model.encoder_decoder,
                sources,
                options,
                begin=begin,
                end=END,
                batch_size=batch_size,
            )
            assert_alike(found, expected)
        ended += sum(each.stopped_by == "end_of_document" for each in found)
    assert 0 < ended < len(SEEDS) * len(LENGTHS), "some texts end, and some reach the limit"
