"""GGUF files give the logits of the model they were exported from, through transformers' loader."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from roots.errors import RootsError
from roots.exchange.gguf.exporting import export_gguf
from roots.exchange.hf.importing import import_hf
from roots.tokenizer.tokenizer import load_tokenizer
from roots.tokenizer.train import save_tokenizer, train_bpe
from tests.helpers.hf_models import Case, build, gpt2, of_llama, rope, tokens_of, transformers

pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate, not installed")
gguf = pytest.importorskip("gguf", reason="writes GGUF, whose package is not installed")

llama = partial(of_llama, "LlamaConfig")
CASES = [
    Case("llama", llama),
    Case("llama-tied", partial(llama, tie_word_embeddings=True, num_key_value_heads=6)),
    Case("qwen2", partial(of_llama, "Qwen2Config")),
    # The loader takes heads of 128 for granted here.
    Case("qwen3", partial(of_llama, "Qwen3Config", head_dim=128, num_attention_heads=2)),
]


def load(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", local_files_only=True, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gguf_gives_the_same_logits(case: Case, tmp_path: Path) -> None:
    theirs = build(case)
    theirs.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "roots")
    export_gguf(tmp_path / "roots", tmp_path / "out")
    tokens_BT = tokens_of(theirs.config.vocab_size)
    assert torch.equal(load(tmp_path / "out")(tokens_BT).logits, theirs(tokens_BT).logits)


def test_half_precision_and_tokenizer_go_along(tmp_path: Path) -> None:
    words = tmp_path / "words"
    text = "the quick brown fox jumps over the lazy dog, 1234 times"
    save_tokenizer(train_bpe([text] * 5, 290), words)
    theirs = build(Case("llama", partial(llama, vocab_size=300)), torch.bfloat16)
    theirs.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "roots")
    export_gguf(tmp_path / "roots", tmp_path / "out", tokenizer=str(words))
    kinds = {t.name: t.tensor_type for t in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == gguf.GGMLQuantizationType.BF16
    assert kinds["blk.0.attn_norm.weight"] == gguf.GGMLQuantizationType.F32
    loaded = load(tmp_path / "out")
    tokens_BT = tokens_of(300)
    # Rotary frequencies of a model that was cast are rounded, so it is loaded again.
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, local_files_only=True
    )
    assert torch.equal(loaded(tokens_BT).logits, reference(tokens_BT).logits)

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", local_files_only=True
    )
    ours = load_tokenizer(words)
    assert tokenizer.encode(text + " na\u00efve", add_special_tokens=False) == ours.encode(
        text + " na\u00efve"
    )
    assert tokenizer.eos_token_id == ours.end_of_document


def test_what_the_format_cannot_say_is_refused(tmp_path: Path) -> None:
    fix = "export it with --format hf"
    cases = {
        "gpt2": (
            gpt2,
            "--format gguf='GPT2LMHeadModel': has no GGUF form here; a model must be one of "
            f"LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM; {fix}",
        ),
        "window": (
            partial(of_llama, "MistralConfig", sliding_window=7),
            f"model.window=7: must be None for --format gguf; {fix}",
        ),
        "scaled": (
            partial(llama, rope_parameters=rope("linear", factor=2.0)),
            f"model.rotary_scaling.kind='linear': must be none or ntk for --format gguf; {fix}",
        ),
    }
    for name, (config, line) in cases.items():
        build(Case(name, config)).save_pretrained(tmp_path / name)
        import_hf(tmp_path / name, tmp_path / f"{name}-roots")
        with pytest.raises(RootsError) as caught:
            export_gguf(tmp_path / f"{name}-roots", tmp_path / "out")
        assert line in caught.value.lines
