"""Beams with a cache and padding write what beams without either write.

Legend: R texts, V vocabulary.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roots.generation.beam import BeamOptions, beam_search
from roots.generation.continue_beams import continue_by_beams
from roots.generation.generate import continue_tokens
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.generation.write import write_targets
from roots.models.attention.cache import KVCache
from tests.helpers.decoders import small_decoder, small_model
from tests.helpers.encoder_decoders import small_encoder_decoder

BEGIN, END = 5, 7
CPU = torch.device("cpu")


class Anew:
    """Reads the one row's texts anew for every token: no cache, no padding."""

    def __init__(self, logits, beams: int, start: list[int]) -> None:
        self.logits = logits
        self.texts = [list(start) for _ in range(beams)]

    def next_log_probabilities(self, tokens_R: Tensor | None) -> Tensor:
        if tokens_R is not None:
            self.texts = [[*text, t] for text, t in zip(self.texts, tokens_R.tolist())]
        with torch.no_grad():
            return torch.stack(
                [self.logits(torch.tensor([text]))[0, -1].log_softmax(-1) for text in self.texts]
            )

    def reorder(self, rows_R: Tensor) -> None:
        self.texts = [self.texts[r] for r in rows_R.tolist()]


def assert_equal(found, expected) -> None:
    assert found.token_ids == expected.token_ids
    assert found.stopped_by == expected.stopped_by
    assert found.score == pytest.approx(expected.score, rel=1e-4)


@pytest.mark.parametrize("position", ["learned", "rotary", "relative"])
def test_cached_batch_of_sources_equals_one_at_a_time(position: str) -> None:
    model = small_encoder_decoder(position=position, vocab_size=9, source_length=9)
    options = BeamOptions(num_beams=3, length_penalty=0.0, max_new_tokens=6)
    generator = torch.Generator().manual_seed(2)
    sources = [torch.randint(9, (n,), generator=generator).tolist() for n in (2, 9, 1, 6, 4)]
    # A token that these texts hold ends them, or no text would end at all.
    endless = write_targets(model, sources, options, begin=BEGIN, end=99)
    end = max(range(9), key=[token for text in endless for token in text.token_ids].count)
    found = write_targets(model, sources, options, begin=BEGIN, end=end, batch_size=2)
    assert {each.stopped_by for each in found} == {"end_of_document"}
    for source, hypothesis in zip(sources, found, strict=True):
        source_BS = torch.tensor([source])

        def logits(tokens_BT: Tensor, source_BS: Tensor = source_BS) -> Tensor:
            nothing_B = torch.zeros(1, dtype=torch.int64)
            lengths_B = torch.tensor([source_BS.shape[1]])
            starts_BT = torch.zeros_like(tokens_BT)
            return model(tokens_BT, source_BS, starts_BT, lengths_B, nothing_B)

        (expected,) = beam_search(
            Anew(logits, 3, [BEGIN]), options, rooms=[None], end=end, device=CPU
        )
        assert_equal(hypothesis, expected)


def test_search_never_copies_the_keys_and_values_of_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    select = KVCache.select_rows
    seen: list[list[int]] = []

    def watched(cache: KVCache, *arguments: Tensor, **options: bool) -> None:
        select(cache, *arguments, **options)
        assert all(layer.source is not None for layer in cache.layers)
        sources = [part for layer in cache.layers for part in layer.source or ()]
        seen.append([part.data_ptr() for part in sources])

    monkeypatch.setattr(KVCache, "select_rows", watched)
    model = small_encoder_decoder(vocab_size=20, source_length=9)
    options = BeamOptions(num_beams=3, max_new_tokens=6)
    write_targets(model, [[1, 2, 3], [4]], options, begin=BEGIN, end=99)
    assert len(seen) == 5
    assert all(addresses == seen[0] for addresses in seen)


def test_sources_beyond_the_model_are_cut_and_targets_end_with_learned_positions() -> None:
    model = small_encoder_decoder(vocab_size=20, source_length=4, sequence_length=6)
    options = BeamOptions(num_beams=2, max_new_tokens=50)
    long, short = write_targets(
        model, [[1, 2, 3, 4, 9, 9], [1, 2, 3, 4]], options, begin=BEGIN, end=19
    )
    assert long == short
    assert len(long.token_ids) == 6
    assert long.stopped_by == "sequence_length"


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_cached_batch_of_prompts_equals_one_at_a_time(position: str) -> None:
    decoder = small_decoder(small_model(position=position, vocab_size=20, init_std=0.3)).eval()
    options = BeamOptions(num_beams=3, length_penalty=1.0, max_new_tokens=8)
    prompts = [[3], [1, 2, 3, 4, 5], [9, 9]]

    def logits(tokens_BT: Tensor) -> Tensor:
        return decoder(tokens_BT, torch.zeros_like(tokens_BT), torch.zeros(1, dtype=torch.int64))

    found = continue_by_beams(decoder, prompts, options, end=END)
    for prompt, hypothesis in zip(prompts, found, strict=True):
        (expected,) = beam_search(
            Anew(logits, 3, prompt), options, rooms=[None], end=END, device=CPU
        )
        assert_equal(hypothesis, expected)


def test_one_beam_of_a_decoder_is_its_greedy_continuation() -> None:
    decoder = small_decoder(small_model(vocab_size=20, init_std=0.3)).eval()
    prompts = [[3], [1, 2, 3, 4, 5], [9] * 22]
    sampling = SamplingOptions(greedy=True)
    greedy = continue_tokens(
        decoder, prompts[:2], GenerationOptions(max_new_tokens=12, sampling=sampling), end=END
    )
    options = BeamOptions(num_beams=1, max_new_tokens=12)
    beams = continue_by_beams(decoder, prompts[:2], options, end=END)
    assert [beam.token_ids for beam in beams] == [each.token_ids for each in greedy]
    # 24 learned positions: two more can be read, and one written after them.
    assert len(continue_by_beams(decoder, prompts[2:], options, end=99)[0].token_ids) == 3


@pytest.mark.parametrize("beams", [1, 3])
def test_learned_positions_end_a_prompt_but_not_its_neighbours(beams: int) -> None:
    """24 positions: of a prompt of T tokens 25 - T are written, whatever the others have."""
    decoder = small_decoder(small_model(vocab_size=20, init_std=0.3)).eval()
    prompts = [[9] * 24, [3], list(range(13)), [2] * 12, [4] * 20]
    options = BeamOptions(num_beams=beams, max_new_tokens=12)
    found = continue_by_beams(decoder, prompts, options, end=99)
    assert [len(each.token_ids) for each in found] == [1, 12, 12, 12, 5]
    reasons = [each.stopped_by for each in found]
    full, short = "sequence_length", "max_new_tokens"
    assert reasons == [full, short, full, short, full]
    for prompt, hypothesis in zip(prompts, found, strict=True):
        (alone,) = continue_by_beams(decoder, [prompt], options, end=99)
        assert_equal(hypothesis, alone)
    if beams == 1:
        greedy = continue_tokens(
            decoder,
            prompts,
            GenerationOptions(max_new_tokens=12, sampling=SamplingOptions(greedy=True)),
            end=99,
        )
        assert [each.token_ids for each in found] == [each.token_ids for each in greedy]
        assert reasons == [each.stopped_by for each in greedy]
