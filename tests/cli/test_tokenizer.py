"""`roots tokenizer train`."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from roots.cli.tokenizer import tokenizer_app
from roots.errors import RootsError
from roots.tokenizer.tokenizer import load_tokenizer
from roots.tokenizer.train import reserved_folder


def train(tmp_path, *options, content="the cat sat on the mat, the cat sat\n" * 9):
    (tmp_path / "a.txt").write_text(content)
    out = tmp_path / "tokenizer"
    return CliRunner().invoke(
        tokenizer_app, ["train", "--out", str(out), *options, str(tmp_path / "a.txt")]
    )


def test_train_writes_a_tokenizer(tmp_path):
    result = train(tmp_path, "--vocab-size", "260", "--special-token", "<|user|>")
    assert result.exit_code == 0
    assert result.stdout.endswith(f"{tmp_path}/tokenizer: 260 ids, 0 ends a document\n")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert tokenizer.encode("<|user|>", special_tokens=True) == [1]


def test_report_for_machines(tmp_path):
    result = train(tmp_path, "--vocab-size", "260", "--json")
    report = json.loads(result.stdout)
    assert report == {
        "folder": f"{tmp_path}/tokenizer",
        "vocab_size": 260,
        "end_of_document": 0,
        "fingerprint": load_tokenizer(tmp_path / "tokenizer").fingerprint,
    }


def test_a_text_too_small_for_the_vocabulary_is_said(tmp_path):
    result = train(tmp_path, "--vocab-size", "9999")
    size = load_tokenizer(tmp_path / "tokenizer").vocab_size
    assert f"The text supports {size} ids of the 9999 asked for." in result.stdout


def test_vocabulary_too_small(tmp_path):
    result = train(tmp_path, "--vocab-size", "12")
    assert isinstance(result.exception, RootsError)
    assert str(result.exception) == (
        "--vocab-size=12: must be at least 257 (256 bytes and 1 special tokens); "
        "ask for a larger vocabulary"
    )


def test_broken_lines_can_be_left_out(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{\n')
    arguments = ["train", "--vocab-size", "260", "--out", str(tmp_path), f"{tmp_path}/b.jsonl"]
    assert isinstance(CliRunner().invoke(tokenizer_app, arguments).exception, RootsError)
    assert CliRunner().invoke(tokenizer_app, [*arguments, "--on-error", "skip"]).exit_code == 0


def test_both_sides_of_pairs_share_one_vocabulary(tmp_path):
    rows = "".join("leftwards\trightwards\n" for _ in range(9))
    (tmp_path / "a.tsv").write_text(f"source\ttarget\n{rows}")
    options = ["train", "--vocab-size", "290", "--out", str(tmp_path / "t"), "--pairs"]
    result = CliRunner().invoke(tokenizer_app, [*options, str(tmp_path / "a.tsv")])
    assert result.exit_code == 0, result.output
    tokenizer = load_tokenizer(tmp_path / "t")
    assert [len(ids) for ids in tokenizer.encode_batch(["leftwards", "rightwards"])] == [1, 1]
    assert len(tokenizer.encode("source")) > 1, "the names of columns are no text"


def test_formats_are_those_of_preprocess(tmp_path):
    (tmp_path / "c.json").write_text('{"body": "one two one two"}\n' * 3)
    (tmp_path / "d.csv").write_text("a,b")
    options = ["train", "--vocab-size", "270", "--out", str(tmp_path / "t"), "--text-key", "body"]
    result = CliRunner().invoke(tokenizer_app, [*options, str(tmp_path)])
    assert result.exit_code == 0, result.output
    tokenizer = load_tokenizer(tmp_path / "t")
    assert len(tokenizer.encode("one")) == 1
    assert len(tokenizer.encode("body")) == 4, "keys are no text"
    result = CliRunner().invoke(tokenizer_app, [*options, str(tmp_path / "d.csv")])
    assert str(result.exception).startswith(f"FILES='{tmp_path}/d.csv': .csv is a table; ")
    assert str(train(tmp_path, "--vocab-size", "270", "--text-key", "body").exception) == (
        "--text-key='body': has no effect, because every file here is text without keys or "
        "columns; leave it out, or name files of JSON lines .jsonl"
    )


def test_special_tokens_without_effect_are_refused(tmp_path):
    tokens = [word for t in ("<|endoftext|>", "<a>", "<a>", "") for word in ("--special-token", t)]
    error = train(tmp_path, "--vocab-size", "300", *tokens).exception
    assert isinstance(error, RootsError)
    assert error.lines == (
        "--special-token='<|endoftext|>': is there already; leave it out",
        "--special-token='<a>': is there already; leave it out",
        "--special-token='': must not be empty; leave it out",
    )


def test_a_tokenizer_is_not_overwritten_unless_asked_for(tmp_path):
    assert train(tmp_path, "--vocab-size", "260").exit_code == 0
    before = load_tokenizer(tmp_path / "tokenizer").fingerprint
    assert str(train(tmp_path, "--vocab-size", "270").exception) == (
        f"--out='{tmp_path}/tokenizer': {tmp_path}/tokenizer/tokenizer.json exists already, and "
        "nothing is overwritten; give another, or --overwrite"
    )
    assert load_tokenizer(tmp_path / "tokenizer").fingerprint == before
    assert train(tmp_path, "--vocab-size", "270", "--overwrite").exit_code == 0
    assert load_tokenizer(tmp_path / "tokenizer").fingerprint != before


def test_second_training_into_a_folder_is_refused_and_a_file_is_no_folder(tmp_path):
    with reserved_folder(tmp_path / "tokenizer"):
        error = train(tmp_path, "--vocab-size", "300").exception
    assert isinstance(error, RootsError)
    assert str(error).startswith(f"--out='{tmp_path}/tokenizer': in use by pid ")
    assert train(tmp_path, "--vocab-size", "260").exit_code == 0
    result = train(tmp_path, "--vocab-size", "260", "--out", str(tmp_path / "tokenizer.json"))
    assert str(result.exception) == (
        f"--out='{tmp_path}/tokenizer.json': names a folder, in which tokenizer.json is written; "
        f"give '{tmp_path}'"
    )
