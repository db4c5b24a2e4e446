"""Keys and tensors of a folder that change a model: read, known as harmless, or refused."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from roots.checkpoint import load_model_weights, read_config
from roots.device import Device
from roots.errors import RootsError
from roots.exchange.hf.importing import import_hf
from roots.generation.load import load_model
from tests.helpers.hf_models import Case, build, gpt2, gpt_neox, load, of_llama, rope, tokens_of
from tests.helpers.pairs import built

transformers = pytest.importorskip("transformers", reason="compares with Hugging Face transformers")

llama = partial(of_llama, "LlamaConfig")
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=96)
LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=96,
)


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; ... removes one."""
    path = folder / "config.json"
    tree = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not ...}))


def edit_tensors(folder: Path, **changes: Tensor | None) -> None:
    """Change tensors, with __ for dots; None removes one."""
    path = folder / "model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    tensors = {**load_file(path), **named}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata={"format": "pt"})


def saved(case: Case, folder: Path) -> nn.Module:
    model = build(case)
    model.save_pretrained(folder)
    return model


def difference(folder: Path, checkpoint: Path) -> float:
    """Between the logits of both, of one row that is longer than the lengths before a stretch."""
    theirs = load(folder)
    tokens_BT = tokens_of(theirs.config.vocab_size, length=80)
    import_hf(folder, checkpoint)
    decoder = load_model(checkpoint, Device("cpu", 0)).decoder
    zeros_B = torch.zeros(len(tokens_BT), dtype=torch.int64)
    with torch.no_grad():
        ours = decoder(tokens_BT, torch.zeros_like(tokens_BT), zeros_B)
        return float((ours - theirs(tokens_BT).logits).abs().max())


def refusal(folder: Path) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        import_hf(folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()
    return caught.value.lines


@pytest.mark.parametrize("parameters", [YARN, LLAMA3], ids=["yarn", "llama3"])
@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
def test_length_before_the_stretch_is_read_beside_it(
    parameters: dict[str, Any], place: str, tmp_path: Path
) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    keys = {"rope_parameters": ..., "rope_theta": 5000.0, place: parameters}
    edit(tmp_path / "hf", **keys, original_max_position_embeddings=24)
    assert difference(tmp_path / "hf", tmp_path / "roots") < 1e-4
    assert read_config(tmp_path / "roots").model.rotary_scaling.original_length == 24


def test_newer_place_gives_way_to_the_older_one_as_a_whole(tmp_path: Path) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    linear = {"rope_type": "linear", "factor": 3.0}
    edit(tmp_path / "hf", rope_parameters=LLAMA3, rope_scaling=linear, rope_theta=700.0)
    assert difference(tmp_path / "hf", tmp_path / "roots") < 1e-4


@pytest.mark.parametrize(
    "case, head, table",
    [
        (
            Case("llama", partial(llama, tie_word_embeddings=True)),
            "lm_head.weight",
            "model.embed_tokens.weight",
        ),
        (Case("gpt2", gpt2), "lm_head.weight", "transformer.wte.weight"),
        (
            Case("neox", partial(gpt_neox, tie_word_embeddings=True)),
            "embed_out.weight",
            "gpt_neox.embed_in.weight",
        ),
    ],
    ids=["llama", "gpt2", "neox"],
)
def test_head_that_differs_from_the_tied_table_is_kept(
    case: Case, head: str, table: str, tmp_path: Path
) -> None:
    folder = tmp_path / "hf"
    saved(case, folder)
    rows = load_file(folder / "model.safetensors")[table]
    edit_tensors(folder, **{head.replace(".", "__"): rows + torch.randn(rows.shape)})
    assert difference(folder, tmp_path / "roots") < 1e-4
    assert not read_config(tmp_path / "roots").model.tied_embeddings
    edit_tensors(folder, **{head.replace(".", "__"): rows.clone()})
    import_hf(folder, tmp_path / "again")
    assert read_config(tmp_path / "again").model.tied_embeddings


@pytest.mark.parametrize(
    "key, value",
    [
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logits_scaling", 8.0),
        ("embedding_multiplier", 12.0),
        ("query_pre_attn_scalar", 16),
        ("a_key_of_a_fork", True),
    ],
)
def test_key_that_nobody_knows_is_refused_by_name(key: str, value: object, tmp_path: Path) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    edit(tmp_path / "hf", **{key: value})
    assert refusal(tmp_path / "hf") == (
        f"{key} of {tmp_path}/hf/config.json={value!r}: is unknown for llama, so it may change "
        "what the model computes; remove the key if the model is the same without it",
    )
    edit(tmp_path / "hf", **{key: None})
    import_hf(tmp_path / "hf", tmp_path / "out")


@pytest.mark.parametrize(
    "keys",
    [
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}},
        {"max_sequence_length": 2048, "pad_token_id": 0, "_flash_attn_2_enabled": True},
        {"use_mrope": False, "use_sliding_window": False, "max_window_layers": 2},
        {"layer_types": ["full_attention"] * 2, "pruned_heads": {}},
    ],
    ids=["smollm2", "first-llamas", "distilled", "newest"],
)
def test_keys_that_released_models_spell_all_the_same_are_known(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    edit(tmp_path / "hf", **keys)
    assert difference(tmp_path / "hf", tmp_path / "roots") < 1e-4


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_interleaved": True},
        {"use_mrope": True},
        {"pruned_heads": {"0": [1]}},
        {"layer_types": ["sliding_attention"] * 2},
        {"layer_types": ["full_attention", "linear_attention"]},
    ],
    ids=str,
)
def test_their_other_values_are_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    edit(tmp_path / "hf", **keys)
    (line,) = refusal(tmp_path / "hf")
    assert line.startswith(f"{next(iter(keys))} of {tmp_path}/hf/config.json=")


