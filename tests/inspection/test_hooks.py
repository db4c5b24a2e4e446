"""What hooks see of a native model is what transformers shows of its export."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from roots.cli.main import main
from roots.device import Device
from roots.generation.load import load_model
from roots.inspection.hooks import (
    attention_weights,
    branch_outputs,
    largest_values,
    residual_stream,
    router_logits,
)
from tests.helpers.decoders import random_inputs, small_decoder, small_model
from tests.helpers.hf_models import Case, build, gpt2, gpt_neox, of_llama, tokens_of

transformers = pytest.importorskip(
    "transformers", reason="compares with Hugging Face transformers, which is not installed"
)
FAMILIES = [
    Case("gpt2", gpt2),
    Case("llama", partial(of_llama, "LlamaConfig")),
    Case("mistral-window", partial(of_llama, "MistralConfig", sliding_window=7, head_dim=12)),
    Case("neox", gpt_neox),
    Case(
        "mixtral",
        partial(of_llama, "MixtralConfig", num_local_experts=5, intermediate_size=72),
    ),
]
TOLERANCE = 1e-5


def call(*words: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0


def exported(case: Case, folder: Path) -> tuple[Any, Any]:
    """A native decoder, and transformers' model of its export."""
    build(case).save_pretrained(folder / "hf")
    call("import", folder / "hf", "--to", folder / "roots")
    call("export", folder / "roots", "--to", folder / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "out", local_files_only=True, attn_implementation="eager"
    )
    return load_model(folder / "roots", Device("cpu", 0)).decoder, theirs.eval()


def assert_near(found: Tensor, expected: Tensor) -> None:
    difference = (found - expected).abs().max()
    assert difference < TOLERANCE * max(1.0, float(expected.abs().max())), float(difference)


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
@torch.no_grad()
def test_activations_are_those_of_the_exported_model(case: Case, tmp_path: Path) -> None:
    """Hidden states before every block and behind the final norm, attention, router logits."""
    ours, theirs = exported(case, tmp_path)
    tokens_BT = tokens_of(ours.model.vocab_size)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    experts = ours.model.moe.num_experts > 0
    if experts:
        wanted["output_router_logits"] = True
    expected = theirs(tokens_BT, **wanted)
    keys_B = torch.zeros(len(tokens_BT), dtype=torch.int64)
    with (
        residual_stream(ours) as stream,
        attention_weights(ours) as weights,
        router_logits(ours) as routers,
    ):
        logits_BTV = ours(tokens_BT, torch.zeros_like(tokens_BT), keys_B)
    assert_near(logits_BTV, expected.logits)
    blocks = ours.model.num_layers
    assert list(stream) == list(range(blocks + 1))
    for block in range(blocks):
        assert_near(stream[block], expected.hidden_states[block])
        assert weights[block].shape == expected.attentions[block].shape
        assert (weights[block] - expected.attentions[block]).abs().max() < TOLERANCE
    assert_near(ours.final_norm((stream[blocks],))[0], expected.hidden_states[blocks])
    assert len(routers) == (blocks if experts else 0)
    for block, logits_BTE in routers.items():
        assert_near(logits_BTE, expected.router_logits[block].view_as(logits_BTE))


