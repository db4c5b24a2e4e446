"""Clients that people have: openai from PyPI."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs roots-pretrain[serve]")
pytest.importorskip("uvicorn", reason="needs roots-pretrain[serve]")
pytest.importorskip("openai", reason="asks with the client of PyPI: pip install openai")

import openai

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
