"""Continuing prompts: the cache, batches of unequal prompts, and where it stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roots.errors import RootsError
from roots.generation.generate import Continuation, continue_tokens, generate
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.models.decoder import Decoder
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.decoders import small_decoder, small_model

GREEDY = SamplingOptions(greedy=True)
NO_END = -1
FAMILIES: list[dict[str, Any]] = [
    {},
    {"position": "rotary", "norm": "rms_norm", "activation": "swiglu", "num_kv_heads": 2},
    {"position": "alibi", "embedding_norm": True},
    {"position": "relative", "relative_buckets": 8, "relative_max_distance": 12},
    {"position": "sinusoidal", "norm_position": "post", "init_std": 0.6},
    # A capacity would drop other tokens of a batch or of a cache than of a whole row.
    {"position": "rotary", "moe": {"num_experts": 5, "capacity_factor": 0.3}},
]
NAMES = ["gpt", "llama", "alibi", "relative", "sinusoidal", "experts"]
CONVENTIONS: list[dict[str, Any]] = [
    {},
    {"separate_documents": False},
    {"reset_positions": True},
]


def lively_decoder(features: dict[str, Any], **options: Any) -> Decoder:
    """With weights large enough that every continuation differs from the others."""
    model = small_model(**{"init_std": 0.3, **features})
    return small_decoder(model, **options)


def likeliest_tokens(decoder: Decoder, prompt: list[int], count: int) -> tuple[int, ...]:
    """What a greedy choice adds, the whole text read anew for every token."""
    text = list(prompt)
    for _ in range(count):
        tokens = torch.tensor([text])
        with torch.no_grad():
            logits = decoder(tokens, torch.zeros_like(tokens), torch.zeros(1, dtype=torch.int64))
        text.append(int(logits[0, -1].argmax()))
    return tuple(text[len(prompt) :])


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(100, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("conventions", CONVENTIONS, ids=str)
@pytest.mark.parametrize("features", FAMILIES, ids=NAMES)
def test_cache_and_batch_change_no_token(
    features: dict[str, Any], conventions: dict[str, Any]
) -> None:
    decoder = lively_decoder(features, **conventions)
    prompts = prompts_of(3, 11, 1, 7)
    options = GenerationOptions(max_new_tokens=9, sampling=GREEDY)
    alone = [likeliest_tokens(decoder.eval(), prompt, 9) for prompt in prompts]
    assert len(set(alone)) == 4
    found = continue_tokens(decoder, prompts, options, end=NO_END)
    assert [continuation.token_ids for continuation in found] == alone


def test_greedy_tokens_are_the_likeliest_of_the_full_forward() -> None:
    decoder = lively_decoder({"position": "rotary"})
    (prompt,) = prompts_of(5)
    options = GenerationOptions(max_new_tokens=6, sampling=GREEDY)
    (continuation,) = continue_tokens(decoder, [prompt], options, end=NO_END)
    tokens = torch.tensor([prompt + list(continuation.token_ids)])
    starts, keys = torch.zeros_like(tokens), torch.zeros(1, dtype=torch.int64)
    likeliest = decoder.eval()(tokens, starts, keys).argmax(-1)[0, 4:-1]
    assert likeliest.tolist() == list(continuation.token_ids)


def test_rows_stop_at_the_end_token_one_by_one() -> None:
    decoder = lively_decoder({})
    prompts = prompts_of(3, 6, 4)
    options = GenerationOptions(max_new_tokens=8, sampling=GREEDY)
    endless = continue_tokens(decoder, prompts, options, end=NO_END)
    # The second row's fifth token plays the end; whichever other row says it stops too.
    end = endless[1].token_ids[4]
    stopped = continue_tokens(decoder, prompts, options, end=end)
    for before, after in zip(endless, stopped, strict=True):
        expected = before.token_ids
        reason = "max_new_tokens"
        if end in expected:
            expected, reason = expected[: expected.index(end)], "end_of_document"
        assert after == Continuation(expected, reason)
    assert stopped[1].stopped_by == "end_of_document"


def test_any_of_several_end_tokens_stops_a_row() -> None:
    decoder = lively_decoder({})
    prompts = prompts_of(3, 6)
    options = GenerationOptions(max_new_tokens=8, sampling=GREEDY)
    endless = [each.token_ids for each in continue_tokens(decoder, prompts, options, end=NO_END)]
    ends = {endless[0][6], endless[1][2]}
    stopped = continue_tokens(decoder, prompts, options, end=ends)
    for before, after in zip(endless, stopped, strict=True):
        place = min(number for number, token in enumerate(before) if token in ends)
        assert after == Continuation(before[:place], "end_of_document")


def test_learned_positions_end_a_row_but_not_its_neighbours() -> None:
    decoder = lively_decoder({})
    prompts = prompts_of(24, 20, 2)
    options = GenerationOptions(max_new_tokens=12, sampling=GREEDY)
    continuations = continue_tokens(decoder, prompts, options, end=NO_END)
    assert [len(c.token_ids) for c in continuations] == [1, 5, 12]
    reasons = [c.stopped_by for c in continuations]
    assert reasons == ["sequence_length", "sequence_length", "max_new_tokens"]
    (alone,) = continue_tokens(decoder, prompts[2:], options, end=NO_END)
    assert continuations[2] == alone


def test_rotary_positions_go_on() -> None:
    decoder = lively_decoder({"position": "rotary"})
    options = GenerationOptions(max_new_tokens=12, sampling=GREEDY)
    (continuation,) = continue_tokens(decoder, prompts_of(24), options, end=NO_END)
    assert len(continuation.token_ids) == 12


def test_prompt_longer_than_learned_positions_is_one_line() -> None:
    with pytest.raises(RootsError) as error:
        continue_tokens(lively_decoder({}), prompts_of(3, 25), GenerationOptions(), end=0)
    assert error.value.lines == (
        "prompt 2 tokens=25: is more than the 24 positions that the model has learned; "
        "shorten the prompt",
    )


def test_padding_of_the_vocabulary_is_never_chosen() -> None:
    decoder = lively_decoder({"vocab_size": 3, "vocab_multiple": 64})
    with torch.no_grad():
        decoder.embedding.tokens.weight[3:] = 100.0
    options = GenerationOptions(max_new_tokens=20)
    continuations = continue_tokens(decoder, [[0], [1], [2]], options, end=NO_END)
    assert all(token < 3 for c in continuations for token in c.token_ids)


def test_seed_decides_and_training_mode_is_kept() -> None:
    decoder = lively_decoder({"dropout": 0.5})
    prompts = prompts_of(3, 3)
    first, again, other = (
        continue_tokens(decoder, prompts, GenerationOptions(seed=seed), end=NO_END)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert decoder.training


def test_every_token_is_drawn_anew() -> None:
    """Of a hundred tokens that are equally likely, twenty draws take most once."""
    decoder = small_decoder(small_model(init_std=1e-6))
    options = GenerationOptions(max_new_tokens=20)
    first, second = continue_tokens(decoder, prompts_of(2, 2), options, end=NO_END)
    assert len(set(first.token_ids)) >= 12
    assert first.token_ids != second.token_ids


def test_text_in_text_out() -> None:
    tokenizer = ByteTokenizer()
    decoder = lively_decoder({"vocab_size": 257})
    options = GenerationOptions(max_new_tokens=5, sampling=GREEDY)
    texts = generate(decoder, tokenizer, ["ab", ""], options)
    # An empty prompt is the start of a document.
    starts = [tokenizer.encode("ab"), [tokenizer.end_of_document]]
    continuations = continue_tokens(decoder, starts, options, end=256)
    assert texts == [tokenizer.decode(c.token_ids) for c in continuations]
    assert generate(decoder, tokenizer, [], options) == []


def test_tokenizer_of_a_larger_vocabulary_is_refused() -> None:
    with pytest.raises(RootsError) as error:
        generate(lively_decoder({}), ByteTokenizer(), ["a"], GenerationOptions())
    assert error.value.lines == (
        "tokenizer vocab_size=257: must not exceed the model's vocab_size of 100; "
        "use the tokenizer that the model was trained with",
    )