@pytest.mark.parametrize("position", ["alibi", "relative", "rotary"])
@torch.no_grad()
def test_weights_know_documents_biases_and_scale(position: str) -> None:
    """They weigh values into what the model's own attention gives; the first of them by themselves
    are those of all."""
    model = small_model(position=position, num_kv_heads=2, qk_norm=True, window=9)
    decoder = small_decoder(model, separate_documents=True).eval()
    inputs = random_inputs(model)
    block, seen = decoder.layers[1].attention, {}

    def see(module: Any, arguments: Any, options: Any, output: Any) -> None:
        _, _, v_BSKD = module.heads(arguments[0], options["geometry"])
        seen["v"], seen["y"] = v_BSKD, output[0]

    handle = block.register_forward_hook(see, with_kwargs=True)
    with attention_weights(decoder) as weights, attention_weights(decoder, 5) as first:
        decoder(*inputs[:3])
    handle.remove()
    v_BNSD = seen["v"].transpose(1, 2).repeat_interleave(2, dim=1)
    o_BTND = (weights[1] @ v_BNSD).transpose(1, 2)
    y_BTH, _ = block.output(o_BTND.flatten(-2))
    torch.testing.assert_close(y_BTH, seen["y"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first[1], weights[1][..., :5, :5])
    starts_BT1 = inputs.document_starts_BT[:, None, :, None]
    hidden = torch.arange(model.sequence_length) < starts_BT1
    assert weights[1].masked_select(hidden).abs().max() == 0


@pytest.mark.parametrize("change", [{}, {"parallel_residual": True}, {"norm_position": "post"}])
@torch.no_grad()
def test_stream_is_what_branches_add(change: dict[str, Any]) -> None:
    model = small_model(**change)
    decoder = small_decoder(model).eval()
    with residual_stream(decoder) as stream, branch_outputs(decoder) as branches:
        decoder(*random_inputs(model)[:3])
    assert sorted(branches) == [(b, name) for b in range(2) for name in ("attention", "mlp")]
    for block in range(2):
        attended = stream[block] + branches[block, "attention"]
        if model.norm_position == "post":
            attended = decoder.layers[block].attention_norm(attended)
        behind = attended + branches[block, "mlp"]
        if model.norm_position == "post":
            behind = decoder.layers[block].mlp_norm(behind)
        torch.testing.assert_close(behind, stream[block + 1])


def test_nothing_is_left_behind_and_nothing_changes() -> None:
    """Losses and gradients with watchers are those without, to the bit; no hook stays."""
    model = small_model(moe={"num_experts": 4}, bias=False, norm="rms_norm", activation="swiglu")
    decoder = small_decoder(model)
    inputs = random_inputs(model)
    decoder(*inputs).backward()
    expected = [parameter.grad.clone() for parameter in decoder.parameters()]
    decoder.zero_grad()
    with ExitStack() as watch:
        for each in (residual_stream, branch_outputs, attention_weights, router_logits):
            watch.enter_context(each(decoder))
        watch.enter_context(largest_values(decoder))
        decoder(*inputs).backward()
    for parameter, gradient in zip(decoder.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
    with suppress(KeyError), attention_weights(decoder), largest_values(decoder):
        raise KeyError
    for module in decoder.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    "change", [{}, {"norm": "rms_norm", "activation": "swiglu", "bias": False}]
)
@torch.no_grad()
def test_largest_values_are_of_all_sites(change: dict[str, Any]) -> None:
    model = small_model(**change, moe={"num_experts": 4, "every": 2})
    decoder = small_decoder(model).eval()
    inputs = random_inputs(model)
    with largest_values(decoder) as largest, residual_stream(decoder) as stream:
        logits_BTV = decoder(*inputs[:3])
    assert {
        "embedding.tokens",
        "layers.0.attention_norm input",
        "layers.0.attention.qkv",
        "layers.0.attention.output",
        "layers.0.mlp_norm input",
        "layers.0.mlp.up",
        "layers.0.mlp.activate",
        "layers.0.mlp.down",
        "layers.1.mlp.router",
        "layers.1.mlp.experts.activate input",
        "layers.1.mlp.experts.activate",
        "layers.1.mlp",
        "final_norm input",
        "final_norm",
        "head",
    } <= set(largest)
    assert largest["head"] == logits_BTV.abs().max()
    for block in range(2):
        assert largest[f"layers.{block}.attention_norm input"] == stream[block].abs().max()
    assert largest["final_norm input"] == stream[2].abs().max()
    sites = list(largest)
    assert sites.index("layers.0.mlp.up") < sites.index("layers.1.attention.qkv")
