"""The lenses: the last place is the model, and the tuned one comes nearer to it everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from roots.errors import RootsError
from roots.inspection.hooks import residual_stream
from roots.inspection.lens import LensTally, TunedLens, divergence, fit_lens
from roots.inspection.rows import Row
from roots.models.decoder import Decoder
from tests.helpers.decoders import random_inputs, small_decoder, small_model


def rows_of(decoder: Decoder, count: int, seed: int = 3) -> list[Row]:
    inputs = random_inputs(decoder.model, rows=count, seed=seed)
    predicted_T = torch.arange(decoder.model.sequence_length) > 0
    return [
        Row(tokens[None], torch.zeros_like(tokens)[None], predicted_T)
        for tokens in inputs.tokens_BT
    ]


def tally(decoder: Decoder, rows: list[Row], lens: TunedLens | None = None) -> LensTally:
    found = LensTally(decoder, 6, lens)
    for row in rows:
        with torch.no_grad(), residual_stream(decoder) as stream:
            log_probabilities_TV = row.logits(decoder)[0].log_softmax(-1)
            found.add(stream, log_probabilities_TV, row)
    return found


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_last_place_of_the_logit_lens_is_the_model(norm_position: str) -> None:
    decoder = small_decoder(small_model(norm_position=norm_position, init_std=0.2)).eval()
    rows = rows_of(decoder, 2)
    summary = tally(decoder, rows).summary()
    assert len(summary["losses"]) == 3
    assert summary["divergences"][2] == pytest.approx(0.0, abs=1e-6)
    assert summary["divergences"][0] > 0.1
    row = rows[0]
    with torch.no_grad():
        log_probabilities_TV = row.logits(decoder)[0].log_softmax(-1)
    assert [len(place) for place in summary["predictions"]] == [6, 6, 6]
    for at in range(6):
        token, probability = summary["predictions"][2][at][0]
        assert token == log_probabilities_TV[at].argmax()
        assert probability == pytest.approx(float(log_probabilities_TV[at].exp().max()), abs=1e-4)


def test_losses_are_means_over_what_is_predicted() -> None:
    decoder = small_decoder(small_model(init_std=0.2)).eval()
    rows = rows_of(decoder, 2)
    rows[1] = rows[1]._replace(predicted_T=rows[1].predicted_T & (torch.arange(24) % 3 == 0))
    nats = []
    for row in rows:
        with torch.no_grad():
            log_probabilities_TV = row.logits(decoder)[0].log_softmax(-1)
        for at in range(1, 24):
            if row.predicted_T[at]:
                nats.append(-log_probabilities_TV[at - 1, row.tokens_1T[0, at]])
    expected = float(torch.stack(nats).mean())
    assert len(nats) == 23 + 7
    assert tally(decoder, rows).summary()["losses"][2] == pytest.approx(expected, rel=1e-5)


def test_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(4, 9, generator=generator).log_softmax(-1) for _ in range(2))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(p, q), expected)


def test_tuned_lens_is_nearer_to_the_model_on_rows_it_has_not_seen(tmp_path: Path) -> None:
    """And the model is as it was, without gradients; a file brings the same lens back."""
    decoder = small_decoder(small_model(init_std=0.2)).eval()
    before = [parameter.clone() for parameter in decoder.parameters()]
    done: list[tuple[int, int]] = []
    lens = fit_lens(
        decoder, rows_of(decoder, 20), steps=60, progress=lambda *each: done.append(each)
    )
    assert done[-1] == (60, 60)
    for parameter, value in zip(decoder.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, value)
    held_out = rows_of(decoder, 4, seed=77)
    plain = tally(decoder, held_out).summary()["divergences"]
    tuned = tally(decoder, held_out, lens).summary()["divergences"]
    for place in range(2):
        assert tuned[place] < 0.9 * plain[place]
    assert tuned[2] == plain[2]
    lens.write(tmp_path / "lens.safetensors")
    back = TunedLens.read(tmp_path / "lens.safetensors", decoder)
    assert tally(decoder, held_out, back).summary()["divergences"] == tuned
    assert [path.name for path in tmp_path.iterdir()] == ["lens.safetensors"]


def test_lens_of_another_model_and_no_lens_are_refused(tmp_path: Path) -> None:
    decoder = small_decoder(small_model())
    path = tmp_path / "lens.safetensors"
    TunedLens(torch.zeros(3, 8, 8), torch.zeros(3, 8)).write(path)
    with pytest.raises(RootsError) as error:
        TunedLens.read(path, decoder)
    assert error.value.lines == (
        f"--lens='{path}': is for 3 x 8 (blocks x hidden size), where the model has 2 x 32; fit "
        "one for this checkpoint with --fit",
    )
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(RootsError, match="holds no lens"):
        TunedLens.read(path, decoder)
    with pytest.raises(RootsError, match="holds no lens"):
        TunedLens.read(tmp_path / "missing", decoder)
    with pytest.raises(RootsError, match="cannot be written"):
        TunedLens(torch.zeros(3, 8, 8), torch.zeros(3, 8)).write(tmp_path / "no" / "lens")