@pytest.mark.parametrize(
    "parameters, line",
    [
        ({"rope_type": "default", "rope_theta": 1e4, "frequency_shift": 2.0}, "frequency_shift"),
        ({"full_attention": {"rope_type": "default", "rope_theta": 1e4}}, "full_attention"),
        ("linear", "must be an object"),
    ],
)
def test_rotary_parameters_that_nobody_knows_are_refused(
    parameters: object, line: str, tmp_path: Path
) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    edit(tmp_path / "hf", rope_parameters=parameters)
    (found,) = refusal(tmp_path / "hf")
    assert line in found


def test_null_means_what_a_missing_key_does(tmp_path: Path) -> None:
    saved(Case("llama", partial(llama, rms_norm_eps=1e-6)), tmp_path / "hf")
    keys = ("attention_bias", "mlp_bias", "pretraining_tp", "rms_norm_eps", "attention_dropout")
    edit(tmp_path / "hf", **dict.fromkeys((*keys, "initializer_range", "hidden_act")))
    import_hf(tmp_path / "hf", tmp_path / "roots")
    model = read_config(tmp_path / "roots").model
    assert (model.bias, model.norm_epsilon, model.activation) == (False, 1e-6, "swiglu")


def test_masks_do_not_decide_the_dtype(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    build(Case("neox", gpt_neox), torch.float16).save_pretrained(folder)
    masks = {
        f"gpt_neox__layers__{index}__attention__bias": torch.ones(1, 1, 512, 512, dtype=torch.bool)
        for index in range(2)
    }
    edit_tensors(folder, **masks, gpt_neox__layers__0__attention__masked_bias=torch.tensor(-1e9))
    import_hf(folder, tmp_path / "roots")
    assert read_config(tmp_path / "roots").training.precision == "fp16"


def bert(folder: Path, kind: str) -> Any:
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=61,
        max_position_embeddings=40,
    )
    torch.manual_seed(3)
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder)
    return model


