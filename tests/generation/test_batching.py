"""Continuous batching: nothing written beside a text changes it, and places are reused."""

from __future__ import annotations

import pytest
import torch

from roots.errors import RootsError
from roots.generation.batching import Batch, Event, Request
from roots.generation.generate import run_all
from roots.generation.network import Network, Piece
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.models.attention.rows import BLOCK_TOKENS
from roots.models.decoder import Decoder
from tests.helpers.decoders import small_decoder, small_model

GREEDY = SamplingOptions(greedy=True)
LENGTHS = (5, 1, 17, 9, 3, 12, 2, 8)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    model = small_model(position="rotary", num_kv_heads=2, init_std=0.3)
    return small_decoder(model).eval()


def request(length: int, seed: int = 0, **options: object) -> Request:
    """A prompt of so many tokens, which `seed` makes up."""
    generator = torch.Generator().manual_seed(100 * length + seed)
    ids = torch.randint(100, (length,), generator=generator).tolist()
    given = {"max_new_tokens": 6, "sampling": GREEDY, **options}
    return Request(tuple(ids), GenerationOptions(**given))  # type: ignore[arg-type]


def run(batch: Batch, late: dict[int, list[Request]]) -> dict[int, list[Event]]:
    """Run to the end; `late` requests come before the step of their number."""
    told: dict[int, list[Event]] = {}
    step = 0
    while not batch.idle or any(number >= step for number in late):
        for each in late.get(step, []):
            batch.add(each)
        for event in batch.step():
            told.setdefault(event.ticket, []).append(event)
        step += 1
    return told


@pytest.mark.parametrize("max_rows, tokens_per_step", [(1, 1), (3, 4), (8, 7), (32, 512)])
def test_texts_are_those_written_alone_whenever_they_come(
    decoder: Decoder, max_rows: int, tokens_per_step: int
) -> None:
    """Prompts in parts, texts that wait, drawn and greedy ones side by side."""
    warm = SamplingOptions(temperature=0.9, top_p=0.95, frequency_penalty=0.5)
    requests = [
        request(length, max_new_tokens=2 + number, sampling=warm if number % 2 else GREEDY, seed=0)
        for number, length in enumerate(LENGTHS)
    ]
    network = Network.of(decoder)
    alone = [run_all(Batch(network), [each])[0] for each in requests]
    batch = Batch(network, max_rows=max_rows, tokens_per_step=tokens_per_step)
    late = {0: requests[:3], 2: requests[3:4], 5: requests[4:]}
    told = run(batch, late)
    for ticket, expected in enumerate(alone):
        tokens = [each.token_id for each in told[ticket] if each.token_id is not None]
        assert tuple(tokens) == expected.token_ids
        assert [each.stopped_by for each in told[ticket]][-1] == expected.stopped_by
        assert all(each.stopped_by is None for each in told[ticket][:-1])


def test_likelihoods_are_those_of_the_whole_forward(decoder: Decoder) -> None:
    options = {"log_probabilities": 3, "of_prompt": True}
    requests = [request(length, **options) for length in LENGTHS]
    told = run(Batch(Network.of(decoder), max_rows=4, tokens_per_step=6), {0: requests})
    for ticket, each in enumerate(requests):
        events = told[ticket]
        prompt = [one for event in events for one in event.prompt]
        new = [event.likelihood for event in events if event.likelihood is not None]
        assert [one.token_id for one in prompt] == list(each.token_ids[1:])
        text = torch.tensor([[*each.token_ids, *(one.token_id for one in new)]])
        starts, keys = torch.zeros_like(text), torch.zeros(1, dtype=torch.int64)
        with torch.no_grad():
            log_p = decoder(text, starts, keys)[0].log_softmax(-1)
        found = torch.tensor([one.log_probability for one in [*prompt, *new]])
        expected = log_p[:-1].gather(-1, text[0, 1:, None]).squeeze(-1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for place, one in enumerate([*prompt, *new]):
            values, indices = log_p[place].topk(3)
            assert [token for token, _ in one.likeliest] == indices.tolist()
            likeliest = torch.tensor([value for _, value in one.likeliest])
            torch.testing.assert_close(likeliest, values, rtol=1e-5, atol=1e-5)


def test_a_prompt_alone_can_be_asked_about(decoder: Decoder) -> None:
    options = {"max_new_tokens": 0, "log_probabilities": 0, "of_prompt": True}
    (events,) = run(Batch(Network.of(decoder)), {0: [request(7, **options)]}).values()
    (event,) = events
    assert (event.token_id, event.likelihood, event.stopped_by) == (None, None, "max_new_tokens")
    assert len(event.prompt) == 6
    assert all(one.likeliest == () for one in event.prompt)


def test_blocks_are_reserved_counted_and_given_back(decoder: Decoder) -> None:
    """Two of three texts fit; the third begins when one of them has left."""
    batch = Batch(Network.of(decoder), max_blocks=5)
    for seed in range(3):
        batch.add(request(10, seed, max_new_tokens=BLOCK_TOKENS))
    batch.step()
    assert (batch.running, batch.waiting, batch.reserved_blocks) == (2, 1, 4)
    assert batch.rows.blocks == 2
    batch.cancel(0)
    batch.step()
    assert (batch.running, batch.waiting, len(batch.rows)) == (2, 0, 2)
    while not batch.idle:
        batch.step()
        assert batch.rows.blocks <= batch.reserved_blocks
    assert (batch.rows.blocks, len(batch.rows), batch.reserved_blocks) == (0, 0, 0)
    assert all(not layer.held for layer in batch.rows.layers)


def test_cancelled_texts_are_not_heard_of_again(decoder: Decoder) -> None:
    batch = Batch(Network.of(decoder), max_rows=1)
    first, second, third = (batch.add(request(4, seed)) for seed in range(3))
    batch.step()
    batch.cancel(first)
    batch.cancel(third)
    batch.cancel(third)
    told = run(batch, {})
    assert list(told) == [second]


def test_a_text_needs_no_more_blocks_than_there_are(decoder: Decoder) -> None:
    batch = Batch(Network.of(decoder), max_blocks=2)
    with pytest.raises(RootsError) as error:
        batch.add(request(10, max_new_tokens=3 * BLOCK_TOKENS))
    assert error.value.lines == (
        "prompt tokens=10: needs 4 blocks of the cache, which has 2; "
        "shorten the prompt or ask for fewer new tokens",
    )
    assert batch.idle


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RootsError) as error:
        Request((), GenerationOptions())
    assert error.value.lines == (
        "prompt: is empty, and nothing can follow it; give at least one token",
    )


def test_rows_go_on_from_what_another_has_read(decoder: Decoder) -> None:
    """A fork reads on as its source would, and leaves it as it was."""
    network = Network.of(decoder)
    ids = request(BLOCK_TOKENS + 5).token_ids
    rows = network.rows()
    source = rows.add()

    def logits(row: int, tokens: tuple[int, ...]) -> torch.Tensor:
        return network.read(rows, [Piece(row, tokens)], [len(tokens) - 1], torch.clone)

    logits(source, ids[:-2])
    fork = rows.fork(source)
    on_fork = [logits(fork, (token,)) for token in (ids[-2], ids[-1])]
    assert rows.length(source) == len(ids) - 2
    assert rows.length(fork) == len(ids)
    on_source = [logits(source, (token,)) for token in (ids[-2], ids[-1])]
    assert all(torch.equal(a, b) for a, b in zip(on_fork, on_source, strict=True))
    rows.remove(source)
    rows.remove(fork)
    assert rows.blocks == 0
