"""What rounding does lies below the floors, what a mistake does far above.

A small attention block, trained by torch alone in float32: on its batch as a whole, and on parts of
it that are summed in another order, as layouts do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from roots.config import parse_config
from roots.parallel.shard import replicated
from roots.verify.compare import Comparison, Curve, Piece, compare
from roots.verify.floors import UNIT_ROUNDOFF, Arithmetic, floors_of

TOLERANCE = 1e-5
STEPS, SAMPLES, TOKENS, WIDTH = 6, 8, 16, 16
RATE, EPSILON = 1e-3, 1e-4
KEY_BIAS, FAINT = "layers.0.key.bias", "layers.0.faint.bias"
CONFIG = parse_config(
    {
        "model": {"num_layers": 1},
        "training": {"precision": "fp32", "gradient_clipping": 1.0},
        "optimizer": {"epsilon": EPSILON},
    }
)
Gradients = dict[str, Tensor]
Tamper = Callable[[int, Gradients, torch.optim.AdamW], None]


class Block(nn.Module):
    """Softmax attention without positions: a bias of all keys changes nothing, so that its gradient
    is zero but for rounding. That of `faint` is about as large as epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.faint, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 61)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every token."""
        hidden = self.norm(x)
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2) / math.sqrt(WIDTH)
        mixed = scores.softmax(dim=-1) @ self.value(hidden)
        return self.head(mixed + 1e-2 * self.faint(hidden))


def names_of(block: Block) -> Mapping[str, nn.Parameter]:
    """Parameters by names as those of a model's: of one block, and of the head."""
    return {
        name if name.startswith("head") else f"layers.0.{name}": parameter
        for name, parameter in block.named_parameters()
    }


def nothing(step: int, gradients: Gradients, adam: torch.optim.AdamW) -> None:
    """Train as it should be."""


def train(parts: int, tamper: Tamper = nothing) -> Curve:
    """The batch in so many parts, the last first; `tamper` may change a step's gradients in place,
    before they are recorded, or the optimizer."""
    torch.manual_seed(3)
    block = Block()
    x, labels = torch.randn(SAMPLES, TOKENS, WIDTH), torch.randint(61, (SAMPLES, TOKENS))
    named = names_of(block)
    plain = [each for name, each in named.items() if each.ndim == 1]
    matrices = [each for name, each in named.items() if each.ndim > 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=EPSILON)
    curve = Curve(arithmetic=Arithmetic.of(CONFIG))
    for step in range(STEPS):
        adam.zero_grad()
        total = 0.0
        for chosen in reversed(torch.arange(SAMPLES).chunk(parts)):
            logits = block(x[chosen]).flatten(0, 1)
            loss = functional.cross_entropy(logits, labels[chosen].flatten()) / parts
            loss.backward()
            total += float(loss.detach())
        gradients = {name: each.grad for name, each in named.items() if each.grad is not None}
        tamper(step, gradients, adam)
        recorded = {name: each.clone() for name, each in gradients.items()}
        norm = float(nn.utils.clip_grad_norm_(block.parameters(), 1.0))
        adam.step()
        curve.losses.append(total)
        curve.norms.append(norm)
        curve.rates.append(RATE)
        curve.steps.append(
            [
                Piece(replicated(name, each.shape), each.detach().clone(), recorded[name])
                for name, each in named.items()
            ]
        )
    return curve


@pytest.fixture(scope="module")
def whole() -> Curve:
    return train(1)


def found(comparison: Comparison, kind: str, name: str) -> float:
    """The largest relative difference of one tensor."""
    return next(d.relative for d in comparison.largest if (d.kind, d.name) == (kind, name))


@pytest.mark.parametrize("parts", [2, 8])
def test_a_gradient_that_is_zero_by_mathematics_raises_no_alarm(whole: Curve, parts: int) -> None:
    curves = [train(parts)]
    bare = compare(replace(whole, arithmetic=None), curves, TOLERANCE)
    # Relative to itself rounding is all of it, and Adam carries that into the weight.
    assert found(bare, "gradient", KEY_BIAS) > 0.1
    comparison = compare(whole, curves, TOLERANCE)
    assert comparison.equal, comparison.first
    assert max(each.relative for each in comparison.largest) < TOLERANCE / 3


