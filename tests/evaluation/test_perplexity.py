"""Perplexity of a dataset: every token once, and against counts made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from roots.data.batch import DocumentRules
from roots.data.indexed import IndexedDataset, IndexedWriter
from roots.errors import RootsError
from roots.evaluation.perplexity import evaluate_perplexity, predicted_bytes, summarise
from roots.models.decoder import Decoder
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.decoders import small_decoder, small_model

TEXTS = ["Colourless green ideas sleep furiously.", "Nine words.", "", "\u00e9t\u00e9 " * 9]
RULES = DocumentRules(separate_documents=False)


def dataset(folder: Path, texts: list[str], *, tokenizer: str = "bytes") -> IndexedDataset:
    words = ByteTokenizer()
    prefix = folder / "data"
    with IndexedWriter(prefix, words.vocab_size) as writer:
        for text in texts:
            writer.add(np.array([*words.encode(text), words.end_of_document]))
        writer.finish(tokenizer=tokenizer, end_of_document=words.end_of_document)
    return IndexedDataset(prefix)


def byte_decoder(**options: object) -> Decoder:
    return small_decoder(small_model(vocab_size=257, init_std=0.2), **options)


def losses_by_hand(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """Loss of every token but the first, window by window, one row at a time."""
    length = decoder.model.sequence_length
    losses = []
    for begin in range(0, len(tokens) - 1, length):
        text = torch.tensor([tokens[begin : begin + length + 1]])
        inputs, keys = text[:, :-1], torch.zeros(1, dtype=torch.int64)
        with torch.no_grad():
            logits = decoder(inputs, torch.zeros_like(inputs), keys)
        losses.append(F.cross_entropy(logits[0], text[0, 1:], reduction="none"))
    return torch.cat(losses)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_token_but_the_first_is_predicted_once(tmp_path: Path, batch_size: int) -> None:
    indexed = dataset(tmp_path, TEXTS)
    decoder = byte_decoder(separate_documents=False)
    result = evaluate_perplexity(decoder, indexed, rules=RULES, batch_size=batch_size)
    expected = losses_by_hand(decoder, indexed.tokens[:].tolist())
    assert result.tokens == len(expected) == indexed.num_tokens - 1
    assert result.loss == pytest.approx(expected.mean().item(), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_byte is None


def test_documents_are_told_apart_as_in_training(tmp_path: Path) -> None:
    indexed = dataset(tmp_path, ["abcdef"] * 4)
    decoder = byte_decoder(separate_documents=True, reset_positions=True)
    rules = DocumentRules(reset_positions=True, mask_document_end=True)
    result = evaluate_perplexity(decoder, indexed, rules=rules, batch_size=2)
    # Four equal documents in one window then all cost the same: 6 letters and an end, the first
    # letter given.
    losses = losses_by_hand(decoder, indexed.tokens[:7].tolist())
    windows = math.ceil((indexed.num_tokens - 1) / 24)
    assert windows == 2
    assert result.tokens == 4 * 6
    first_window = 3 * losses.sum().item() + losses[:3].sum().item()
    # The last three tokens start the second window with nothing before them.
    rest = losses_by_hand(decoder, indexed.tokens[24:].tolist()).sum().item()
    assert result.loss == pytest.approx((first_window + rest) / result.tokens, rel=1e-5)


@pytest.mark.parametrize(
    "position, options",
    [
        ("rotary", {}),
        ("rotary", {"mask_document_end": True}),
        ("alibi", {}),
        ("relative", {}),
        ("none", {}),
        ("learned", {"reset_positions": True}),
        ("sinusoidal", {"reset_positions": True}),
        ("learned", {}),
        ("sinusoidal", {}),
        ("rotary", {"separate_documents": False}),
        ("rotary", {"separate_documents": False, "reset_positions": True}),
    ],
)
def test_few_short_documents_cost_what_they_hold_and_the_loss_of_one_window(
    tmp_path: Path, position: str, options: dict[str, bool]
) -> None:
    indexed = dataset(tmp_path, [*TEXTS, "ab" * 21, "A last one.", "Another."])
    model = small_model(vocab_size=257, init_std=0.2, position=position, sequence_length=8192)
    rules = DocumentRules(**options)
    decoder = small_decoder(
        model, separate_documents=rules.separate_documents, reset_positions=rules.reset_positions
    )
    shapes: list[torch.Size] = []
    hook = decoder.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    result = evaluate_perplexity(decoder, indexed, rules=rules, batch_size=8)
    hook.remove()
    computed = sum(shape.numel() for shape in shapes)
    assert result.tokens <= computed <= 1.125 * result.tokens
    documents_alone = rules.separate_documents and (
        rules.reset_positions or position not in ("learned", "sinusoidal")
    )
    assert (len(shapes) > 1) == documents_alone
    # The whole dataset in one row, as training packs it.
    text = torch.from_numpy(indexed.tokens[:].astype(np.int64))[None]
    ends = text[0, :-1] == ByteTokenizer().end_of_document
    starts = torch.zeros_like(text[:, :-1])
    starts[0, 1:] = (torch.where(ends, torch.arange(len(ends)) + 1, 0)).cummax(0).values[:-1]
    with torch.no_grad():
        logits = decoder(text[:, :-1], starts, torch.zeros(1, dtype=torch.int64))
    losses = F.cross_entropy(logits[0], text[0, 1:], reduction="none")
    if rules.mask_document_end:
        losses = losses[~ends]
    assert result.tokens == len(losses)
    assert result.loss == pytest.approx(losses.mean().item(), rel=1e-5)


def test_bits_per_byte_count_the_text_without_its_first_byte(tmp_path: Path) -> None:
    indexed = dataset(tmp_path, TEXTS)
    decoder = byte_decoder(separate_documents=False)
    result = evaluate_perplexity(
        decoder, indexed, rules=RULES, batch_size=4, tokenizer=ByteTokenizer()
    )
    num_bytes = sum(len(text.encode()) for text in TEXTS) - 1
    total_bits = result.loss * result.tokens / math.log(2)
    assert result.bits_per_byte == pytest.approx(total_bits / num_bytes)


def test_every_byte_that_something_comes_before_is_predicted(tmp_path: Path) -> None:
    """Of the first document all but the first byte; of the others too where ends are masked."""
    indexed, words = dataset(tmp_path, ["abc", "defg", "h"]), ByteTokenizer()
    assert predicted_bytes(indexed, words, DocumentRules()) == 2 + 4 + 1
    assert predicted_bytes(indexed, words, DocumentRules(mask_document_end=True)) == 2 + 3 + 0


def test_dataset_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    indexed = dataset(tmp_path, TEXTS, tokenizer="abc")
    with pytest.raises(RootsError) as error:
        evaluate_perplexity(
            byte_decoder(), indexed, rules=RULES, batch_size=1, tokenizer=ByteTokenizer()
        )
    assert error.value.lines == (
        f"data={indexed.prefix!r}: was made with another tokenizer (fingerprint abc); "
        "give the tokenizer of the dataset, or preprocess the text with the model's",
    )


def test_dataset_without_predictions_is_refused(tmp_path: Path) -> None:
    indexed = dataset(tmp_path, [""])
    with pytest.raises(RootsError, match="holds no token that is to be predicted"):
        evaluate_perplexity(byte_decoder(), indexed, rules=RULES, batch_size=1)


def test_dropout_is_off_meanwhile(tmp_path: Path) -> None:
    indexed = dataset(tmp_path, TEXTS)
    model = small_model(vocab_size=257, init_std=0.2)
    dropping = small_decoder(model.model_copy(update={"dropout": 0.5}))
    arguments = {"rules": DocumentRules(), "batch_size": 4}
    expected = evaluate_perplexity(small_decoder(model), indexed, **arguments)
    assert evaluate_perplexity(dropping, indexed, **arguments) == expected
    assert dropping.training


def test_hopeless_loss_gives_infinite_perplexity() -> None:
    assert summarise(8000.0, 10, None).perplexity == math.inf
