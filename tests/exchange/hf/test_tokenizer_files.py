"""Tokenizers travel with models, and AutoTokenizer splits text as ROOTS does."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import transformers

from roots.cli.main import main
from roots.config import load_config
from roots.exchange.hf.importing import import_hf
from roots.tokenizer.tokenizer import load_tokenizer
from roots.tokenizer.train import save_tokenizer, train_bpe
from tests.helpers.hf_models import Case, build, gpt2

TEXTS = [
    "the quick brown fox",
    "naive  caf\u00e9\n\tna\u00efve \u4f60\u597d",
    "def f(x):\n    return x",
    "",
]


def call(*words: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0


def random_text(generator: random.Random) -> str:
    return "".join(
        chr(generator.choice((9, 10, 32, generator.randrange(33, 0x2FF)))) for _ in range(60)
    )


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    save_tokenizer(train_bpe([text * 5 for text in TEXTS], 300), folder)
    return folder


@pytest.fixture(scope="module")
def imported(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that came with its tokenizer and generation config."""
    folder = tmp_path_factory.mktemp("imported")
    model = build(Case("gpt2", partial(gpt2, vocab_size=300)))
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder / "hf")
    for path in words.iterdir():
        shutil.copy(path, folder / "hf")
    import_hf(folder / "hf", folder / "roots")
    return folder


def assert_alike(ours: str, theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_tokenizer(ours)
    second = transformers.AutoTokenizer.from_pretrained(theirs, local_files_only=True)
    generator = random.Random(3)
    for text in [*TEXTS, *(random_text(generator) for _ in range(50))]:
        ids = first.encode(text)
        assert second.encode(text, add_special_tokens=False) == ids
        assert second.decode(ids) == first.decode(ids) == text
    assert second.eos_token_id == first.end_of_document


def test_imported_tokenizer_serves_roots_and_leaves_again(
    imported: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = imported / "roots"
    config = load_config(checkpoint / "config.yaml")
    assert config.data.tokenizer == str(checkpoint / "tokenizer")
    # Nothing but the folder itself is needed, wherever it goes.
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    call("generate", moved, "--prompt", "the quick", "--greedy", "--max-new-tokens", 8, "--json")
    report = json.loads(capsys.readouterr().out)
    call("export", moved, "--to", tmp_path / "back", "--json")
    assert json.loads(capsys.readouterr().out)["tokenizer"] == str(moved / "tokenizer")
    assert_alike(str(words), tmp_path / "back", capsys)

    text = transformers.pipeline("text-generation", model=str(tmp_path / "back"))(
        "the quick", do_sample=False, return_full_text=False, max_new_tokens=8
    )[0]["generated_text"]
    assert text == report["continuations"][0]["text"]
    settings = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 7


def test_another_tokenizer_brings_no_settings_along(
    imported: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(words, tmp_path / "other")
    (tmp_path / "other" / "generation_config.json").write_text('{"temperature": 0.1}')
    call("export", imported / "roots", "--to", tmp_path / "out", "--tokenizer", tmp_path / "other")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert "temperature" not in settings


def test_bytes_become_a_tokenizer_that_transformers_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(Case("gpt2", partial(gpt2, vocab_size=300))).save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "roots")
    # Whose model this is nobody said, and it has rows enough.
    call("export", tmp_path / "roots", "--to", tmp_path / "out", "--tokenizer", "bytes")
    assert_alike("bytes", tmp_path / "out", capsys)
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == 256


def test_tokenizer_of_another_vocabulary_is_refused(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(Case("gpt2", gpt2)).save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "roots")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "export",
                str(tmp_path / "roots"),
                "--to",
                str(tmp_path / "x"),
                "--tokenizer",
                str(words),
            ]
        )
    assert stop.value.code == 2
    size = load_tokenizer(words).vocab_size
    assert capsys.readouterr().err == (
        f"roots: error: tokenizer={str(words)!r}: has {size} ids, but the model has rows for 101; "
        "give the one the model was trained with\n"
    )


def test_dtype_is_kept_or_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import load_file

    build(Case("gpt2", gpt2), torch.bfloat16).save_pretrained(tmp_path / "hf")
    call("import", tmp_path / "hf", "--to", tmp_path / "roots")
    assert load_config(tmp_path / "roots" / "config.yaml").training.precision == "bf16"
    call("export", tmp_path / "roots", "--to", tmp_path / "kept")
    call("export", tmp_path / "roots", "--to", tmp_path / "fp32", "--dtype", "fp32")
    first, kept, wide = (
        load_file(tmp_path / name / "model.safetensors") for name in ("hf", "kept", "fp32")
    )
    assert first.keys() == kept.keys() == wide.keys()
    for name, tensor in first.items():
        assert torch.equal(kept[name], tensor)
        assert kept[name].dtype == torch.bfloat16
        assert torch.equal(wide[name], tensor.float())
    out = capsys.readouterr().out
    assert "tokenizer     none (data.tokenizer is not set; give --tokenizer DIR)\n" in out
    for folder, name in (("kept", "bfloat16"), ("fp32", "float32")):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert str(loaded.dtype) == f"torch.{name}"
