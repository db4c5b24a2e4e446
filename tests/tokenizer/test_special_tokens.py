"""What begins and ends texts, from every file that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from roots.errors import RootsError
from roots.tokenizer.special_tokens import DocumentTokens, documents_text
from roots.tokenizer.tokenizer import load_tokenizer
from tests.helpers.words import BOS, EOS, FILES, TURN, edit_json, write_words

DOCUMENT_END = 0
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"


def stops_of(folder: Path, files: dict[str, dict[str, Any]]) -> tuple[int, set[int]]:
    """The end of a document, and all that ends a text."""
    tokenizer = load_tokenizer(write_words(folder, files=files))
    return tokenizer.end_of_document, set(tokenizer.special.stops)


@pytest.mark.parametrize(
    "files, end, stops",
    [
        (FILES, EOS, {EOS}),
        ({MAP: {"eos_token": {"content": "<eos>"}}}, EOS, {EOS}),
        ({CONFIG: {"eos_token": None}, MAP: {"eos_token": "<eos>"}}, EOS, {EOS}),
        ({CONFIG: {"eos_token": ""}}, DOCUMENT_END, {DOCUMENT_END}),
        ({"config.json": {"eos_token_id": TURN}}, TURN, {TURN}),
        ({"generation_config.json": {"eos_token_id": [TURN, EOS]}}, TURN, {TURN, EOS}),
        # A list that holds the config's own, as instruct models have it.
        (
            {**FILES, "config.json": {"eos_token_id": EOS}}
            | {"generation_config.json": {"eos_token_id": [EOS, TURN]}},
            EOS,
            {EOS, TURN},
        ),
        # A tokenizer of chats beside a model's config of documents.
        (
            {CONFIG: {"eos_token": "<turn>"}, "config.json": {"eos_token_id": DOCUMENT_END}},
            TURN,
            {TURN, DOCUMENT_END},
        ),
        ({**FILES, "config.json": {"eos_token_id": -1}}, EOS, {EOS}),
        ({**FILES, "config.json": {"eos_token_id": 50256}}, EOS, {EOS, 50256}),
    ],
)
def test_every_file_says_what_ends_a_text(
    tmp_path: Path, files: dict[str, dict[str, Any]], end: int, stops: set[int]
) -> None:
    assert stops_of(tmp_path, files) == (end, stops)


def around(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands in front of a text, and what an empty one starts with."""
    special = load_tokenizer(folder).special
    return special.documents.begin, special.start


@pytest.mark.parametrize(
    "front, files, begin, start",
    [
        ("<bos>", FILES, (BOS,), (BOS,)),
        # Named, and put in front by nobody: it starts empty texts alone.
        (None, FILES, (), (BOS,)),
        (None, {CONFIG: {"eos_token": "<eos>"}}, (), (EOS,)),
        (None, {CONFIG: {"eos_token": "<eos>"}, "config.json": {"bos_token_id": BOS}}, (), (BOS,)),
        # transformers 5 decides by the post-processor alone too.
        (None, {CONFIG: {**FILES[CONFIG], "add_bos_token": True}}, (), (BOS,)),
        ("<bos>", {CONFIG: {**FILES[CONFIG], "add_bos_token": False}}, (BOS,), (BOS,)),
        # Llama's default beside a vocabulary of one's own, where 9 is a byte.
        ("<bos>", {**FILES, "config.json": {"bos_token_id": 9}}, (BOS,), (BOS,)),
    ],
)
def test_the_post_processor_says_what_begins_a_text(
    tmp_path: Path,
    front: str | None,
    files: dict[str, dict[str, Any]],
    begin: tuple[int, ...],
    start: tuple[int, ...],
) -> None:
    assert around(write_words(tmp_path, front=front, files=files)) == (begin, start)


@pytest.mark.parametrize(
    "processor",
    [
        processors.TemplateProcessing(
            single="<bos> <turn> $A <eos>",
            special_tokens=[("<bos>", BOS), ("<turn>", TURN), ("<eos>", EOS)],
        ),
        processors.Sequence(
            [
                processors.ByteLevel(),
                processors.TemplateProcessing(
                    "<bos> <turn> $A", special_tokens=[("<bos>", BOS), ("<turn>", TURN)]
                ),
            ]
        ),
    ],
)
def test_several_begin_tokens_in_their_order(tmp_path: Path, processor: Any) -> None:
    path = write_words(tmp_path) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processor
    tokenizer.save(str(path))
    begin = around(tmp_path)[0]
    assert begin == (BOS, TURN)
    assert tuple(tokenizer.encode("the").ids[:2]) == begin


@pytest.mark.parametrize("kind", [processors.BertProcessing, processors.RobertaProcessing])
def test_begin_of_an_encoder(tmp_path: Path, kind: Any) -> None:
    path = write_words(tmp_path) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = kind(("<eos>", EOS), ("<bos>", BOS))
    tokenizer.save(str(path))
    assert around(tmp_path)[0] == (BOS,)


