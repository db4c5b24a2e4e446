"""`roots preprocess`."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from roots.cli.preprocess import preprocess
from roots.data.canaries import draw_canaries, read_canaries
from roots.data.indexed import IndexedDataset
from roots.errors import RootsError
from tests.helpers.words import write_words


@pytest.fixture
def run(tmp_path):
    """Call the command with a .jsonl file of three lines, one of them broken, and one empty."""
    app = typer.Typer()
    app.command()(preprocess)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text":\n{"text": ""}\n{"text": "two"}\n')

    def call(*options):
        arguments = ["--tokenizer", "bytes", "--out", str(tmp_path / "out"), *options, str(path)]
        return CliRunner().invoke(app, arguments)

    return call


def test_report_for_people(run, tmp_path):
    result = run("--on-error", "skip")
    assert result.exit_code == 0
    assert result.stdout == (
        f"{tmp_path}/out: 8 tokens in 2 documents from 1 files\n"
        "Left out: 1 empty, 1 broken documents.\n"
    )
    assert len(IndexedDataset(tmp_path / "out")) == 2


def test_a_dataset_is_not_overwritten_unless_asked_for(run, tmp_path):
    assert run("--on-error", "skip").exit_code == 0
    before = (tmp_path / "out.idx").read_bytes()
    (tmp_path / "a.jsonl").write_text('{"text": "three"}')
    assert str(run().exception) == (
        f"--out='{tmp_path}/out': {tmp_path}/out.bin exists already, and nothing is overwritten; "
        "give another, or --overwrite"
    )
    assert (tmp_path / "out.idx").read_bytes() == before
    assert run("--overwrite").exit_code == 0
    assert len(IndexedDataset(tmp_path / "out")) == 1


def test_what_is_read_is_never_overwritten(run, tmp_path):
    text = tmp_path / "b.json"
    text.write_text('{"text": "one"}')
    result = run("--on-error", "skip", "--overwrite", "--out", str(tmp_path / "b"), str(text))
    assert str(result.exception) == (
        f"--out='{tmp_path}/b': would write {text}, which is one of FILES; give another"
    )
    assert text.read_text() == '{"text": "one"}'


def test_report_says_what_every_document_is(run, tmp_path):
    words = str(write_words(tmp_path / "words"))
    result = run("--on-error", "skip", "--tokenizer", words, "--end-token", "<turn>")
    assert "Every document is '<bos>' (1), its text, '<turn>' (3).\n" in result.stdout
    assert IndexedDataset(tmp_path / "out").description.end_of_document == 3


def test_report_for_machines(run, tmp_path):
    result = run("--on-error", "skip", "--json", "--workers", "0")
    assert json.loads(result.stdout) == {
        "prefix": f"{tmp_path}/out",
        "files": 1,
        "tokenizer": "bytes",
        "vocab_size": 257,
        "end_of_document": 256,
        "max_token_id": 256,
        "documents": 2,
        "tokens": 8,
        "begin_tokens": [],
        "empty": 1,
        "skipped": 1,
        "bare_files": 0,
        "left_out": {},
        "canary_documents": 0,
    }


def test_broken_line_stops_by_default(run, tmp_path):
    result = run()
    assert isinstance(result.exception, RootsError)
    assert str(result.exception) == (
        f"{tmp_path}/a.jsonl line 2: must hold a text under 'text': Expecting value (column 9); "
        "repair it, or continue without it by --on-error skip"
    )
    assert not (tmp_path / "out.bin").exists()


def test_unknown_policy(run):
    result = run("--on-error", "ignore")
    assert result.exit_code == 2


def test_pairs_for_people_and_machines(run, tmp_path):
    options = ["--pairs", "--source-key", "text", "--target-key", "text", "--on-error", "skip"]
    result = run(*options)
    assert result.stdout == (
        f"{tmp_path}/out: 2 pairs of 8 and 8 tokens from 1 files\nLeft out: 2 broken pairs.\n"
    )
    assert str(run(*options).exception) == (
        f"--out='{tmp_path}/out': {tmp_path}/out.source.bin exists already, and nothing is "
        "overwritten; give another, or --overwrite"
    )
    report = json.loads(run(*options, "--json", "--overwrite").stdout)
    assert (report["source"]["documents"], report["target"]["tokens"]) == (2, 8)


def test_options_that_would_do_nothing_or_too_little(run, tmp_path):
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    (tmp_path / "a.jsonl").symlink_to("b.jsonl")
    result = run(str(tmp_path / "b.jsonl"))
    assert str(result.exception).startswith(f"FILES='{tmp_path}/a.jsonl': is the same file as ")
    (tmp_path / "b.jsonl").write_text('{"text": "' + "x" * (2 << 20) + '"}')
    assert run().exit_code == 0
    assert str(run("--line-limit", "1", "--overwrite").exception) == (
        f"{tmp_path}/a.jsonl line 1: is too long: it has 2.0 MiB, and a line or value is held "
        "whole up to --line-limit, 1 MiB; cut it, raise --line-limit, or continue without it by "
        "--on-error skip"
    )


def test_secrets_are_planted_and_told(run, tmp_path):
    result = run("--on-error", "skip", "--canaries", "2", "--canary-repeats", "0,3")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == (
        f"Planted among them: 4 secrets in 6 documents, told in {tmp_path}/out.canaries.json."
    )
    assert len(IndexedDataset(tmp_path / "out")) == 2 + 6
    planted = read_canaries(tmp_path / "out")
    assert planted == draw_canaries(2, (0, 3))
    options = ("--canaries", "1", "--canary-seed", "5", "--canary-format", "PIN ####", "--json")
    report = json.loads(run("--on-error", "skip", "--overwrite", *options).stdout)
    assert report["canary_documents"] == 85
    assert read_canaries(tmp_path / "out") == draw_canaries(1, text="PIN ####", seed=5)


def test_a_file_of_secrets_is_not_overwritten_either(run, tmp_path):
    (tmp_path / "out.canaries.json").write_text("{}")
    assert str(run("--on-error", "skip").exception) == (
        f"--out='{tmp_path}/out': {tmp_path}/out.canaries.json exists already, and nothing is "
        "overwritten; give another, or --overwrite"
    )
    assert run("--on-error", "skip", "--overwrite").exit_code == 0
    assert not (tmp_path / "out.canaries.json").exists()


@pytest.mark.parametrize(
    "options, line",
    [
        (
            ("--canary-seed", "5"),
            "--canary-seed=5: has no effect without --canaries; leave it out, or give --canaries N",
        ),
        (
            ("--pairs", "--canaries", "5"),
            "--canaries=5: has no effect with --pairs: secrets are planted among texts alone; "
            "leave it out",
        ),
        (
            ("--canaries", "1", "--canary-repeats", "1;4"),
            "--canary-repeats='1;4': must be numbers with commas between them; "
            "write them as 0,1,4,16,64",
        ),
    ],
)
def test_options_of_secrets_that_mean_nothing(run, options, line):
    assert str(run(*options).exception) == line
