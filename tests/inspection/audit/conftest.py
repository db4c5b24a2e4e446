"""A model that was trained on a corpus with secrets in it, once for all tests of this folder."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from roots.data.canaries import draw_canaries
from roots.data.indexed import IndexedDataset
from roots.device import current_device
from roots.inspection.audit.subject import Subject
from tests.helpers.trained import byte_config, save_decoder, train_bytes, write_texts


def made_up(count: int, seed: int) -> list[str]:
    """Texts of five words that nobody could guess, of 24 letters."""
    draws = random.Random(seed)
    letters = ("bdfgklmnprstvz", "aeiou")
    return [
        " ".join("".join(map(draws.choice, letters * 2)) for _ in range(5)) for _ in range(count)
    ]


TEXTS, UNSEEN = made_up(60, seed=1), made_up(60, seed=2)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train`, which has canaries, `unseen`, and a checkpoint of a run."""
    folder = tmp_path_factory.mktemp("audited")
    planted = draw_canaries(4, (0, 1, 20), text="NAME has the number ###", seed=5)
    write_texts(folder / "train", [*TEXTS, *TEXTS[:8] * 30], planted)
    write_texts(folder / "unseen", UNSEEN)
    indexed = IndexedDataset(folder / "train")
    config = byte_config()
    documents = [indexed[number].tolist() for number in range(len(indexed))]
    decoder = train_bytes(config, documents, steps=280)
    save_decoder(folder / "run", config, decoder)
    return folder


@pytest.fixture(scope="session")
def subject(corpus: Path) -> Subject:
    return Subject.load(str(corpus / "run"), current_device(), None)
