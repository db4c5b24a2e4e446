"""The decoder against the GPT-2 and Llama of Hugging Face transformers, with equal weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.decoder import Decoder
from tests.helpers.decoders import random_inputs, small_decoder, small_model

transformers = pytest.importorskip(
    "transformers", reason="compares with Hugging Face transformers, which is not installed"
)

NamedTensors = dict[str, Tensor]


def gpt2() -> tuple[ModelConfig, nn.Module]:
    model = small_model(activation="gelu_tanh")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=24, vocab_size=100,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return model, transformers.GPT2LMHeadModel(config)


def llama() -> tuple[ModelConfig, nn.Module]:
    model = small_model(
        position="rotary", norm="rms_norm", activation="swiglu", ffn_hidden_size=48,
        num_kv_heads=2, bias=False, tied_embeddings=False, norm_epsilon=1e-6,
    )  # fmt: skip
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, vocab_size=100, max_position_embeddings=24, rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )  # fmt: skip
    return model, transformers.LlamaForCausalLM(config)


def from_gpt2(theirs: NamedTensors) -> NamedTensors:
    """ROOTS' tensors from GPT-2's: its linear layers store [in, out]."""
    ours = {
        "embedding.tokens.weight": theirs["transformer.wte.weight"],
        "embedding.positions.weight": theirs["transformer.wpe.weight"],
    }
    parts = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    for kind in ("weight", "bias"):
        ours[f"final_norm.{kind}"] = theirs[f"transformer.ln_f.{kind}"]
        for layer in range(2):
            for our_part, their_part in parts.items():
                tensor = theirs[f"transformer.h.{layer}.{their_part}.{kind}"]
                # A vector stays as it is.
                ours[f"layers.{layer}.{our_part}.{kind}"] = tensor.movedim(0, -1)
    return ours


def from_llama(theirs: NamedTensors) -> NamedTensors:
    """ROOTS' tensors from Llama's: [Q; K; V] and [gate; up] are one matrix each."""
    ours = {
        "embedding.tokens.weight": theirs["model.embed_tokens.weight"],
        "final_norm.weight": theirs["model.norm.weight"],
        "head.weight": theirs["lm_head.weight"],
    }
    parts = {
        "attention_norm": ["input_layernorm"],
        "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attention.output": ["self_attn.o_proj"],
        "mlp_norm": ["post_attention_layernorm"],
        "mlp.up": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down": ["mlp.down_proj"],
    }
    for layer in range(2):
        for our_part, their_parts in parts.items():
            tensors = [theirs[f"model.layers.{layer}.{part}.weight"] for part in their_parts]
            ours[f"layers.{layer}.{our_part}.weight"] = torch.cat(tensors)
    return ours


FAMILIES = {"gpt2": (gpt2, from_gpt2), "llama": (llama, from_llama)}


def perturb(module: nn.Module) -> None:
    """Move weights away from their initial values, where norms and biases would hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def copy_weights(decoder: Decoder, weights: NamedTensors) -> None:
    parameters = dict(decoder.named_parameters())
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, tensor in weights.items():
            # Rows beyond the tensor's are the padding of the vocabulary.
            parameters[name][: len(tensor)].copy_(tensor)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_loss_and_gradients_agree(family: str) -> None:
    make, convert = FAMILIES[family]
    model, reference = make()
    perturb(reference)
    decoder = small_decoder(model)
    copy_weights(decoder, convert(reference.state_dict()))
    inputs = random_inputs(model)._replace(document_starts_BT=torch.zeros(3, 24, dtype=torch.int64))
    expected_logits = reference(inputs.tokens_BT).logits
    logits = decoder(*inputs[:3])
    assert (logits - expected_logits).abs().max() < 1e-5 * expected_logits.abs().max()

    expected_loss = F.cross_entropy(expected_logits.flatten(0, 1), inputs.labels_BT.flatten())
    loss = decoder(*inputs)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)

    expected_loss.backward()
    loss.backward()
    gradients = convert({name: p.grad for name, p in reference.named_parameters()})
    for name, parameter in decoder.named_parameters():
        gradient = parameter.grad[: len(gradients[name])]
        difference = (gradient - gradients[name]).norm() / gradients[name].norm()
        assert difference < 1e-4, (name, difference)
        assert parameter.grad[len(gradients[name]) :].count_nonzero() == 0
