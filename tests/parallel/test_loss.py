"""The chunked, vocabulary-parallel loss against plain torch: values, gradients, edges, memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from roots.errors import RootsError
from roots.parallel.loss import linear_cross_entropy, vocab_parallel_logits
from roots.parallel.mesh import Mesh
from roots.parallel.shard import even, gather_full, slice_full
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed

# The padded vocabulary of 256 leaves the last of 4 ranks with 5 valid columns of 64.
ROWS, TOKENS, HIDDEN, VOCAB, PADDED = 3, 11, 24, 197, 256
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass
class Case:
    """One head and batch; weights are 1 / counted tokens of the sample, 0 for masked ones."""

    x_BTH: Tensor
    weight_VH: Tensor
    labels_BT: Tensor
    loss_weights_BT: Tensor
    label_smoothing: float = 0.0
    z_loss: float = 0.0


def make_case(dtype: torch.dtype = torch.float64, *, sharp: float = 1.0) -> Case:
    """Sample 0 counts 4 tokens, sample 1 all, sample 2 none; `sharp` scales the logits."""
    generator = torch.Generator().manual_seed(11)
    x_BTH = torch.randn(ROWS, TOKENS, HIDDEN, generator=generator)
    weight_VH = torch.randn(PADDED, HIDDEN, generator=generator) * (sharp * 0.1)
    labels_BT = torch.randint(0, VOCAB, (ROWS, TOKENS), generator=generator)
    counted_BT = torch.zeros(ROWS, TOKENS)
    counted_BT[0, :4] = 1 / 4
    counted_BT[1] = 1 / TOKENS
    return Case(x_BTH.to(dtype), weight_VH.to(dtype), labels_BT, counted_BT)


Result = dict[str, Tensor]


def plain(case: Case, upstream: float = 1.0) -> Result:
    """The same by torch's own operations, in the dtype of the case; logits to fp32 as usual."""
    x = case.x_BTH.clone().requires_grad_()
    weight = case.weight_VH.clone().requires_grad_()
    logits = functional.linear(x, weight[:VOCAB])
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = logits.view(-1, VOCAB)
    losses = functional.cross_entropy(
        logits,
        case.labels_BT.view(-1),
        reduction="none",
        label_smoothing=case.label_smoothing,
    )
    losses = losses + case.z_loss * logits.logsumexp(1).square()
    loss = (losses * case.loss_weights_BT.view(-1).to(losses.dtype)).sum() / ROWS
    (loss * upstream).backward()
    assert x.grad is not None
    assert weight.grad is not None
    return {"loss": loss.detach(), "dx": x.grad, "dweight": weight.grad}


def ours(
    mesh: Mesh,
    case: Case,
    upstream: float = 1.0,
    chunk_tokens: int | None = None,
    sequence_dim: int | None = None,
) -> Result:
    """The parallel loss on one rank, with the gradient of the whole weight gathered.

    With a `sequence_dim` the x of the case is this rank's slice.
    """
    axis = mesh.tensor
    shard = even("head.weight", (PADDED, HIDDEN), 0, axis)
    x = case.x_BTH.clone().requires_grad_()
    weight = slice_full(case.weight_VH, shard).requires_grad_()
    loss = linear_cross_entropy(
        x,
        weight,
        case.labels_BT,
        case.loss_weights_BT,
        axis=axis,
        vocab_size=VOCAB,
        label_smoothing=case.label_smoothing,
        z_loss=case.z_loss,
        sequence_dim=sequence_dim,
        chunk_tokens=chunk_tokens,
    )
    (loss * upstream).backward()
    assert x.grad is not None
    assert weight.grad is not None
    return {
        "loss": loss.detach(),
        "dx": x.grad,
        "dweight": gather_full(weight.grad, shard, axis),
    }


def _on_rank(
    rank: int, world_size: int, case: Case, upstream: float, chunk_tokens: int | None
) -> Result:
    return ours(Mesh.create(Topology(tensor=world_size)), case, upstream, chunk_tokens)


def _gold(case: Case, upstream: float = 1.0) -> Result:
    """float64 from the values as rounded to the dtype of the case."""
    wide = replace(
        case,
        x_BTH=case.x_BTH.double(),
        weight_VH=case.weight_VH.double(),
        loss_weights_BT=case.loss_weights_BT.double(),
    )
    return plain(wide, upstream)


def _assert_at_most_twice_the_error(found: Result, baseline: Result, gold: Result) -> None:
    for name, value in gold.items():
        error = (found[name].double() - value).norm()
        allowed = 2 * (baseline[name].double() - value).norm() + 1e-7 * value.norm()
        assert error <= allowed, f"{name}: {error:.3e} > {allowed:.3e}"


