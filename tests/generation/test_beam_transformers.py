"""Our search over transformers' own T5 writes what transformers' `generate` writes.

Legend: R texts, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from roots.generation.beam import BeamOptions, beam_search

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (`pip install transformers`)"
)
BEGIN, END, VOCAB, ROWS, NEW = 0, 1, 9, 6, 10


def tiny_t5(seed: int, **changes: Any):
    """A random T5 that is sure of little, so that beams end at different lengths."""
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(
        vocab_size=VOCAB,
        decoder_start_token_id=BEGIN,
        pad_token_id=BEGIN,
        eos_token_id=END,
        dropout_rate=0.0,
        **{**sizes, **changes},
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.8)
    return model


class Texts:
    """Every text read anew with its source, without any cache."""

    def __init__(self, model, sources_BS: Tensor, beams: int) -> None:
        self.model = model
        self.sources_RS = sources_BS.repeat_interleave(beams, dim=0)
        self.texts_RT = torch.full((len(self.sources_RS), 1), BEGIN)

    def next_log_probabilities(self, tokens_R: Tensor | None) -> Tensor:
        if tokens_R is not None:
            self.texts_RT = torch.cat([self.texts_RT, tokens_R[:, None]], dim=1)
        with torch.no_grad():
            out = self.model(input_ids=self.sources_RS, decoder_input_ids=self.texts_RT)
        return out.logits[:, -1].log_softmax(-1)

    def reorder(self, rows_R: Tensor) -> None:
        self.texts_RT = self.texts_RT[rows_R]


@pytest.mark.parametrize(
    "beams, penalty, ends",
    [
        (4, 1.0, [END]),
        (4, 0.0, [END]),
        (3, 2.0, [END]),
        (2, -1.0, [END]),
        (3, 1.0, [END, 5]),
        (2, 0.0, [7, END, 3]),
    ],
)
def test_texts_and_scores_are_those_of_transformers(
    beams: int, penalty: float, ends: list[int]
) -> None:
    ended = 0
    for seed in range(3):
        model = tiny_t5(seed)
        sources_BS = torch.randint(2, VOCAB, (ROWS, 7))
        theirs = model.generate(
            sources_BS,
            num_beams=beams,
            length_penalty=penalty,
            max_new_tokens=NEW,
            eos_token_id=ends,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        options = BeamOptions(num_beams=beams, length_penalty=penalty, max_new_tokens=NEW)
        ours = beam_search(
            Texts(model, sources_BS, beams),
            options,
            rooms=[None] * ROWS,
            end=ends,
            device=torch.device("cpu"),
        )
        for row, hypothesis in enumerate(ours):
            written = theirs.sequences[row, 1:].tolist()
            ended_at = [place for place, token in enumerate(written) if token in ends]
            assert list(hypothesis.token_ids) == written[: min([*ended_at, len(written)])]
            reason = "end_of_document" if ended_at else "max_new_tokens"
            assert hypothesis.stopped_by == reason
            assert hypothesis.score == pytest.approx(float(theirs.sequences_scores[row]), rel=1e-4)
            ended += bool(ended_at)
    assert 0 < ended < 3 * ROWS, "some texts end, and some reach the limit"
