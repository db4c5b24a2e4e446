"""A model's begin and end tokens on their way through import, training, moving and export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from roots.checkpoint import resolve_checkpoint
from roots.cli.main import main
from roots.config import load_config
from roots.tokenizer.special_tokens import DocumentTokens
from roots.tokenizer.tokenizer import load_tokenizer
from tests.exchange.hf.test_special_tokens import write_model
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config
from tests.helpers.words import BOS, EOS, TURN
from tests.integration.runs import run

DOCUMENT_END = 0


def call(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return captured.out


def test_a_trained_checkpoint_is_whole_wherever_it_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    call(capsys, "import", write_model(home / "hf"), "--to", home / "imported")
    (home / "a.txt").write_text("the cat sat on the mat " * 200)
    words = ("--tokenizer", home / "imported" / "tokenizer", "--end-token", "<|endoftext|>")
    call(capsys, "preprocess", *words, "--out", home / "data", home / "a.txt")
    imported = load_config(home / "imported" / "config.yaml")
    model = {**imported.model.model_dump(), "sequence_length": 16}
    config = small_config(
        home / "data",
        home,
        model=model,
        training={"steps": 1},
        schedule={"warmup_steps": 0},
        data={"tokenizer": str(home / "imported" / "tokenizer")},
        checkpoint={"weights": str(home / "imported"), "every_steps": 1},
    )
    run_distributed(run, 1, config)
    checkpoint = tmp_path / "elsewhere" / "step_00000001"
    shutil.copytree(resolve_checkpoint(config.run_directory), checkpoint)
    shutil.rmtree(home)

    special = load_tokenizer(checkpoint / "tokenizer").special
    assert special.documents == DocumentTokens((BOS,), DOCUMENT_END)
    assert special.stops == {DOCUMENT_END, EOS, TURN}
    options = ("--greedy", "--max-new-tokens", 8, "--json")
    out = call(capsys, "generate", checkpoint, "--prompt", "the cat", *options)
    written: dict[str, Any] = json.loads(out)["continuations"][0]
    (tmp_path / "b.txt").write_text("the mat")
    words = ("--tokenizer", checkpoint / "tokenizer", "--out", tmp_path / "data")
    out = call(capsys, "preprocess", *words, tmp_path / "b.txt")
    assert "Every document is '<bos>' (1), its text, '<|endoftext|>' (0).\n" in out
    report = json.loads(call(capsys, "evaluate", checkpoint, "--data", tmp_path / "data", "--json"))
    assert report["bits_per_byte"] > 0
    call(capsys, "export", checkpoint, "--to", tmp_path / "hf")
    settings = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [EOS, TURN, DOCUMENT_END]
    pipe = transformers.pipeline("text-generation", model=str(tmp_path / "hf"))
    theirs = pipe("the cat", do_sample=False, return_full_text=False, max_new_tokens=8)
    assert theirs[0]["generated_text"] == written["text"]
