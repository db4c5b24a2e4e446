"""The thread of the model under load: nothing leaks, whoever leaves, whatever fails."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="needs roots-pretrain[serve]")
pytest.importorskip("uvicorn", reason="needs roots-pretrain[serve]")

from roots.generation.load import LoadedModel
from roots.serving.engine import Engine
from tests.helpers.serving import Served, served, small_model

REQUESTS = 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return small_model(tmp_path_factory.mktemp("model") / "step_00000001")


def bodies() -> Iterator[dict[str, Any]]:
    chance = random.Random(3)
    for number in range(REQUESTS):
        prompt = "".join(chance.choices("abcdefgh ", k=chance.randint(1, 30)))
        yield {"prompt": prompt, "max_tokens": chance.randint(1, 12), "seed": number % 7}


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], leaves: bool) -> str | None:
    """The text of an answer; None where the client left before its end."""
    path = "/v1/completions"
    if not leaves:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text
    streams = body["seed"] % 2 == 0
    wish = {**body, "max_tokens": 40, "stream": streams}
    if not streams:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(path, json=wish, timeout=httpx.Timeout(60, read=0.002))
        return None
    async with client.stream("POST", path, json=wish) as answer:
        async for _ in answer.aiter_bytes():
            break
    return None


async def _crowd(server: Served) -> list[str | None]:
    chance = random.Random(4)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.address, timeout=120, limits=limits, trust_env=False
    ) as client:
        asked = [_ask(client, body, chance.random() < 0.4) for body in bodies()]
        return await asyncio.gather(*asked)


def test_crowd_that_leaves_at_random_leaves_nothing_behind(model: LoadedModel) -> None:
    with served(model, max_waiting=REQUESTS) as server:
        server.post({"prompt": "warm", "max_tokens": 2})
        threads = threading.active_count()
        texts = asyncio.run(_crowd(server))
        engine, desk = server.front.engine, server.front.desk
        # What was left is taken back by the command that the next request waits behind.
        server.post({"prompt": "last", "max_tokens": 1})
        assert (engine.open, engine._of, desk.live) == (0, {}, set())
        batch = engine._batch.batch
        assert (batch.idle, len(batch.rows), batch.rows.blocks) == (True, 0, 0)
        assert all(layer.held == 0 for layer in batch.rows.layers)
        assert engine._batch._spellings == {}
        assert threading.active_count() == threads
        assert server.front.metrics.cancelled > 20
        done = [(body, text) for body, text in zip(bodies(), texts) if text is not None]
        assert len(done) > 80
        for body, text in done[::4]:
            assert server.post(body).json()["choices"][0]["text"] == text
        assert (engine.load.blocks, engine.load.waiting, engine.load.running) == (0, 0, 0)
    assert "roots-engine" not in [thread.name for thread in threading.enumerate()]


def test_more_than_the_queue_holds_is_refused(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = threading.Event()
    step = Engine._take_commands

    def held(self: Engine) -> bool:
        assert begin.wait(60)
        return step(self)

    monkeypatch.setattr(Engine, "_take_commands", held)
    body = {"prompt": "a", "max_tokens": 2, "seed": 1}
    with served(model, max_rows=2, max_waiting=1) as server:

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.address, trust_env=False) as client:
                asked = {
                    asyncio.ensure_future(client.post("/v1/completions", json=body))
                    for _ in range(5)
                }
                refused, _ = set(), None
                while len(refused) < 2:
                    refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                begin.set()
                return list(await asyncio.gather(*asked))

        answers = asyncio.run(crowd())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "queue_full"
    assert refused.json()["error"]["message"].startswith("3 texts are written or wait already")


def test_failed_step_is_an_error_of_its_requests_alone(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(model) as server:
        network = server.front.engine._batch.batch.network
        monkeypatch.setattr(network, "read", lambda *_: [][1])
        answer = server.post({"prompt": ["a", "b"], "max_tokens": 2})
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "the server failed; its log says more"
        monkeypatch.undo()
        assert server.post({"prompt": "a", "max_tokens": 2}).status_code == 200
        assert len(server.front.engine._batch.batch.rows) == 0


def test_stop_lets_what_is_under_way_end(model: LoadedModel) -> None:
    """New requests are refused meanwhile."""
    with served(model) as server, server.client() as client:
        with client.stream(
            "POST",
            "/v1/completions",
            json={"prompt": "a", "max_tokens": 110, "stream": True, "seed": 1, "logprobs": 0},
        ) as answer:
            pieces = answer.iter_text()
            first = next(pieces)
            server.stop()
            refusals = server.post({"prompt": "b", "max_tokens": 1})
            text = first + "".join(pieces)
        assert text.endswith("data: [DONE]\n\n")
        assert refusals.status_code == 503
        assert refusals.json()["error"]["code"] == "stopping"
