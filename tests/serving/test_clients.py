"""Clients that people have: openai from PyPI, and lm_eval."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

pytest.importorskip("starlette", reason="needs roots-pretrain[serve]")
pytest.importorskip("uvicorn", reason="needs roots-pretrain[serve]")
pytest.importorskip("openai", reason="asks with the client of PyPI: pip install openai")

import openai

from roots.generation.network import Network
from roots.generation.scoring import score_continuations
from tests.helpers.serving import served, small_model


def test_client_of_openai(tmp_path: Path) -> None:
    key = "a key of that length"
    with served(small_model(tmp_path / "step_00000001"), api_key=key) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0)
        assert [model.id for model in client.models.list()] == ["small"]
        wish = {"model": "small", "max_tokens": 12, "seed": 2}
        whole = client.completions.create(prompt="once", logprobs=2, echo=True, **wish)
        text = whole.choices[0].text
        assert text.startswith("once")
        assert whole.choices[0].logprobs is not None
        parts = client.completions.create(prompt="once", stream=True, echo=True, **wish)
        assert "".join(part.choices[0].text for part in parts) == text
        messages = [{"role": "user", "content": "hi"}]
        chat = client.chat.completions.create(messages=messages, **wish)
        streamed = client.chat.completions.create(messages=messages, stream=True, **wish)
        told = "".join(part.choices[0].delta.content or "" for part in streamed)
        assert told == chat.choices[0].message.content
        with pytest.raises(openai.NotFoundError, match="ask for small"):
            client.completions.create(prompt="a", model="other")
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            client.completions.create(prompt="a", model="small", max_tokens=0)
        stranger = client.with_options(api_key="another")
        with pytest.raises(openai.AuthenticationError):
            stranger.completions.create(prompt="a", model="small")


def _letters(folder: Path) -> Path:
    """A tokenizer of single letters, for the side of the client, which sends ids."""
    letters = {letter: number for number, letter in enumerate("abcdefgh ")}
    model = tokenizers.models.WordLevel({**letters, "<|endoftext|>": 256}, "a")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.add_special_tokens(["<|endoftext|>"])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    words = '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
    (folder / "tokenizer_config.json").write_text(words, encoding="utf-8")
    return folder


def test_harness_scores_as_the_model_does(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="asks with the harness: pip install lm_eval")
    pytest.importorskip("transformers", reason="the harness encodes with transformers")
    pytest.importorskip("tenacity", reason="the harness asks servers with it: pip install tenacity")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = small_model(tmp_path / "step_00000001")
    pairs = [("abc", " def"), ("a", "bcdefgh"), ("hg", "f"), ("bad ", "cab")]
    with served(model) as server:
        harness = LocalCompletionsAPI(
            base_url=f"{server.address}/v1/completions",
            model="small",
            tokenizer=str(_letters(tmp_path / "letters")),
            tokenizer_backend="huggingface",
            max_length=100,
        )
        asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        found = harness.loglikelihood(asked, disable_tqdm=True)
        ids = [tuple(harness._encode_pair(*pair)) for pair in pairs]
    expected = score_continuations(Network.of(model.decoder), ids)
    for (total, greedy), score in zip(found, expected, strict=True):
        assert total == pytest.approx(sum(score.log_probabilities), abs=1e-4)
        assert greedy == score.greedy
