"""The choice of a token: greedy, temperature, what is left out, penalties."""

from __future__ import annotations

import pytest
import torch

from roots.errors import RootsError
from roots.generation.sampling import Chooser, SamplingOptions, penalised, probabilities

# Probabilities 0.5, 0.25, 0.125, 0.075, 0.05 of five tokens, not in order.
PROBABILITIES = torch.tensor([0.125, 0.5, 0.05, 0.25, 0.075])
DRAWS = 2000


def assert_drawn_from(options: SamplingOptions, weights: list[float]) -> None:
    expected = torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(probabilities(PROBABILITIES.log(), options), expected)


def test_tokens_are_drawn_from_the_probabilities() -> None:
    chooser = Chooser(SamplingOptions(top_k=4), 1, torch.device("cpu"))
    drawn = torch.tensor([chooser.choose(PROBABILITIES.log(), [], []) for _ in range(DRAWS)])
    measured = torch.bincount(drawn, minlength=5) / DRAWS
    expected = probabilities(PROBABILITIES.log(), chooser.options)
    # Five standard errors of a frequency.
    assert ((measured - expected).abs() <= 5 * (expected * (1 - expected) / DRAWS).sqrt()).all()
    assert torch.equal(measured == 0, expected == 0)


def test_plain_sampling_follows_the_probabilities() -> None:
    assert_drawn_from(SamplingOptions(), PROBABILITIES.tolist())


def test_greedy_takes_the_likeliest() -> None:
    chooser = Chooser(SamplingOptions(greedy=True, temperature=5.0), 1, torch.device("cpu"))
    assert {chooser.choose(PROBABILITIES.log(), [], []) for _ in range(50)} == {1}


def test_temperature_flattens_and_sharpens() -> None:
    assert_drawn_from(SamplingOptions(temperature=2.0), PROBABILITIES.sqrt().tolist())
    assert_drawn_from(SamplingOptions(temperature=0.5), PROBABILITIES.square().tolist())


def test_top_k_keeps_the_k_likeliest() -> None:
    assert_drawn_from(SamplingOptions(top_k=2), [0, 0.5, 0, 0.25, 0])
    assert_drawn_from(SamplingOptions(top_k=99), PROBABILITIES.tolist())


@pytest.mark.parametrize(
    "top_p, kept",
    [(0.01, [1]), (0.5, [1]), (0.51, [1, 3]), (0.8, [0, 1, 3]), (0.999, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: list[int]) -> None:
    weights = [p if token in kept else 0.0 for token, p in enumerate(PROBABILITIES.tolist())]
    assert_drawn_from(SamplingOptions(top_p=top_p), weights)


def test_top_p_counts_what_top_k_has_left() -> None:
    # Of 0.5 and 0.25 the first alone has two thirds.
    assert_drawn_from(SamplingOptions(top_k=2, top_p=0.6), [0, 1, 0, 0, 0])


def test_top_p_counts_what_the_temperature_makes() -> None:
    # At 2 the likeliest has 0.34 and no half any more: the second is taken too.
    assert_drawn_from(SamplingOptions(temperature=2.0, top_p=0.5), [0, 0.5**0.5, 0, 0.5, 0])


def test_min_p_keeps_a_share_of_the_likeliest() -> None:
    # 0.15 of 0.5 is the probability of the fourth; a hair more leaves it out.
    assert_drawn_from(SamplingOptions(min_p=0.149), [0.125, 0.5, 0, 0.25, 0.075])
    assert_drawn_from(SamplingOptions(min_p=0.151), [0.125, 0.5, 0, 0.25, 0])
    assert_drawn_from(SamplingOptions(min_p=1.0), [0, 1, 0, 0, 0])


@pytest.mark.parametrize(
    "options, expected",
    [
        # Prompt and new tokens, each once however often it stands there.
        (SamplingOptions(repetition_penalty=2.0), [1.0, -2.0, 0.5, 4.0]),
        # New tokens alone.
        (SamplingOptions(frequency_penalty=0.5), [2.0, -1.0, 0.0, 4.0]),
        (SamplingOptions(presence_penalty=0.5), [2.0, -1.0, 0.5, 4.0]),
        (SamplingOptions(frequency_penalty=-1.0, presence_penalty=0.25), [2.0, -1.0, 2.75, 4.0]),
    ],
)
def test_penalties(options: SamplingOptions, expected: list[float]) -> None:
    logits = torch.tensor([2.0, -1.0, 1.0, 4.0])
    found = penalised(logits, options, prompt=[0, 1, 1], new=[2, 2])
    torch.testing.assert_close(found, torch.tensor(expected))


def test_penalties_change_the_likeliest() -> None:
    greedy = SamplingOptions(greedy=True, repetition_penalty=3.0)
    chooser = Chooser(greedy, 1, torch.device("cpu"))
    assert not chooser.takes_likeliest
    assert chooser.choose(torch.tensor([1.0, 2.0]), [1], []) == 0
    assert chooser.choose(torch.tensor([1.0, 2.0]), [], []) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_16_bits_are_drawn_from_as_their_values_in_fp32(dtype: torch.dtype) -> None:
    """Of many tokens 16-bit probabilities would not add up, and other tokens would be drawn."""
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(2)).to(dtype)
    for options in (SamplingOptions(), SamplingOptions(temperature=0.7, top_p=0.9)):
        found = probabilities(logits, options)
        assert found.dtype == torch.float32
        assert torch.equal(found, probabilities(logits.float(), options))


def test_bad_options_are_all_told() -> None:
    with pytest.raises(RootsError) as error:
        SamplingOptions(
            temperature=0.0,
            top_k=-1,
            top_p=1.5,
            min_p=-0.1,
            repetition_penalty=0.0,
            presence_penalty=float("inf"),
        )
    assert error.value.lines == (
        "temperature=0.0: must be above 0, and finite; choose greedily for the limit at 0",
        "top_k=-1: must not be negative; use 0 for all",
        "top_p=1.5: must be in (0, 1]; use 1 for all",
        "min_p=-0.1: must be in [0, 1]; use 0 for all",
        "repetition_penalty=0.0: must be above 0, and finite; use 1 for none",
        "presence_penalty=inf: must be finite; use 0 for none",
    )