@pytest.mark.parametrize(
    "files, message",
    [
        (
            {**FILES, MAP: {"eos_token": "<turn>"}},
            f"{{}}/{MAP} eos_token='<turn>': contradicts '<eos>' in {CONFIG} beside it; "
            "let both name the same token, or remove one of the two lines",
        ),
        (
            {CONFIG: {"bos_token": {"content": "<bos>"}}, MAP: {"bos_token": "<turn>"}},
            f"{{}}/{MAP} bos_token='<turn>': contradicts '<bos>' in {CONFIG} beside it; "
            "let both name the same token, or remove one of the two lines",
        ),
        (
            {**FILES, "config.json": {"bos_token_id": TURN}},
            "{0}/config.json bos_token_id=3: contradicts bos_token '<bos>' (1) of {0}; "
            "let the files of the model agree on what begins a text",
        ),
        (
            {"config.json": {"bos_token_id": BOS}, "generation_config.json": {"bos_token_id": 3}},
            "{0}/generation_config.json bos_token_id=3: contradicts bos_token_id of config.json "
            "(1) of {0}; let the files of the model agree on what begins a text",
        ),
        (
            {**FILES, "generation_config.json": {"eos_token_id": ["<eos>"]}},
            "{}/generation_config.json eos_token_id=['<eos>']: must be the id of a token, or a "
            "list of them; correct it",
        ),
        (
            {**FILES, "documents.json": {"format": "roots-documents", "version": 2}},
            "{}/documents.json: does not say in ROOTS' form, version 1, what stands around "
            "documents; copy it again from its checkpoint",
        ),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, files: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(RootsError) as caught:
        load_tokenizer(write_words(tmp_path, files=files))
    assert str(caught.value) == message.format(tmp_path)


def test_options_choose_what_stands_around_documents(tmp_path: Path) -> None:
    write_words(tmp_path, files={CONFIG: {"bos_token": "<bos>", "eos_token": "<turn>"}})
    chosen = load_tokenizer(tmp_path, begin_token="none", end_token="<|endoftext|>")
    assert chosen.special.documents == DocumentTokens((), DOCUMENT_END)
    # What a turn of a chat ends with stops a text still.
    assert chosen.special.stops == {TURN, DOCUMENT_END}
    assert load_tokenizer(tmp_path, begin_token="<eos>").special.documents.begin == (EOS,)
    with pytest.raises(RootsError) as caught:
        load_tokenizer(tmp_path, end_token="</s>")
    assert str(caught.value) == (
        f"--end-token='</s>': is no token of {tmp_path}/tokenizer.json; "
        "name one of its tokens (<|endoftext|>, <bos>, <eos>, <turn>)"
    )
    with pytest.raises(RootsError, match=r"'</s>': must be <\|endoftext\|> with the tokenizer"):
        load_tokenizer("bytes", end_token="</s>")


def test_an_end_token_may_be_chosen_where_no_file_names_one(tmp_path: Path) -> None:
    path = write_words(tmp_path, files={}) / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<x>").replace("<eos>", "<y>"))
    with pytest.raises(RootsError, match="has no token that ends a document"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, end_token="<turn>").end_of_document == TURN


def test_what_a_training_was_fed_goes_before_all_files(tmp_path: Path) -> None:
    write_words(tmp_path)
    (tmp_path / "documents.json").write_text(documents_text(DocumentTokens((), TURN), "x"))
    special = load_tokenizer(tmp_path).special
    assert special.documents == DocumentTokens((), TURN)
    assert special.start == (TURN,), "the training never saw <bos> in front of a text"
    assert special.stops == {EOS, TURN}


def test_deeply_nested_file_is_one_line(tmp_path: Path) -> None:
    write_words(tmp_path)
    (tmp_path / CONFIG).write_text('{"a":' * 100000)
    with pytest.raises(RootsError, match=r"_config\.json: is not a JSON object \("):
        load_tokenizer(tmp_path)


def test_transformers_puts_the_same_in_front(tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (the hf extra)"
    )
    for front, flag in (("<bos>", False), (None, True)):
        folder = tmp_path / str(front)
        write_words(folder, front=front)
        more = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": flag}
        edit_json(folder / CONFIG, **more)
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ours = load_tokenizer(folder)
        expected = [*ours.special.documents.begin, *ours.encode("the cat")]
        assert theirs("the cat")["input_ids"] == expected


def test_documents_file_is_json(tmp_path: Path) -> None:
    assert json.loads(documents_text(DocumentTokens((1, 2), 3), "abc")) == {
        "format": "roots-documents",
        "version": 1,
        "begin_tokens": [1, 2],
        "end_of_document": 3,
        "tokenizer": "abc",
    }
