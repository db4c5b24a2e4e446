"""Models of transformers, imported by the real command: equal logits, gradients, text, and back."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from roots.cli.main import main
from roots.device import Device
from roots.exchange.hf.registry import choose_family
from roots.generation.generate import continue_tokens
from roots.generation.load import load_model
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.models.decoder import Decoder
from roots.parallel.shard import shard_of
from tests.helpers.hf_models import Case, build, gpt2, gpt_neox, load, of_llama, rope, tokens_of

llama = partial(of_llama, "LlamaConfig")
mistral = partial(of_llama, "MistralConfig", sliding_window=None)
# transformers' product over experts wants rows of whole 16 bytes.
mixtral = partial(of_llama, "MixtralConfig", num_local_experts=5, intermediate_size=72)
qwen2 = partial(of_llama, "Qwen2Config")
qwen3 = partial(of_llama, "Qwen3Config")
experts = {"num_experts": 5, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
qwen2_moe = partial(of_llama, "Qwen2MoeConfig", **experts, shared_expert_intermediate_size=36)
qwen3_moe = partial(of_llama, "Qwen3MoeConfig", **experts)

CASES = [
    Case("gpt2", gpt2),
    Case("gpt2-untied-gelu", partial(gpt2, tie_word_embeddings=False, activation_function="gelu")),
    Case("gpt2-wide", partial(gpt2, n_embd=40, n_head=1, n_inner=52, n_layer=1)),
    Case("gpt2-relu", partial(gpt2, activation_function="relu", layer_norm_epsilon=1e-3)),
    Case("neox", gpt_neox),
    Case("neox-whole-heads", partial(
        gpt_neox, rope_parameters=rope("default", partial_rotary_factor=1.0))),
    Case("neox-serial", partial(gpt_neox, use_parallel_residual=False, tie_word_embeddings=True)),
    Case("llama", llama),
    Case("llama-tied-mha", partial(llama, tie_word_embeddings=True, num_key_value_heads=6)),
    Case("llama-biases-mqa", partial(
        llama, attention_bias=True, mlp_bias=True, num_key_value_heads=1)),
    Case("llama-head-dim", partial(llama, head_dim=10, rms_norm_eps=1e-5)),
    Case("llama-linear", partial(llama, rope_parameters=rope("linear", factor=3.0))),
    Case("llama3", partial(llama, rope_parameters=rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=24))),
    Case("llama-yarn", partial(llama, rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=24, beta_fast=16.0))),
    Case("mistral", mistral),
    Case("mistral-window", partial(mistral, sliding_window=7, head_dim=12)),
    Case("mixtral", mixtral),
    Case("mixtral-top3-tied", partial(
        mixtral, num_experts_per_tok=3, tie_word_embeddings=True, sliding_window=8)),
    Case("qwen2", qwen2),
    Case("qwen2-tied-window", partial(
        qwen2, tie_word_embeddings=True, use_sliding_window=True, sliding_window=9,
        max_window_layers=0)),
    Case("qwen3", partial(qwen3, head_dim=16)),
    Case("qwen3-tied-odd", partial(qwen3, head_dim=6, tie_word_embeddings=True, vocab_size=131)),
    Case("qwen2-moe", qwen2_moe),
    Case("qwen2-moe-mixed-unbiased", partial(
        qwen2_moe, num_hidden_layers=4, decoder_sparse_step=2, qkv_bias=False,
        norm_topk_prob=True)),
    Case("qwen3-moe", partial(qwen3_moe, norm_topk_prob=True)),
    Case("qwen3-moe-mixed-tied", partial(
        qwen3_moe, num_hidden_layers=3, decoder_sparse_step=2, tie_word_embeddings=True,
        num_experts_per_tok=3, head_dim=12)),
]  # fmt: skip


def call(*words: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """All tensors of the model files in a folder."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found.update(load_file(path))
    return found


def gradients_by_their_names(decoder: Decoder) -> dict[str, Tensor]:
    """The gradients of ROOTS' parameters, rearranged by the rules of an export."""
    family, _ = choose_family(decoder.model)
    gradients = {shard_of(each).name: each.grad for each in decoder.parameters()}
    return {
        part.name: part.to_theirs(gradients[rule.name][slice(*rule.rows_of(part))])
        for rule in family.tensors(decoder.model)
        for part in rule.parts
    }


def gradients_in_files(theirs: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Their gradients by the names of their files: saved in place of the weights, which are lost.

    In memory some have other names, and experts are one tensor.
    """
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(folder)
    return tensors_in(folder)


def run_ours(decoder: Decoder, tokens_BT: Tensor, *labels: Tensor) -> Tensor:
    rows = torch.zeros(len(tokens_BT), dtype=torch.int64)
    return decoder(tokens_BT, torch.zeros_like(tokens_BT), rows, *labels)


def greedy(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers adds to prompts of equal length."""
    model.generation_config.eos_token_id = None
    ids_BT = torch.tensor(prompts)
    # Without a mask the token that pads would be masked wherever it stands.
    options = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    found_BT = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **options)
    return found_BT[:, ids_BT.shape[1] :].tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_model_of_transformers_comes_in_and_goes_out_unchanged(case: Case, tmp_path: Path) -> None:
    theirs = build(case)
    source, checkpoint, back = tmp_path / "hf", tmp_path / "roots", tmp_path / "back"
    theirs.save_pretrained(source)
    call("import", source, "--to", checkpoint)
    decoder = load_model(checkpoint, Device("cpu", 0)).decoder

    tokens_BT = tokens_of(theirs.config.vocab_size)
    expected = theirs(tokens_BT).logits
    difference = (run_ours(decoder, tokens_BT) - expected).abs().max()
    assert difference < 1e-4
    assert difference < 1e-5 * expected.abs().max()

    labels_BT = tokens_BT.roll(-1, 1)
    weights_BT = torch.full(tokens_BT.shape, 1.0 / tokens_BT.shape[1])
    expected_loss = F.cross_entropy(expected.flatten(0, 1), labels_BT.flatten())
    loss = run_ours(decoder, tokens_BT, labels_BT, weights_BT)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    expected_loss.backward()
    loss.backward()

    prompts = tokens_BT[:, :9].tolist()
    options = GenerationOptions(max_new_tokens=64, sampling=SamplingOptions(greedy=True))
    texts = continue_tokens(decoder, prompts, options, end=-1)
    assert [list(text.token_ids) for text in texts] == greedy(theirs, prompts)

    call("export", checkpoint, "--to", back)
    first, second = tensors_in(source), tensors_in(back)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(load(back)(tokens_BT).logits, expected)

    gradients = gradients_by_their_names(decoder)
    wanted = gradients_in_files(theirs, tmp_path / "gradients")
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        error = (gradients[name] - gradient).norm()
        assert error < 1e-4 * gradient.norm() + 1e-7, name
