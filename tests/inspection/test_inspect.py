"""What an inspection tells of a text and of a dataset is what the model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roots.config import parse_config
from roots.data.batch import DocumentRules
from roots.data.indexed import IndexedDataset, IndexedWriter
from roots.data.windows import iterate_windows
from roots.errors import RootsError
from roots.generation.load import LoadedModel
from roots.inspection.inspect import InspectionOptions, inspect_data, inspect_text
from roots.inspection.lens import TunedLens
from roots.models.build import build_model
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.decoders import small_decoder, small_model

TEXT = "it was a dark night"


def loaded(data: dict[str, Any] | None = None, **changes: Any) -> LoadedModel:
    model = small_model(vocab_size=257, init_std=0.2, **changes)
    tree = {"model": model.model_dump(), "data": data or {}, "training": {"precision": "fp32"}}
    config = parse_config(tree)
    decoder = small_decoder(
        model,
        separate_documents=config.data.separate_documents,
        reset_positions=config.data.reset_positions,
    )
    return LoadedModel(Path("somewhere"), config, decoder.eval())


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ByteTokenizer()
    path = tmp_path_factory.mktemp("data") / "valid"
    with IndexedWriter(path, words.vocab_size) as writer:
        for text in ("It was a bright cold day in April.", "Call me Ishmael. " * 4):
            writer.add(np.array([*words.encode(text), words.end_of_document]))
        writer.finish(tokenizer=words.fingerprint, end_of_document=words.end_of_document)
    return path


def test_text_is_told_token_by_token() -> None:
    model = loaded()
    found = inspect_text(model, ByteTokenizer(), TEXT, InspectionOptions(shown=7, top=3))
    tokens = list(TEXT.encode())
    assert found["tokens"] == tokens
    assert found["read"] == {"text": TEXT}
    assert {found["vocabulary"][token] for token in tokens} == set(TEXT)
    tokens_1T = torch.tensor([tokens])
    with torch.no_grad():
        logits = model.decoder(tokens_1T, torch.zeros_like(tokens_1T), torch.zeros(1).long())[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], tokens_1T[0, 1:], reduction="none")
    assert found["losses"]["of_tokens"][0] is None
    assert found["losses"]["of_tokens"][1:] == pytest.approx(losses.tolist(), abs=1e-4)
    assert found["losses"]["mean"] == pytest.approx(float(losses.mean()))
    assert len(found["losses"]["predictions"]) == len(tokens)
    values, ids = logits.softmax(-1).topk(3)
    for row, p, token in zip(found["losses"]["predictions"], values, ids, strict=True):
        assert [each[0] for each in row] == token.tolist()
        assert [each[1] for each in row] == pytest.approx(p.tolist(), abs=1e-4)
    logit = found["lenses"]["logit"]
    assert logit["losses"][-1] == pytest.approx(found["losses"]["mean"])
    assert found["lenses"]["tuned"] is None
    assert [[len(head) for head in block] for block in found["attention"]] == [[7] * 4] * 2
    for row, weights in enumerate(found["attention"][1][2]):
        assert len(weights) == row + 1
        assert sum(weights) == pytest.approx(1000, abs=row + 1)
    assert set(found["nearest"]) == set(tokens[:7])
    assert found["experts"] == []
    assert found["overflow"]["overflows"] == []


def test_it_is_json_that_names_every_id(prefix: Path) -> None:
    model = loaded(moe={"num_experts": 4})
    lens = TunedLens(torch.zeros(2, 32, 32), torch.zeros(2, 32))
    options = InspectionOptions(nearest=[5], lens=lens)
    found = json.loads(json.dumps(inspect_text(model, ByteTokenizer(), TEXT, options)))
    words = found["vocabulary"]
    named = {token for row in found["losses"]["predictions"] for token, _ in row}
    for kind in ("logit", "tuned"):
        named |= {token for place in found["lenses"][kind]["predictions"] for token, _ in place[0]}
    named |= {token for others in found["nearest"].values() for token, _ in others} | {5}
    assert {str(token) for token in named} <= set(words)
    assert words["5"] == "\x05"
    # A lens that maps to what it is given is the logit lens.
    assert found["lenses"]["tuned"] == found["lenses"]["logit"]
    assert [row["block"] for row in found["experts"]] == [0, 1]
    assert len(found["experts"][0]["choices"]) == len(TEXT)


@torch.no_grad()
def mean_without_last(model: LoadedModel, indexed: IndexedDataset) -> tuple[float, int]:
    """Loss by the model itself over the windows, whose last tokens' labels are left out."""
    data, total, count = model.config.data, 0.0, 0
    names = ("separate_documents", "reset_positions", "mask_document_end")
    rules = DocumentRules(**{name: getattr(data, name) for name in names})
    for window in iterate_windows(
        indexed, sequence_length=24, batch_size=1, vocab_size=257, rules=rules
    ):
        weights_BT = window.batch.loss_weights_BT.clone()
        weights_BT[:, -1] = 0.0
        tokens_BT, labels_BT, _, starts_BT, keys_B, *_ = window.batch
        total += float(model.decoder(tokens_BT, starts_BT, keys_B, labels_BT, weights_BT))
        count += int(weights_BT.sum())
    return total / count, count


