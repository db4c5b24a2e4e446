"""Exports train as ROOTS does at every id, the one that ends a document included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from roots.checkpoint import load_model_weights, read_config
from roots.exchange.hf.exporting import export_hf
from roots.exchange.hf.importing import import_hf
from roots.exchange.hf.registry import FAMILIES, choose_family
from roots.parallel.shard import shard_of
from tests.exchange.hf.test_encoder_parity import bert, rows_for, t5
from tests.exchange.hf.test_parity import tensors_in
from tests.helpers.hf_models import gpt2, gpt_neox, of_llama, transformers
from tests.helpers.pairs import built, perturb

VOCABULARY = 260
END = 256
EXPERTS = {"num_experts": 5, "moe_intermediate_size": 24, "num_experts_per_tok": 2}


def theirs_of(model_type: str, tied: bool) -> Any:
    """A tiny model of every family; the tokenizer of bytes, whose end is 256, fits it."""
    fields: dict[str, Any] = {"vocab_size": VOCABULARY, "tie_word_embeddings": tied}
    if model_type == "t5":
        model = t5(**fields, pad_token_id=0)
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 32))
        return model
    if model_type == "bert":
        return bert(vocab_size=VOCABULARY, pad_token_id=0)
    makers = {"gpt2": gpt2, "gpt_neox": gpt_neox}
    kinds = {
        "llama": ("LlamaConfig", {}),
        "mistral": ("MistralConfig", {"sliding_window": None}),
        "qwen2": ("Qwen2Config", {}),
        "qwen3": ("Qwen3Config", {}),
        "mixtral": ("MixtralConfig", {"num_local_experts": 5, "intermediate_size": 72}),
        "qwen3_moe": ("Qwen3MoeConfig", EXPERTS),
        "qwen2_moe": ("Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 36}),
    }
    if model_type in makers:
        config = makers[model_type](**fields)
    else:
        kind, more = kinds[model_type]
        config = of_llama(kind, **fields, **more, pad_token_id=0)
    return transformers.AutoModelForCausalLM.from_config(config)


CASES = [
    (family.model_type, tied)
    for family in FAMILIES
    for tied in (True, False)
    if tied or family.model_type != "bert"
]


@pytest.mark.parametrize(("model_type", "tied"), CASES)
def test_three_steps_move_every_row_as_in_roots(
    model_type: str, tied: bool, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    made = theirs_of(model_type, tied).eval()
    perturb(made)
    made.save_pretrained(tmp_path / "hf")
    if model_type == "t5":
        tree = json.loads((tmp_path / "hf/config.json").read_text())
        tree["tie_word_embeddings"] = tied
        (tmp_path / "hf/config.json").write_text(json.dumps(tree))
    import_hf(tmp_path / "hf", tmp_path / "roots")
    export_hf(tmp_path / "roots", tmp_path / "out", tokenizer="bytes")
    theirs = type(made).from_pretrained(tmp_path / "out", local_files_only=True).eval()
    model = read_config(tmp_path / "roots").model
    pairs = model.architecture == "encoder_decoder"
    short = {"sequence_length": 15, "source_length": 11} if pairs else {}
    ours = built(model.model_copy(update=short)).eval()
    load_model_weights(tmp_path / "roots", ours)
    rows, arguments, labels_BT, weights_BT = batch_for(ours)
    before = {name: tensor.clone() for name, tensor in tensors_in(tmp_path / "out").items()}

    steps = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (ours, theirs)]
    for _ in range(3):
        for step in steps:
            step.zero_grad()
        logits_BTV = theirs(**arguments).logits
        losses_BT = F.cross_entropy(logits_BTV.transpose(1, 2), labels_BT, reduction="none")
        ((losses_BT * weights_BT).sum() / len(labels_BT)).backward()
        ours(*rows).backward()
        for step in steps:
            step.step()
    theirs.save_pretrained(tmp_path / "moved")
    after = tensors_in(tmp_path / "moved")
    family, _ = choose_family(model)
    weights = {shard_of(each).name: each.detach() for each in ours.parameters()}
    moved = 0
    for rule in family.tensors(model):
        for part in rule.parts:
            wanted = part.to_theirs(weights[rule.name][slice(*rule.rows_of(part))])
            ours_by = (wanted - before[part.name]).flatten(1) if wanted.dim() > 1 else None
            theirs_by = after[part.name] - before[part.name]
            if ours_by is None:
                ours_by, theirs_by = (wanted - before[part.name])[None], theirs_by[None]
            # Of every row, not of the tensor: one row that stands still is a small part of it.
            apart = (ours_by - theirs_by.flatten(1)).norm(dim=1)
            assert (apart <= 1e-2 * ours_by.norm(dim=1) + 1e-5).all(), part.name
            moved += int((ours_by.norm(dim=1) > 1e-3).sum())
    assert moved > VOCABULARY


def batch_for(ours: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any, Any]:
    """Rows as ROOTS takes them, what transformers takes, labels and weights.

    They hold the end of a document and the id that the source's config.json named as padding.
    """
    if ours.model.architecture == "decoder":
        tokens_BT = torch.randint(VOCABULARY, (3, 15))
        tokens_BT[:, 2], tokens_BT[:, 5], tokens_BT[:, 9] = END, 0, 1
        labels_BT = tokens_BT.roll(-1, 1)
        weights_BT = torch.full(labels_BT.shape, 1 / 15)
        places = (torch.zeros_like(tokens_BT), torch.zeros(3, dtype=torch.int64))
        arguments = {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT)}
        return (tokens_BT, *places, labels_BT, weights_BT), arguments, labels_BT, weights_BT
    rows, arguments = rows_for(ours)
    for tokens in (rows.tokens_BT, arguments["input_ids"]):
        tokens[:, 1], tokens[:, 2], tokens[:, 3] = END, 0, 1
    *_, labels_BT, weights_BT = rows
    return rows, arguments, labels_BT, weights_BT


def test_files_of_an_export_name_padding_where_it_freezes_nothing(tmp_path: Path) -> None:
    made = theirs_of("llama", False)
    made.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "roots")
    export_hf(tmp_path / "roots", tmp_path / "out", tokenizer="bytes")
    assert json.loads((tmp_path / "out/config.json").read_text())["pad_token_id"] is None
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().padding_idx is None
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words.pad_token_id == words.eos_token_id == END
    write = transformers.pipeline("text-generation", model=model, tokenizer=words)
    options = {"do_sample": False, "max_new_tokens": 3, "return_tensors": True}
    prompts = ["the quick brown", "a"]
    together = write(prompts, batch_size=2, **options)
    alone = [write(prompt, **options) for prompt in prompts]
    new = [[found[0]["generated_token_ids"][-3:] for found in many] for many in (together, alone)]
    assert new[0] == new[1]