def test_a_bias_at_epsilon_raises_no_alarm(whole: Curve) -> None:
    """Its update amplifies what its gradient is off by, which its terms' size bounds."""
    gradients = [step_of(whole, step, FAINT).gradient.abs().mean() for step in range(STEPS)]
    assert max(gradients) < 2 * EPSILON
    assert min(gradients) > EPSILON / 2

    def jitter(step: int, gradients: Gradients, adam: torch.optim.AdamW) -> None:
        """As much as a block's rounding: two units of its largest gradient."""
        largest = max(float(g.norm()) for n, g in gradients.items() if n.startswith("layers"))
        noise = torch.randn(WIDTH, generator=torch.Generator().manual_seed(step))
        gradients[FAINT].add_(noise / noise.norm(), alpha=2 * UNIT_ROUNDOFF["fp32"] * largest)

    curves = [train(1, jitter)]
    bare = compare(replace(whole, arithmetic=None), curves, TOLERANCE)
    assert found(bare, "gradient", FAINT) > TOLERANCE
    assert compare(whole, curves, TOLERANCE).equal


def step_of(curve: Curve, step: int, name: str) -> Piece:
    """One tensor of one step."""
    return next(piece for piece in curve.steps[step] if piece.shard.name == name)


def scaled(name: str, factor: float) -> Tamper:
    """A tensor's gradient times a number, in the first step."""

    def tamper(step: int, gradients: Gradients, adam: torch.optim.AdamW) -> None:
        if step == 0:
            gradients[name].mul_(factor)

    return tamper


def wrong_keys(step: int, gradients: Gradients, adam: torch.optim.AdamW) -> None:
    """The first key's part of the gradient of the keys' bias is lost, so that the rest is not zero:
    about as much as the gradient of their weight holds of one token in sixteen."""
    if step == 0:
        size = gradients["layers.0.key.weight"].norm() / math.sqrt(WIDTH * TOKENS)
        gradients[KEY_BIAS].add_(torch.ones(WIDTH), alpha=float(size) / math.sqrt(WIDTH))


def uncorrected(step: int, gradients: Gradients, adam: torch.optim.AdamW) -> None:
    """Adam's moments taken as they are, although they start from zero, so that the first update is
    (1 - beta1) / sqrt(1 - beta2) = 0.45 as long."""
    if step == 0:
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - 0.9) / math.sqrt(1 - 0.95)


def wrong_group(step: int, gradients: Gradients, adam: torch.optim.AdamW) -> None:
    """Norms and biases decay too."""
    adam.param_groups[1]["weight_decay"] = 0.1


def no_decay(step: int, gradients: Gradients, adam: torch.optim.AdamW) -> None:
    """Matrices do not decay."""
    adam.param_groups[0]["weight_decay"] = 0.0


@pytest.mark.parametrize(
    ("kind", "name", "tamper"),
    [
        ("gradient", "layers.0.query.weight", scaled("layers.0.query.weight", 2.0)),
        ("gradient", "layers.0.norm.bias", scaled("layers.0.norm.bias", 2.0)),
        ("gradient", "layers.0.norm.weight", scaled("layers.0.norm.weight", 0.5)),
        ("gradient", FAINT, scaled(FAINT, 0.5)),
        ("gradient", "layers.0.query.bias", scaled("layers.0.query.bias", 0.0)),
        ("gradient", "head.weight", scaled("head.weight", 0.999)),
        ("gradient", KEY_BIAS, wrong_keys),
        ("weight", "layers.0.value.bias", uncorrected),
        ("weight", "layers.0.query.weight", uncorrected),
        ("weight", "layers.0.norm.weight", wrong_group),
        ("weight", "layers.0.query.weight", no_decay),
    ],
)
def test_a_mistake_is_ten_times_beyond_its_bound(
    whole: Curve, kind: str, name: str, tamper: Tamper
) -> None:
    relative = found(compare(whole, [train(2, tamper)], TOLERANCE), kind, name)
    assert relative > 10 * TOLERANCE, relative


def test_floors_are_those_of_the_docstring() -> None:
    """One element, two steps, everything by hand."""
    arithmetic = Arithmetic(2.0**-24, 100, 0.5, 0.75, 0.01, clipping=1.0)
    assert arithmetic.relative == 4 * 2.0**-24 * 10
    gradients = [{"layers.0.a": torch.tensor([[2.0]]), "layers.0.b": torch.tensor([0.5])}] * 2
    first, second = floors_of(arithmetic, gradients, [2.0 - 1e-6, None], [0.1, 0.1])
    clip = 0.5
    # Both have terms of size 2, the largest matrix of their block.
    moment = 0.5 * clip * 0.5
    read = 2 * 2.0**-24 * moment / 0.5 / clip
    assert first["layers.0.b"].gradient == pytest.approx(arithmetic.relative * 2.0 + read)
    # m = v^(1/2) = 0.25 after correction.
    steepness = (1 + 0.25 / 0.26) / 0.26
    assert first["layers.0.b"].weight == pytest.approx(
        0.1 * clip * arithmetic.relative * 2.0 * steepness
    )
    # A step that was skipped has no gradients, and adds nothing to what weights may be off by.
    assert second["layers.0.b"] == (0.0, first["layers.0.b"].weight)