def bert_difference(theirs: Any, checkpoint: Path) -> float:
    tokens_BT = tokens_of(61, length=20)
    module = built(read_config(checkpoint).model).eval()
    load_model_weights(checkpoint, module)
    lengths_B = torch.full((2,), 20)
    with torch.no_grad():
        logits = theirs(tokens_BT)
        expected = logits.logits if hasattr(logits, "logits") else logits.prediction_logits
        ours = module(tokens_BT, lengths_B, torch.zeros(2, dtype=torch.int64))
        return float((ours - expected).abs().max())


def test_norms_of_the_first_bert_files_have_other_names(tmp_path: Path) -> None:
    theirs = bert(tmp_path / "hf", "BertForMaskedLM")
    path = tmp_path / "hf" / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(path).items()
    }
    assert any(name.endswith("gamma") for name in old)
    save_file(old, path, metadata={"format": "pt"})
    import_hf(tmp_path / "hf", tmp_path / "roots")
    assert bert_difference(theirs, tmp_path / "roots") < 1e-4


def test_next_sentence_head_is_left_out_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = bert(tmp_path / "hf", "BertForPreTraining")
    monkeypatch.setattr(logging.getLogger("roots"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="roots"):
        import_hf(tmp_path / "hf", tmp_path / "roots")
    assert "left out, as ROOTS has no such head: bert.pooler.dense.bias" in caplog.text
    assert "cls.seq_relationship.weight" in caplog.text
    assert bert_difference(theirs, tmp_path / "roots") < 1e-4


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_quantised_folder_is_one_line(method: str, tmp_path: Path) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    edit(tmp_path / "hf", quantization_config={"quant_method": method, "bits": 4})
    (line,) = refusal(tmp_path / "hf")
    assert line.startswith(
        f"quantization_config.quant_method={method}: unquantised weights are needed"
    )


def test_tokenizer_with_more_ids_than_rows_is_refused_at_once(tmp_path: Path) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    words = {f"w{number}": number for number in range(99)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"eos_token": "w1"}')
    (line,) = refusal(tmp_path / "hf")
    assert "has 100 ids, but the model has rows for 99" in line


@pytest.mark.parametrize(
    "index, told",
    [
        ("{}", "must hold a weight_map that names the file of every tensor"),
        ('{"weight_map": []}', "must hold a weight_map"),
        ('{"weight_map": {"a": 1}}', "must hold a weight_map"),
        ("[]", "must hold a JSON object"),
        ("[" * 100_000, "is not JSON (maximum recursion depth"),
        ('{"weight_map": {"a": "../hf/model.safetensors"}}', "is no plain name of a file of"),
        ('{"weight_map": {"a": "/etc/hostname"}}', "is no plain name of a file of"),
    ],
)
def test_odd_index_is_one_line(index: str, told: str, tmp_path: Path) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(index)
    (line,) = refusal(tmp_path / "hf")
    assert told in line


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    save_file({"model.norm.weight": torch.zeros(48)}, tmp_path / "hf" / "other.safetensors")
    names = {"a": path.name, "b": "other.safetensors"}
    index = tmp_path / "hf" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert refusal(tmp_path / "hf") == (
        f"tensor model.norm.weight: is in {path} and in {tmp_path}/hf/other.safetensors; "
        "keep the file that belongs to the model",
    )


def test_pickled_weights_are_told_with_the_way_out(tmp_path: Path) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    assert refusal(tmp_path / "hf") == (
        f"folder='{tmp_path}/hf': holds its weights in pytorch_model.bin, a pickle, which could "
        "run code; load the model in transformers and save it by save_pretrained as safetensors",
    )


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(key: str, tmp_path: Path) -> None:
    saved(Case("llama", llama), tmp_path / "hf")
    edit(tmp_path / "hf", **{key: 10**10 + 8})
    lines = refusal(tmp_path / "hf")
    assert len(lines) <= 13
    if key == "num_hidden_layers":
        assert "are more than the 21 tensors of" in lines[0]
