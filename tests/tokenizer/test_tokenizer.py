"""Loading tokenizers, and what every tokenizer does."""

from __future__ import annotations

import json

import pytest

from roots.errors import RootsError
from roots.tokenizer.tokenizer import JsonTokenizer, load_tokenizer
from roots.tokenizer.train import save_tokenizer, train_bpe
from tests.helpers.words import edit_json, write_words

TEXTS = ["plain words", "d\u00e9j\u00e0 vu \u4f60\u597d \U0001f600", "a\n\n  b\t\x00c", "", " "]
CORPUS = ["the cat sat on the mat, the cat sat", "def cat(mat):\n    return mat"] * 5


@pytest.fixture
def folder(tmp_path):
    """A trained tokenizer on disk."""
    save_tokenizer(train_bpe(CORPUS, 280), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture(params=["bytes", "trained"])
def tokenizer(request, folder):
    """Each kind of tokenizer."""
    return load_tokenizer("bytes" if request.param == "bytes" else folder)


def test_every_text_round_trips(tokenizer):
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_special_tokens_in_a_text_are_text_unless_asked_for(tokenizer):
    text = "one<|endoftext|>two"
    end = tokenizer.end_of_document
    plain, special = tokenizer.encode(text), tokenizer.encode(text, special_tokens=True)
    assert end not in plain
    assert tokenizer.decode(plain) == text
    assert special == [*tokenizer.encode("one"), end, *tokenizer.encode("two")]
    assert tokenizer.decode(special) == "onetwo"
    assert tokenizer.decode(special, special_tokens=True) == text
    assert tokenizer.encode(text) == plain, "asking once does not change the next call"


def test_bytes():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.end_of_document) == (257, 256)
    assert tokenizer.encode("A\u00e9") == [65, 0xC3, 0xA9]
    assert tokenizer.decode([65, 0xC3]) == "A\ufffd"


def test_file_itself_is_accepted(folder):
    assert (
        load_tokenizer(folder / "tokenizer.json").fingerprint == load_tokenizer(folder).fingerprint
    )


def test_fingerprint_tells_tokenizers_apart(folder, tmp_path):
    other = save_tokenizer(train_bpe(CORPUS, 281), tmp_path / "other")
    assert other.fingerprint != load_tokenizer(folder).fingerprint


def test_end_of_document_of_other_families(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "</s>"))
    (folder / "tokenizer_config.json").unlink()
    assert JsonTokenizer(folder).end_of_document == 0


@pytest.mark.parametrize("named", ["the", {"content": "the"}])
def test_end_of_document_named_by_the_config(folder, named):
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": named}))
    tokenizer = JsonTokenizer(folder)
    assert tokenizer.encode("the") == [tokenizer.end_of_document]


def test_no_end_of_document(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|other|>"))
    with pytest.raises(RootsError) as caught:
        load_tokenizer(folder)
    assert str(caught.value) == (
        f"{path}: does not know its eos_token '<|endoftext|>'; "
        "name one of its tokens as eos_token in tokenizer_config.json beside it"
    )
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(RootsError) as caught:
        load_tokenizer(folder)
    assert str(caught.value) == (
        f"{path}: has no token that ends a document; "
        "name one of its tokens as eos_token in tokenizer_config.json beside it"
    )


def test_broken_config(folder):
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(RootsError, match=r"_config\.json: is not a JSON object \(.*\); repair or"):
        load_tokenizer(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(RootsError) as caught:
        load_tokenizer(tmp_path / "absent")
    assert str(caught.value) == (
        f"tokenizer='{tmp_path}/absent': no such folder; make one with "
        "`roots tokenizer train --vocab-size V --out DIR FILES...`, or use bytes"
    )


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(RootsError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == (
        f"tokenizer='{tmp_path}': holds no tokenizer.json; make one with "
        "`roots tokenizer train --vocab-size V --out DIR FILES...`, or use bytes"
    )


def test_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RootsError) as caught:
        load_tokenizer(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/tokenizer.json: does not hold a tokenizer (")
    assert line.endswith("); make it with `roots tokenizer train`, or copy the file again")
    assert "\n" not in line


TRUNCATION = {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 100},
    "direction": "Right",
    "pad_to_multiple_of": 8,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}


@pytest.mark.parametrize(
    "left_over",
    [
        {"truncation": TRUNCATION},
        {"padding": PADDING},
        {"padding": {**PADDING, "strategy": "BatchLongest", "direction": "Left"}},
        {"truncation": {**TRUNCATION, "direction": "Left"}, "padding": PADDING},
    ],
)
def test_what_the_last_use_left_in_the_file_is_not_obeyed(tmp_path, left_over):
    plain = load_tokenizer(write_words(tmp_path / "plain"))
    used = load_tokenizer(write_words(tmp_path / "used", left_over=left_over))
    texts = [CORPUS[0] * 9, "cat", ""]
    assert len(plain.encode(texts[0])) > 60
    assert used.encode_batch(texts) == plain.encode_batch(texts)
    assert used.fingerprint == plain.fingerprint


def test_merges_are_never_dropped_at_random(tmp_path):
    plain = load_tokenizer(write_words(tmp_path))
    tree = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    edit_json(tmp_path / "tokenizer.json", model={**tree, "dropout": 1.0})
    assert load_tokenizer(tmp_path).encode(CORPUS[1]) == plain.encode(CORPUS[1])


def test_transformers_loads_the_folder_and_agrees(folder):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (the hf extra)"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = load_tokenizer(folder)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == ours.end_of_document
    assert len(theirs) == ours.vocab_size
