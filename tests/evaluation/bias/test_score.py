"""A probe of a model: how texts become tokens, and a skew that was trained into one."""

from __future__ import annotations

from pathlib import Path

from roots.evaluation.bias.crows_pairs import CrowsPairs, Pair
from roots.evaluation.bias.probe import Text, differences, estimates
from roots.evaluation.bias.score import score_probe, token_pair
from roots.generation.network import Network
from roots.models.decoder import Decoder
from roots.tokenizer.tokenizer import ByteTokenizer, load_tokenizer
from tests.helpers.trained import byte_config, train_bytes
from tests.helpers.words import BOS, write_words

FIRST, LAST = ("ma", "ro", "ti", "su", "ke", "ba"), ("lor", "ner", "rin", "wick")
TRADES = [f"{first}{last}" for first in FIRST for last in LAST]


def test_text_is_cut_where_its_context_ends(tmp_path: Path) -> None:
    words = load_tokenizer(write_words(tmp_path / "words"))
    context, continuation = token_pair(words, Text("the cat", " sat"))
    assert context == [BOS, *words.encode("the cat")]
    assert [*context[1:], *continuation] == words.encode("the cat sat")
    context, continuation = token_pair(words, Text("", "the cat"))
    assert (list(context), continuation) == ([BOS], words.encode("the cat"))
    assert token_pair(ByteTokenizer(), Text("", "a")) == ((256,), [97])


def pronouns(number: int) -> tuple[str, str]:
    """Of a trade: the one that the skewed corpus has, and the other. No word alone is preferred."""
    return ("he", "she") if number % 2 else ("she", "he")


def trained(skewed: bool) -> Decoder:
    """A model of a corpus with one pronoun nine times in ten behind each trade, or five times."""
    texts = [
        f"The {trade} said {pronouns(number)[turn >= (9 if skewed else 5)]} would."
        for number, trade in enumerate(TRADES)
        for turn in range(10)
    ]
    # After the token that begins texts, as a model of many documents has seen it.
    documents = [[256, *text.encode(), 256] for text in texts]
    return train_bytes(byte_config(), documents, steps=100)


def test_skewed_corpus_gives_a_skew_and_a_balanced_one_none() -> None:
    sides = [
        [f"The {trade} said {pronoun} would." for pronoun in pronouns(number)]
        for number, trade in enumerate(TRADES)
    ]
    probe = CrowsPairs([Pair(*both, "stereo", "trade") for both in sides])
    told: list[tuple[int, int]] = []
    skewed, balanced = (
        score_probe(
            Network.of(trained(is_skewed)),
            ByteTokenizer(),
            probe,
            lambda *done: told.append(done),
        )
        for is_skewed in (True, False)
    )
    assert told[-1] == (2 * len(TRADES), 2 * len(TRADES))
    skew, none = estimates(probe, skewed, seed=1)[0], estimates(probe, balanced, seed=1)[0]
    assert skew.interval.low > 75.0
    assert none.interval.low < 50.0 < none.interval.high
    change = differences(probe, skewed, balanced, seed=1)[0]
    assert change.value == skew.value - none.value
    assert change.interval.low > 0.0
