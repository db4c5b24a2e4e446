"""Begin and end tokens of an imported model: as in transformers, and the same when it leaves."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transformers

from roots.cli.main import main
from roots.exchange.hf.importing import import_hf
from roots.exchange.hf.tokenizer_files import TOKENIZER_FOLDER
from roots.tokenizer.special_tokens import DocumentTokens, documents_text
from roots.tokenizer.tokenizer import load_tokenizer
from tests.helpers.hf_models import Case, build, of_llama
from tests.helpers.words import BOS, EOS, FILES, TURN, edit_json, write_words

PROMPTS = ("the cat", "", "<turn>the mat")
VOCAB = 285


def write_model(folder: Path, front: str | None = "<bos>", **settings: Any) -> Path:
    """A model of transformers with a begin token, and two tokens that end its texts."""
    words = partial(of_llama, "LlamaConfig", vocab_size=VOCAB, bos_token_id=BOS, eos_token_id=EOS)
    model = build(Case("llama", words, seed=3))
    model.generation_config.eos_token_id = [EOS, TURN]
    model.generation_config.bos_token_id = BOS
    model.generation_config.update(**settings)
    model.save_pretrained(folder)
    more = {"tokenizer_class": "PreTrainedTokenizerFast", **FILES["tokenizer_config.json"]}
    return write_words(folder, front=front, files={"tokenizer_config.json": more})


def call(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    # DeepSpeed, which transformers may import here, speaks in front of it.
    return json.loads(out[out.index("{\n") :])


def written(capsys: pytest.CaptureFixture[str], checkpoint: Path, *options: object) -> list[str]:
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    options = (*prompts, *options, "--max-new-tokens", 12, "--json")
    return [
        each["text"] for each in call(capsys, "generate", checkpoint, *options)["continuations"]
    ]


def written_by_transformers(folder: Path, **options: Any) -> list[str]:
    pipe = transformers.pipeline("text-generation", model=str(folder))
    # It has no way to begin with nothing but what the tokenizer puts in front of nothing.
    return [
        pipe(prompt, do_sample=False, return_full_text=False, max_new_tokens=12, **options)[0][
            "generated_text"
        ]
        for prompt in PROMPTS
    ]


def ids_of(folder: Path) -> list[Any]:
    """Begin and end tokens in both files of an exported or original model."""
    trees = [
        json.loads((folder / f"{name}.json").read_text())
        for name in ("config", "generation_config")
    ]
    return [(tree["bos_token_id"], tree["eos_token_id"]) for tree in trees]


@pytest.mark.parametrize("front", ["<bos>", None])
def test_a_model_begins_and_ends_as_in_transformers_and_leaves_as_it_came(
    front: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "hf", front, max_length=77)
    import_hf(tmp_path / "hf", tmp_path / "roots")
    expected = written_by_transformers(tmp_path / "hf")
    assert written(capsys, tmp_path / "roots", "--greedy") == expected
    beams = written_by_transformers(tmp_path / "hf", num_beams=3)
    assert written(capsys, tmp_path / "roots", "--beams", 3) == beams
    call(capsys, "export", tmp_path / "roots", "--to", tmp_path / "back", "--json")
    assert ids_of(tmp_path / "back") == ids_of(tmp_path / "hf")
    assert ids_of(tmp_path / "back") == [(BOS, EOS), (BOS, [EOS, TURN])]
    assert written_by_transformers(tmp_path / "back") == expected
    settings = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert settings["max_length"] == 77


def test_contradictions_are_refused_at_the_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "hf")
    edit_json(tmp_path / "hf" / "generation_config.json", bos_token_id=TURN)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["import", str(tmp_path / "hf"), "--to", str(tmp_path / "roots")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"roots: error: {tmp_path}/hf/generation_config.json bos_token_id=3: contradicts bos_token "
        f"'<bos>' (1) of {tmp_path}/hf; let the files of the model agree on what begins a text\n"
    )
    assert not (tmp_path / "roots").exists()


def test_an_export_begins_and_ends_as_the_training_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "roots")
    own = tmp_path / "roots" / TOKENIZER_FOLDER
    fed = DocumentTokens((), 0)
    fingerprint = load_tokenizer(own).fingerprint
    (own / "documents.json").write_text(documents_text(fed, fingerprint))
    call(capsys, "export", tmp_path / "roots", "--to", tmp_path / "back", "--json")
    assert ids_of(tmp_path / "back") == [(BOS, [EOS, 0]), (BOS, [EOS, TURN, 0])]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back", local_files_only=True)
    assert theirs("the cat")["input_ids"] == load_tokenizer(own).encode("the cat")
    # And so it comes back.
    import_hf(tmp_path / "back", tmp_path / "again")
    again = load_tokenizer(tmp_path / "again" / TOKENIZER_FOLDER).special
    assert again.documents == fed
    assert again.stops == {EOS, TURN, 0}


def test_only_a_tokenizer_of_the_same_vocabulary_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "roots")
    expected = written(capsys, tmp_path / "roots", "--greedy")
    # The same ids in another file are the same vocabulary.
    copy = write_words(tmp_path / "copy")
    edit_json(copy / "tokenizer.json", truncation=None, version="1.0")
    greedy = ("--greedy", "--tokenizer", copy)
    assert len(written(capsys, tmp_path / "roots", *greedy)) == len(expected)
    other = write_words(tmp_path / "other", vocab_size=279)
    commands = (
        ("generate", tmp_path / "roots", "--prompt", "a", "--tokenizer", other),
        ("export", tmp_path / "roots", "--to", tmp_path / "x", "--tokenizer", other),
        ("generate", tmp_path / "roots", "--prompt", "a", "--tokenizer", "bytes"),
    )
    for words in commands:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        assert stop.value.code == 2
        assert capsys.readouterr().err == (
            f"roots: error: --tokenizer={str(words[-1])!r}: has another vocabulary than the model "
            f"in {tmp_path}/roots was trained with; leave it out, or give the tokenizer of that "
            "training\n"
        )