@pytest.mark.parametrize(
    "data",
    [
        {"separate_documents": False},
        {"separate_documents": True, "reset_positions": True},
        {"mask_document_end": True},
    ],
)
def test_loss_of_data_is_that_of_its_windows(data: dict[str, bool], prefix: Path) -> None:
    model, words = loaded(data), ByteTokenizer()
    indexed = IndexedDataset(prefix)
    done: list[tuple[int, int]] = []
    found = inspect_data(model, words, indexed, progress=lambda *each: done.append(each))
    assert found["read"] == {"data": str(prefix), "windows": 5}
    assert done[-1] == (5, 5)
    nats, predicted = mean_without_last(model, indexed)
    assert found["losses"]["tokens"] == predicted
    assert found["losses"]["mean"] == pytest.approx(nats, rel=1e-5)
    assert found["lenses"]["logit"]["losses"][-1] == pytest.approx(nats, rel=1e-5)
    one = inspect_data(model, words, indexed, InspectionOptions(windows=1))
    assert one["tokens"] == found["tokens"]
    assert one["losses"]["of_tokens"] == found["losses"]["of_tokens"]
    largest = [each["largest"] for each in found["overflow"]["sites"]]
    assert all(a >= b["largest"] for a, b in zip(largest, one["overflow"]["sites"], strict=True))


def test_documents_do_not_look_at_those_before(prefix: Path) -> None:
    model = loaded({"separate_documents": True})
    found = inspect_data(model, ByteTokenizer(), IndexedDataset(prefix))
    ends = [at for at, token in enumerate(found["tokens"]) if token == 256]
    assert not ends, "the first window is one document"
    window = 24
    model = loaded({"separate_documents": True}, sequence_length=2 * window)
    found = inspect_data(model, ByteTokenizer(), IndexedDataset(prefix))
    (end,) = (at for at, token in enumerate(found["tokens"]) if token == 256)
    for head in found["attention"][0]:
        assert sum(head[end + 1][: end + 1]) == 0
        assert head[end + 1][end + 1] == 1000


@pytest.mark.parametrize("text", ["", "a"])
def test_text_without_anything_to_predict_is_refused(text: str) -> None:
    with pytest.raises(RootsError) as error:
        inspect_text(loaded(), ByteTokenizer(), text)
    assert error.value.lines == (
        f"--text={text!r}: holds no token that is predicted from another; give a longer text",
    )


def test_text_longer_than_learned_positions_is_refused_and_others_read_on() -> None:
    with pytest.raises(RootsError) as error:
        inspect_text(loaded(), ByteTokenizer(), "a" * 25)
    assert error.value.lines == (
        "tokens in a row=25: is more than the 24 positions that the model has learned; shorten "
        "the text",
    )
    found = inspect_text(loaded(position="rotary"), ByteTokenizer(), "a" * 60)
    assert len(found["losses"]["of_tokens"]) == 60
    assert len(found["lenses"]["logit"]["predictions"][0]) == 60


@pytest.mark.parametrize("architecture", ["encoder", "encoder_decoder"])
def test_other_architectures_are_refused(architecture: str) -> None:
    network = build_model(
        small_model(architecture=architecture), Mesh.single(), options=BuildOptions(device="meta")
    )
    tree = {"model": network.model.model_dump(), "training": {"precision": "fp32"}}
    model = LoadedModel(Path("somewhere"), parse_config(tree), network)
    with pytest.raises(RootsError) as error:
        inspect_text(model, ByteTokenizer(), TEXT)
    assert error.value.lines == (
        f"model.architecture of somewhere={architecture!r}: must be decoder, which alone continues "
        "text and predicts each next token; give another checkpoint",
    )


def test_tokenizer_and_dataset_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    narrow = small_decoder(small_model())
    model = LoadedModel(Path("somewhere"), loaded().config, narrow)
    with pytest.raises(RootsError, match="tokenizer vocab_size=257: must not exceed"):
        inspect_text(model, ByteTokenizer(), TEXT)
    with IndexedWriter(tmp_path / "other", 300) as writer:
        writer.add(np.arange(30))
        writer.finish(tokenizer="another", end_of_document=0)
    with pytest.raises(RootsError, match="was made with another tokenizer"):
        inspect_data(loaded(), ByteTokenizer(), IndexedDataset(tmp_path / "other"))
