"""The side file PREFIX.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roots.data.description import TokensDescription, read_description, write_description
from roots.errors import RootsError

DESCRIPTION = TokensDescription("bytes", 257, 256, 256, 3, 12)


def test_round_trip(tmp_path):
    write_description(tmp_path / "a.json", DESCRIPTION)
    assert read_description(tmp_path / "a") == DESCRIPTION


def test_files_of_before_begin_tokens_have_none(tmp_path):
    write_description(tmp_path / "a.json", DESCRIPTION)
    content = json.loads((tmp_path / "a.json").read_text())
    del content["begin_tokens"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_description(tmp_path / "a") == DESCRIPTION


def test_absent_side_file_is_fine(tmp_path):
    assert read_description(tmp_path / "a") is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "x"}, "{path}: does not describe a dataset (format 'roots-tokens')"),
        ({"version": 2}, "{path} version=2: only version 1 is known"),
        ({"max_token_id": "9"}, "{path} max_token_id='9': has the wrong type"),
        ({"documents": True}, "{path} documents=True: has the wrong type"),
        ({"max_token_id": -1}, "{path} max_token_id=-1: must be 0 to vocab_size - 1"),
        ({"begin_tokens": [300]}, "{path} begin_tokens=[300]: must be 0 to vocab_size - 1"),
        ({"tokens": 2**70}, f"{{path}} tokens={2**70}: must be 0 to {2**63 - 1}"),
        ({"tokenizer": None}, "{path} tokenizer: has the wrong type"),
        ({"begin_tokens": 1}, "{path} begin_tokens=1: has the wrong type"),
        ({"begin_tokens": ["a"]}, "{path} begin_tokens=['a']: has the wrong type"),
    ],
)
def test_other_content(tmp_path: Path, change, message):
    path = tmp_path / "a.json"
    write_description(path, DESCRIPTION)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RootsError) as caught:
        read_description(tmp_path / "a")
    fix = "; run `roots preprocess` again, or remove the file (it is optional)"
    assert str(caught.value) == message.format(path=path) + fix


def test_no_json(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RootsError, match=r"a\.json: is not JSON \(Expecting .*\); run `roots"):
        read_description(tmp_path / "a")


def test_json_nested_too_deep(tmp_path):
    (tmp_path / "a.json").write_text("[" * 99_999)
    with pytest.raises(RootsError, match=r"a\.json: is not JSON \(maximum recursion .*\); run"):
        read_description(tmp_path / "a")