@pytest.mark.distributed
@pytest.mark.parametrize("chunk_tokens", [None, 7], ids=["one chunk", "5 chunks"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_errs_at_most_twice_as_much_as_plain_torch(
    size: int, dtype: torch.dtype, chunk_tokens: int | None
) -> None:
    # An upstream gradient as loss scaling gives it, which must not change fp32 and bf16 at all.
    case = make_case(dtype)
    gold, baseline = _gold(case, 65536.0), plain(case, 65536.0)
    ranks = run_distributed(_on_rank, size, case, 65536.0, chunk_tokens)
    for found in ranks:
        assert found["dx"].dtype == found["dweight"].dtype == dtype
        assert found["loss"].dtype == torch.float32
        _assert_at_most_twice_the_error(found, baseline, gold)
        assert all(torch.equal(found[name], ranks[0][name]) for name in found)
        assert not found["dweight"][VOCAB:].any()
        assert not found["dx"][2].any()


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_smoothing_and_z_loss_do_not_depend_on_the_layout(size: int, dtype: torch.dtype) -> None:
    case = replace(make_case(dtype, sharp=4.0), label_smoothing=0.2, z_loss=0.03)
    gold, baseline = _gold(case), plain(case)
    without = _gold(replace(case, label_smoothing=0.0, z_loss=0.0))
    for found in run_distributed(_on_rank, size, case, 1.0, 7):
        _assert_at_most_twice_the_error(found, baseline, gold)
        assert not found["dweight"][VOCAB:].any()
        for name, value in without.items():
            assert (found[name].double() - value).norm() > 0.03 * value.norm(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_confident_predictions_keep_their_small_gradients(dtype: torch.dtype) -> None:
    # Probabilities of the labels within 1e-4 of 1, where p - 1 has no digits left in 16 bits.
    case = make_case(dtype, sharp=40.0)
    logits_BTV = functional.linear(case.x_BTH.double(), case.weight_VH[:VOCAB].double())
    case.labels_BT = logits_BTV.argmax(-1)
    found = ours(Mesh.single(), case, 65536.0)
    _assert_at_most_twice_the_error(found, plain(case, 65536.0), _gold(case, 65536.0))
    assert found["dx"].any()


def test_fp16_gradients_do_not_underflow_under_loss_scaling() -> None:
    """Weights of 1e-4 and probabilities of 1e-3 make products that fp16 cannot hold unscaled."""
    case = make_case(torch.float16)
    case.loss_weights_BT = torch.full((ROWS, TOKENS), 1e-4)
    unscaled = 1e-4 / ROWS / VOCAB
    assert unscaled < torch.finfo(torch.float16).smallest_normal / 100
    found = ours(Mesh.single(), case, 65536.0)
    _assert_at_most_twice_the_error(found, plain(case, 65536.0), _gold(case, 65536.0))
    # Rows of W that are no label have only such small gradients.
    gold = _gold(case, 65536.0)["dweight"]
    rare = torch.ones(PADDED, dtype=torch.bool)
    rare[case.labels_BT.flatten()] = False
    rare[VOCAB:] = False
    relative = (found["dweight"][rare].double() - gold[rare]).norm() / gold[rare].norm()
    assert relative < 2e-3


def test_fp16_gradients_of_unlikely_tokens_keep_their_digits() -> None:
    """Probabilities of 1e-6: halves of the smallest normal number, but for an enlarged gradient."""
    case = make_case(torch.float16)
    case.x_BTH.zero_()
    case.x_BTH[..., 0] = 1.0
    case.weight_VH.zero_()
    case.weight_VH[1:VOCAB, 0] = torch.linspace(-13.9, -11.5, VOCAB - 1).half()
    case.labels_BT.zero_()
    found, gold = ours(Mesh.single(), case, 1024.0), _gold(case, 1024.0)
    rare = slice(1, VOCAB)
    difference = found["dweight"][rare, 0].double() - gold["dweight"][rare, 0]
    assert difference.norm() < 2e-3 * gold["dweight"][rare, 0].norm()


def test_fp16_sums_over_many_tokens_do_not_overflow() -> None:
    tokens = 4096
    x = torch.full((1, tokens, 8), 8.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(128, 8, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(1, tokens, dtype=torch.int64)
    weights = torch.full((1, tokens), 1 / tokens)
    axis = Mesh.single().tensor
    loss = linear_cross_entropy(x, weight, labels, weights, axis=axis, vocab_size=128)
    loss.backward()
    assert weight.grad is not None
    wanted = torch.full((128, 8), 8 / 128)
    wanted[0] = 8 / 128 - 8
    torch.testing.assert_close(weight.grad.float(), wanted, rtol=2e-3, atol=0.0)


@pytest.mark.distributed
def test_a_rank_that_holds_only_padding_takes_part() -> None:
    case = make_case()
    gold = _gold(case)
    whole, padding = run_distributed(_only_padding, 2, case)
    for found in (whole, padding):
        torch.testing.assert_close(found["loss"], gold["loss"], check_dtype=False)
        torch.testing.assert_close(found["dx"], gold["dx"])
    torch.testing.assert_close(whole["dweight"], gold["dweight"][:VOCAB])
    assert not padding["dweight"].any()


def _only_padding(rank: int, world_size: int, case: Case) -> Result:
    """Both ranks hold VOCAB rows, so that those of rank 1 all lie beyond the vocabulary."""
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    x = case.x_BTH.clone().requires_grad_()
    weight = case.weight_VH[:VOCAB].clone().requires_grad_()
    weights_BT = case.loss_weights_BT
    loss = linear_cross_entropy(
        x, weight, case.labels_BT, weights_BT, axis=axis, vocab_size=VOCAB, chunk_tokens=8
    )
    loss.backward()
    assert x.grad is not None
    assert weight.grad is not None
    return {"loss": loss.detach(), "dx": x.grad, "dweight": weight.grad}


def test_all_weights_zero_give_zero_loss_and_gradients() -> None:
    case = make_case(torch.float32)
    case.loss_weights_BT = torch.zeros(ROWS, TOKENS)
    for value in ours(Mesh.single(), case).values():
        assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_without_weight_may_lie_anywhere(dtype: torch.dtype) -> None:
    case = make_case(dtype)
    wanted = ours(Mesh.single(), case)
    masked_BT = case.loss_weights_BT == 0
    case.labels_BT = case.labels_BT.masked_fill(masked_BT, -100)
    found = ours(Mesh.single(), case)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_float64_matches_closely_at_any_chunk_size() -> None:
    case = make_case(torch.float64)
    gold = _gold(case)
    for chunk_tokens in (1, 8, 32, 33, 1000):
        found = ours(Mesh.single(), case, chunk_tokens=chunk_tokens)
        for name in ("dx", "dweight"):
            torch.testing.assert_close(found[name], gold[name], rtol=1e-6, atol=1e-9)


def test_only_what_needs_a_gradient_is_computed() -> None:
    case = make_case(torch.float32)
    axis = Mesh.single().tensor
    wanted = plain(case)
    for needs_x, needs_weight in ((True, False), (False, True)):
        x = case.x_BTH.clone().requires_grad_(needs_x)
        weight = case.weight_VH.clone().requires_grad_(needs_weight)
        loss = linear_cross_entropy(
            x, weight, case.labels_BT, case.loss_weights_BT, axis=axis, vocab_size=VOCAB
        )
        loss.backward()
        assert (x.grad is not None, weight.grad is not None) == (needs_x, needs_weight)
        found = x.grad if needs_x else weight.grad
        torch.testing.assert_close(found, wanted["dx" if needs_x else "dweight"])
    with torch.no_grad():
        x = case.x_BTH.clone().requires_grad_()
        weight = case.weight_VH.clone().requires_grad_()
        without = linear_cross_entropy(
            x, weight, case.labels_BT, case.loss_weights_BT, axis=axis, vocab_size=VOCAB
        )
    assert not without.requires_grad
    torch.testing.assert_close(without, wanted["loss"])


def test_the_implementation_asked_for_is_used() -> None:
    case = make_case(torch.float32)
    arguments = (case.x_BTH, case.weight_VH, case.labels_BT, case.loss_weights_BT)
    options = {"axis": Mesh.single().tensor, "vocab_size": VOCAB}
    reference = linear_cross_entropy(*arguments, **options, implementation="reference")
    torch.testing.assert_close(reference, plain(case)["loss"])
    with pytest.raises(RootsError, match="warp_drive"):
        linear_cross_entropy(*arguments, **options, implementation="warp_drive")


def test_a_second_backward_is_refused() -> None:
    case = make_case(torch.float32)
    x = case.x_BTH.clone().requires_grad_()
    loss = linear_cross_entropy(
        x,
        case.weight_VH,
        case.labels_BT,
        case.loss_weights_BT,
        axis=Mesh.single().tensor,
        vocab_size=VOCAB,
    )
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward was called twice on one forward"):
        loss.backward()


def test_logits_of_only_one_chunk_exist() -> None:
    """The largest tensor made is the chunk's logits, or the weight gradient, never all logits."""
    tokens, hidden, vocab, chunk = 256, 8, 4096, 32
    x = torch.randn(1, tokens, hidden, requires_grad=True)
    weight = torch.randn(vocab, hidden, requires_grad=True)
    labels = torch.zeros(1, tokens, dtype=torch.int64)
    weights = torch.ones(1, tokens)
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_cross_entropy(
            x,
            weight,
            labels,
            weights,
            axis=Mesh.single().tensor,
            vocab_size=vocab,
            chunk_tokens=chunk,
        ).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 4 * tokens * vocab // 2


def _logits(rank: int, world_size: int, case: Case) -> tuple[Tensor, Tensor]:
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    weight = slice_full(case.weight_VH, even("w", (PADDED, HIDDEN), 0, axis))
    x = case.x_BTH.clone().requires_grad_()
    logits = vocab_parallel_logits(x, weight, axis, VOCAB)
    logits.square().sum().backward()
    assert x.grad is not None
    return logits.detach(), x.grad


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 4])
def test_logits_are_whole_and_without_padding(size: int) -> None:
    case = make_case()
    x = case.x_BTH.clone().requires_grad_()
    wanted = functional.linear(x, case.weight_VH[:VOCAB])
    wanted.square().sum().backward()
    for logits, gradient in run_distributed(_logits, size, case):
        torch.testing.assert_close(logits, wanted.detach())
        torch.testing.assert_close(gradient, x.grad)
