"""T5 and BERT of transformers, imported by the real command: equal logits, gradients, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from roots.checkpoint import load_model_weights
from roots.config import load_config
from roots.config.spans import sentinel_tokens
from roots.exchange.hf.registry import choose_family
from roots.exchange.hf.special_tokens import data_tokens
from roots.parallel.shard import shard_of
from tests.exchange.hf.test_parity import call, tensors_in
from tests.helpers.hf_models import transformers
from tests.helpers.pairs import built, perturb, random_pairs, random_rows


def t5(**fields: Any) -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 12, "d_ff": 52, "num_layers": 3, "num_decoder_layers": 2}
    more = {"num_heads": 4, "vocab_size": 101, "dropout_rate": 0.0, "pad_token_id": 100}
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    config = transformers.T5Config(**{**sizes, **more, **buckets, **fields})
    return transformers.T5ForConditionalGeneration(config)


def t5_untied() -> nn.Module:
    """Like T5 1.1. transformers ties what it makes, and leaves alone what a file has separately."""
    model = t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model.lm_head.weight = nn.Parameter(torch.randn(101, 32))
    return model


def bert(**fields: Any) -> nn.Module:
    sizes = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3}
    more = {"intermediate_size": 50, "vocab_size": 99, "max_position_embeddings": 24}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**{**sizes, **more, **rates, **fields})
    return transformers.BertForMaskedLM(config)


CASES: dict[str, Callable[[], nn.Module]] = {
    "t5": t5,
    "t5-gated-untied": t5_untied,
    "t5-equal-depths": partial(t5, num_layers=1, num_decoder_layers=None),
    "bert": bert,
    "bert-tanh": partial(bert, hidden_act="gelu_new", type_vocab_size=1, num_attention_heads=2),
}


def rows_for(module: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Random inputs as ROOTS takes them, and the keyword arguments of transformers for them."""
    model = module.model
    if model.architecture == "encoder":
        rows = random_rows(model)
        mask_BT = torch.arange(model.sequence_length) < rows.lengths_B[:, None]
        return rows, {"input_ids": rows.tokens_BT, "attention_mask": mask_BT.long()}
    pairs = random_pairs(model)
    mask_BS = torch.arange(model.source_tokens) < pairs.source_lengths_B[:, None]
    theirs = {"input_ids": pairs.source_BS, "attention_mask": mask_BS.long()}
    return pairs, {**theirs, "decoder_input_ids": pairs.tokens_BT}


@pytest.mark.parametrize("name", CASES)
def test_encoders_come_in_and_go_out_unchanged(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = CASES[name]().eval()
    perturb(theirs)
    source, checkpoint, back = tmp_path / "hf", tmp_path / "roots", tmp_path / "back"
    theirs.save_pretrained(source)
    if name == "t5-gated-untied":
        tree = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**tree, "tie_word_embeddings": False}))
    call("import", source, "--to", checkpoint)
    stored = load_config(checkpoint / "config.yaml").model
    short = {} if stored.architecture == "encoder" else {"sequence_length": 15, "source_length": 11}
    ours = built(stored.model_copy(update=short)).eval()
    load_model_weights(checkpoint, ours)

    rows, arguments = rows_for(ours)
    *inputs, labels_BT, weights_BT = rows
    expected = theirs(**arguments).logits
    seen_BT = arguments["attention_mask"].bool() if stored.architecture == "encoder" else ...
    difference = (ours(*inputs) - expected)[seen_BT].abs().max()
    assert difference < 1e-5 * expected.abs().max()

    losses_BT = F.cross_entropy(expected.transpose(1, 2), labels_BT, reduction="none")
    ((losses_BT * weights_BT).sum() / len(labels_BT)).backward()
    ours(*rows).backward()
    family, _ = choose_family(stored)
    gradients = {shard_of(each).name: each.grad for each in ours.parameters()}
    for rule in family.tensors(stored):
        for part in rule.parts:
            found = part.to_theirs(gradients[rule.name][slice(*rule.rows_of(part))])
            wanted = theirs.get_parameter(part.name).grad
            assert (found - wanted).norm() < 1e-4 * wanted.norm() + 1e-7, part.name

    call("export", checkpoint, "--to", back)
    first, second = tensors_in(source), tensors_in(back)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = type(theirs).from_pretrained(back, local_files_only=True).eval()
    assert torch.equal(again(**arguments).logits, expected)


def test_exported_t5_writes_and_learns_without_being_told_how(tmp_path: Path) -> None:
    """T5 begins behind its padding (100 here); imported, trained and exported it still does."""
    t5(vocab_size=300).save_pretrained(tmp_path / "hf")
    # As one that ROOTS has trained: nobody left settings for it.
    (tmp_path / "hf" / "generation_config.json").unlink()
    call("import", tmp_path / "hf", "--to", tmp_path / "roots")
    assert load_config(tmp_path / "roots" / "config.yaml").data.begin_token == 100
    call("export", tmp_path / "roots", "--to", tmp_path / "out", "--tokenizer", "bytes")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    written_BT = model.generate(**words("abc", return_tensors="pt"), max_new_tokens=3)
    assert words.eos_token_id == 256
    assert written_BT[0, 0] == 100
    targets = torch.tensor([[5, 6, 256]])
    assert model(**words("abc", return_tensors="pt"), labels=targets).loss.isfinite()


def test_imported_t5_hides_spans_by_the_sentinels_of_its_tokenizer(tmp_path: Path) -> None:
    """As in the released ones, 28 rows above <extra_id_0> are nobody's."""
    words = transformers.T5Tokenizer()
    first = words.convert_tokens_to_ids("<extra_id_0>")
    assert first == len(words) - 1
    t5(vocab_size=len(words) + 28, pad_token_id=0, n_positions=64).save_pretrained(tmp_path / "hf")
    words.save_pretrained(tmp_path / "hf")
    call("import", tmp_path / "hf", "--to", tmp_path / "roots")
    config = load_config(tmp_path / "roots" / "config.yaml")
    assert (config.data.sentinel_token, config.data.begin_token) == (first, 0)
    names = [f"<extra_id_{number}>" for number in range(len(sentinel_tokens(config)))]
    assert words.convert_tokens_to_ids(names) == list(reversed(sentinel_tokens(config)))


def test_sentinels_that_do_not_go_down_are_nobody_s(tmp_path: Path) -> None:
    for ids, expected in (((7, 6), {"sentinel_token": 7}), ((6, 7), {}), ((7,), {})):
        tokens = {f"<extra_id_{number}>": token for number, token in enumerate(ids)}
        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **tokens}, unk_token="[UNK]"))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        assert data_tokens(tmp_path, "encoder_decoder", {}) == expected


def test_imported_bert_keeps_its_mask(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "hf")
    tokens = {"[UNK]": 0, "[MASK]": 7, "a": 8, "<|endoftext|>": 9}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    for mask in ("[MASK]", {"content": "[MASK]", "lstrip": True}):
        settings = json.dumps({"mask_token": mask})
        (tmp_path / "hf" / "tokenizer_config.json").write_text(settings)
        assert data_tokens(tmp_path / "hf", "encoder", {}) == {"mask_token": 7}
    call("import", tmp_path / "hf", "--to", tmp_path / "roots")
    assert load_config(tmp_path / "roots" / "config.yaml").data.mask_token == 7
