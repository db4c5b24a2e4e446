"""From prompts to ids, and from new ids to the text that they add."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from roots.generation.prompts import decode_new, encode_prompts, encode_sources
from roots.tokenizer.tokenizer import ByteTokenizer, JsonTokenizer, load_tokenizer
from tests.helpers.words import BOS, EOS, TURN, write_words


def spaced(folder: Path) -> JsonTokenizer:
    """A tokenizer as Llama 2 has it: spaces in front of words, the first of a text not shown."""
    names = ["<unk>", "</s>", "\u2581the", "\u2581quick", "\u2581br", "\u2581while", "own"]
    names += [f"<0x{byte:02X}>" for byte in (0xE4, 0xBD, 0xA0)]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["</s>"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return JsonTokenizer(folder)


@pytest.mark.parametrize(
    "prompt, new, text",
    [
        ([2, 3], [4, 5], " br while"),
        ([2, 3, 4], [6], "own"),
        ([1], [4, 5], "br while"),
        ([1, 2], [], ""),
        # An end inside a text is no part of it, and takes no space with it.
        ([2], [1, 3], " quick"),
        ([2], [7, 8, 9], "\u4f60"),
        ([2, 7, 8, 9], [7, 8, 9], "\u4f60"),
    ],
)
def test_new_text_is_what_it_adds_to_the_prompt(
    tmp_path: Path, prompt: list[int], new: list[int], text: str
) -> None:
    words = spaced(tmp_path)
    assert decode_new(words, prompt, new) == text
    assert words.decode(prompt) + text == words.decode([*prompt, *new])


def test_characters_of_several_ids_and_word_pieces(tmp_path: Path) -> None:
    words = ByteTokenizer()
    assert decode_new(words, words.encode("a"), words.encode("\u00e9!")) == "\u00e9!"
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "[SEP]": 3}))
    pieces.decoder = decoders.WordPiece()
    pieces.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert decode_new(loaded, [1], [2]) == "ing"
    assert decode_new(loaded, [1], [1]) == " play"


def test_prompts_begin_as_the_tokenizer_says(tmp_path: Path) -> None:
    words = load_tokenizer(write_words(tmp_path))
    cat = words.encode("the cat")
    assert encode_prompts(words, ["the cat", ""]) == [[BOS, *cat], [BOS]]
    assert encode_sources(words, ["the cat"]) == [[BOS, *cat, EOS]]


def test_an_empty_prompt_starts_with_the_begin_token_that_is_named(tmp_path: Path) -> None:
    words = load_tokenizer(write_words(tmp_path, front=None))
    assert encode_prompts(words, ["the cat", ""]) == [words.encode("the cat"), [BOS]]
    assert encode_prompts(ByteTokenizer(), [""]) == [[256]]


def test_special_tokens_that_are_written_in_a_prompt(tmp_path: Path) -> None:
    words = load_tokenizer(write_words(tmp_path))
    prompt = "<turn>the cat<eos>"
    assert encode_prompts(words, [prompt]) == [[BOS, TURN, *words.encode("the cat"), EOS]]
    plain = encode_prompts(words, [prompt], special_tokens=False)
    assert plain == [[BOS, *words.encode(prompt)]]
    assert TURN not in plain[0]
