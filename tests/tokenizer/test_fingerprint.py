"""Equal for tokenizers with equal ids and ends of documents, however their files look."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from roots.tokenizer.tokenizer import load_tokenizer
from tests.helpers.words import edit_json, write_words

TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 9},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_words(tmp_path / "first")


def reordered(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return dict(reversed([(key, reordered(value)) for key, value in tree.items()]))


def merges_as_strings(tree: dict[str, Any]) -> dict[str, Any]:
    merges = [" ".join(pair) for pair in tree["model"]["merges"]]
    return {**tree, "model": {**tree["model"], "merges": merges}}


SAME = {
    "compact": lambda tree: tree,
    "order of keys": reordered,
    "merges of older files": merges_as_strings,
    "truncation and padding": lambda tree: {**tree, "truncation": TRUNCATION, "padding": PADDING},
    "dropout": lambda tree: {**tree, "model": {**tree["model"], "dropout": 0.5}},
    "nothing in front": lambda tree: {**tree, "post_processor": None},
    "decoder": lambda tree: {**tree, "decoder": None},
}
OTHER = {
    "merges": lambda tree: {**tree, "model": {**tree["model"], "merges": []}},
    "normalizer": lambda tree: {**tree, "normalizer": {"type": "Lowercase"}},
    "split": lambda tree: {**tree, "pre_tokenizer": {**tree["pre_tokenizer"], "use_regex": False}},
    "names of special tokens": lambda tree: {
        **tree,
        "added_tokens": [{**t, "content": t["content"] + "!"} for t in tree["added_tokens"]],
    },
}


def rewrite(folder: Path, other: Path, change: Any) -> None:
    """Write the folder's files to another one, with a change of tokenizer.json."""
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    tree = change(json.loads((folder / "tokenizer.json").read_text()))
    (other / "tokenizer.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("name", SAME)
def test_equal_ids_have_equal_fingerprints(folder: Path, tmp_path: Path, name: str) -> None:
    rewrite(folder, tmp_path / "other", SAME[name])
    assert load_tokenizer(tmp_path / "other").fingerprint == load_tokenizer(folder).fingerprint


@pytest.mark.parametrize("name", OTHER)
def test_other_ids_have_other_fingerprints(folder: Path, tmp_path: Path, name: str) -> None:
    rewrite(folder, tmp_path / "other", OTHER[name])
    (tmp_path / "other" / "tokenizer_config.json").unlink()
    chosen = {"end_token": "the"}
    ours, theirs = (load_tokenizer(each, **chosen) for each in (folder, tmp_path / "other"))
    assert not theirs.has_ids_of(ours.fingerprint)
    assert theirs.fingerprint != ours.fingerprint


def test_the_end_of_documents_counts_but_is_no_other_vocabulary(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), load_tokenizer(folder, end_token="<turn>")
    assert ours.fingerprint != theirs.fingerprint
    assert ours.has_ids_of(theirs.fingerprint)
    edit_json(folder / "tokenizer_config.json", eos_token="<turn>")
    assert load_tokenizer(folder).fingerprint == theirs.fingerprint


def test_fingerprints_of_older_datasets_stay_readable(folder: Path) -> None:
    content = (folder / "tokenizer.json").read_bytes()
    older = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert load_tokenizer(folder).has_ids_of(older)
    assert not load_tokenizer(folder).has_ids_of(older[::-1])
    assert not load_tokenizer("bytes").has_ids_of(older)
