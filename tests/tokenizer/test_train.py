"""Training a byte-level BPE."""

from __future__ import annotations

import pytest

from roots.errors import RootsError
from roots.tokenizer.train import save_tokenizer, train_bpe

CORPUS = ["the cat sat on the mat, the cat sat", "def cat(mat):\n    return mat"] * 5


@pytest.mark.parametrize("vocab_size", [257, 258, 270, 280])
def test_vocabulary_has_the_size_asked_for(tmp_path, vocab_size):
    tokenizer = save_tokenizer(train_bpe(CORPUS, vocab_size), tmp_path)
    assert tokenizer.vocab_size == vocab_size


def test_frequent_words_become_one_token(tmp_path):
    tokenizer = save_tokenizer(train_bpe(CORPUS, 300), tmp_path)
    assert len(tokenizer.encode(" the cat")) == 2
    assert len(tokenizer.encode("zqj")) == 3


def test_small_corpus_gives_a_smaller_vocabulary(tmp_path):
    tokenizer = save_tokenizer(train_bpe(["aa"], 5000, min_frequency=1), tmp_path)
    assert tokenizer.vocab_size == 258


def test_training_is_deterministic():
    assert train_bpe(CORPUS, 290).to_str() == train_bpe(iter(CORPUS), 290).to_str()


def test_progress_is_silent_without_a_terminal(capfd):
    train_bpe(CORPUS, 290, show_progress=True)
    assert capfd.readouterr() == ("", "")


def test_special_tokens_come_first_and_once(tmp_path):
    specials = ["<|user|>", "<|endoftext|>", "<|user|>"]
    tokenizer = save_tokenizer(train_bpe(CORPUS, 270, special_tokens=specials), tmp_path)
    assert tokenizer.encode("<|endoftext|><|user|>", special_tokens=True) == [0, 1]
    assert tokenizer.end_of_document == 0


def test_vocabulary_too_small():
    with pytest.raises(RootsError) as caught:
        train_bpe(CORPUS, 257, special_tokens=["<|user|>"])
    assert str(caught.value) == (
        "--vocab-size=257: must be at least 258 (256 bytes and 2 special tokens); "
        "ask for a larger vocabulary"
    )


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text(texts):
    with pytest.raises(RootsError) as caught:
        train_bpe(texts, 300)
    assert str(caught.value) == (
        "tokenizer train: the files hold no text; name files that are not empty"
    )


def test_errors_of_the_texts_pass_through():
    def texts():
        yield "one"
        raise RootsError("broken line")

    with pytest.raises(RootsError, match="broken line"):
        train_bpe(texts(), 300)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RootsError) as caught:
        save_tokenizer(train_bpe(CORPUS, 260), tmp_path / "file")
    assert str(caught.value) == (
        f"--out='{tmp_path}/file': cannot be written (File exists); "
        "name a folder that can be written"
    )


def test_failed_save_leaves_the_former_tokenizer(tmp_path, monkeypatch):
    save_tokenizer(train_bpe(CORPUS, 260), tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(RootsError, match="No space left on device"):
        save_tokenizer(train_bpe(CORPUS, 290), tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
