"""What the model would predict if it ended behind each of its blocks.

The logit lens (nostalgebraist 2020) gives the residual stream between blocks to the final norm and
the head as it stands. The tuned lens (Belrose et al. 2023, arXiv:2303.08112) first takes it through
an affine map of its own for every place, trained so that what is predicted there is near what the
whole model predicts:

    logits_l = head(norm(x_l + A_l x_l + b_l)), the least KL(softmax(logits_L) || softmax(logits_l))

Legend: L blocks, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from roots.errors import RootsError, problem
from roots.files import cannot_write, write_atomically
from roots.inspection.hooks import residual_stream
from roots.inspection.losses import likeliest, nats_of_row
from roots.inspection.rows import Row
from roots.log import Report
from roots.models.decoder import Decoder

# Of Adam; it falls to 0 along the way.
LEARNING_RATE = 1e-3
# Tokens shown at every place of every block.
TOP = 3
_ANOTHER = "fit one for this checkpoint with --fit"


@dataclass(frozen=True)
class TunedLens:
    """The maps before every block, weights [L, H, H] and biases [L, H] in float32."""

    weights_LHH: Tensor
    biases_LH: Tensor

    def __call__(self, place: int, x_TH: Tensor) -> Tensor:
        """x_TH before block `place` -> what the norm before the head is to read."""
        if place == len(self.biases_LH):
            return x_TH
        return _moved(x_TH, self.weights_LHH[place], self.biases_LH[place])

    def write(self, path: Path) -> None:
        """Write it as safetensors, whole or not at all. Raises RootsError if that cannot be."""
        tensors = {"weights": self.weights_LHH.cpu(), "biases": self.biases_LH.cpu()}
        try:
            write_atomically(path, save(tensors))
        except OSError as error:
            raise cannot_write(path, error) from None

    @staticmethod
    def read(path: Path, decoder: Decoder) -> TunedLens:
        """Read one for `decoder`. Raises RootsError if it is none or is for other sizes."""
        try:
            with safe_open(path, "pt") as file:
                weights_LHH, biases_LH = file.get_tensor("weights"), file.get_tensor("biases")
        except (OSError, SafetensorError) as error:
            rule = f"holds no lens ({str(error).splitlines()[0]})"
            raise RootsError(problem("--lens", str(path), rule, _ANOTHER)) from None
        blocks, hidden = len(decoder.layers), decoder.model.hidden_size
        if weights_LHH.shape != (blocks, hidden, hidden) or biases_LH.shape != (blocks, hidden):
            found = " x ".join(map(str, biases_LH.shape))
            rule = f"is for {found} (blocks x hidden size), where the model has {blocks} x {hidden}"
            raise RootsError(problem("--lens", str(path), rule, _ANOTHER))
        device = decoder.embedding.tokens.weight.device
        return TunedLens(weights_LHH.to(device), biases_LH.to(device))


def _moved(x_TH: Tensor, weight_HH: Tensor, bias_H: Tensor) -> Tensor:
    """x + A x + b, in float32 and then as x is."""
    wide_TH = x_TH.float()
    return (wide_TH + functional.linear(wide_TH, weight_HH, bias_H)).to(x_TH.dtype)


def fit_lens(decoder: Decoder, rows: Sequence[Row], *, steps: int, progress: Report) -> TunedLens:
    """Train a lens on one row a step, again from the first when there are no more.

    The model itself is left as it is. `progress` is called with (steps done, steps).
    """
    blocks, hidden = len(decoder.layers), decoder.model.hidden_size
    device = decoder.embedding.tokens.weight.device
    maps = [
        [
            torch.zeros(shape, device=device, requires_grad=True)
            for shape in ((hidden, hidden), hidden)
        ]
        for _ in range(blocks)
    ]
    optimizer = torch.optim.Adam([each for pair in maps for each in pair], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for step in range(steps):
        with torch.no_grad(), residual_stream(decoder) as stream:
            target_TV = rows[step % len(rows)].logits(decoder)[0].float().log_softmax(-1)
        for place in range(blocks):
            weight_HH, bias_H = maps[place]
            x_TH = stream[place][0]
            moved_TH = _moved(x_TH, weight_HH, bias_H)
            logits_TV = decoder.predict(moved_TH[None])[0].float()
            loss = divergence(target_TV, logits_TV.log_softmax(-1)).mean()
            # Of these two alone: the model's parameters get no gradient.
            weight_HH.grad, bias_H.grad = torch.autograd.grad(loss, (weight_HH, bias_H))
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)
    weights, biases = zip(*maps, strict=True)
    return TunedLens(torch.stack(weights).detach(), torch.stack(biases).detach())


def divergence(target_TV: Tensor, log_probabilities_TV: Tensor) -> Tensor:
    """KL(target || other) at every token, nats [T], of log probabilities."""
    return (target_TV.exp() * (target_TV - log_probabilities_TV)).sum(-1)


@dataclass
class LensTally:
    """What one kind of lens shows: losses of all rows, tokens of the first one."""

    decoder: Decoder
    shown: int
    tuned: TunedLens | None = None
    nats_L: list[float] = field(default_factory=list)
    divergence_L: list[float] = field(default_factory=list)
    predictions: list[list[list[list[float]]]] = field(default_factory=list)
    predicted: int = 0
    tokens: int = 0

    def add(self, stream: Mapping[int, Tensor], log_probabilities_TV: Tensor, row: Row) -> None:
        """Count a row by its residual stream and what the model predicts."""
        places = len(stream)
        first = not self.tokens
        if first:
            self.nats_L, self.divergence_L = [0.0] * places, [0.0] * places
        for place in range(places):
            lens_TV = self._read(place, stream[place][0])
            self.nats_L[place] += float(nats_of_row(lens_TV, row).double().sum())
            self.divergence_L[place] += float(
                divergence(log_probabilities_TV, lens_TV).double().sum()
            )
            if first:
                self.predictions.append(likeliest(lens_TV[: self.shown], TOP))
        self.predicted += int(row.predicted_T.sum())
        self.tokens += len(row.predicted_T)

    def _read(self, place: int, x_TH: Tensor) -> Tensor:
        moved_TH = x_TH if self.tuned is None else self.tuned(place, x_TH)
        return self.decoder.predict(moved_TH[None])[0].float().log_softmax(-1)

    def summary(self) -> dict[str, Any]:
        """Of every place, before each block and behind the last: mean loss, mean divergence from
        what the model predicts (nats a token), and of the first row the likeliest tokens."""
        return {
            "losses": [each / max(self.predicted, 1) for each in self.nats_L],
            "divergences": [each / max(self.tokens, 1) for each in self.divergence_L],
            "predictions": self.predictions,
        }
