"""The paths of the server: answers are those of the model alone, and mistakes are told."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs roots-pretrain[serve]")
pytest.importorskip("uvicorn", reason="needs roots-pretrain[serve]")

from roots.generation.network import Network
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.generation.texts import WrittenText, sample_texts
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.serving import CONTEXT, Served, served, small_model

PATH = "/v1/completions"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(small_model(tmp_path_factory.mktemp("model") / "step_00000001")) as found:
        yield found


def alone(server: Served, prompt: str, **given: Any) -> WrittenText:
    """What the model writes by itself."""
    network = Network.of(server.front._model.decoder)
    sampling = SamplingOptions(**given.pop("sampling", {}))
    options = GenerationOptions(sampling=sampling, **given)
    (text,) = sample_texts(network, ByteTokenizer(), [prompt], options)
    return text


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_answers_are_what_the_model_writes_alone(server: Served) -> None:
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "frequency_penalty": 0.5}
    prompts = ["once", "two words", "\n"]
    body = {"prompt": prompts, "max_tokens": 20, "seed": 5, "n": 2, **sampling}
    answer = server.post(body).json()
    texts = [choice["text"] for choice in answer["choices"]]
    expected = [
        alone(server, prompt, max_new_tokens=20, seed=5 + 2 * at + again, sampling=sampling)
        for at, prompt in enumerate(prompts)
        for again in range(2)
    ]
    assert texts == [each.text for each in expected]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    new = sum(len(each.token_ids) for each in expected)
    assert answer["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": new,
        "total_tokens": 14 + new,
    }
    assert (answer["object"], answer["model"]) == ("text_completion", "small")


def test_temperature_of_nothing_is_greedy_and_ids_are_a_prompt(server: Served) -> None:
    expected = alone(server, "abc", max_new_tokens=9, sampling={"greedy": True}).text
    for prompt in ("abc", [97, 98, 99], [[97, 98, 99]], ["abc"]):
        answer = server.post({"prompt": prompt, "max_tokens": 9, "temperature": 0})
        assert answer.json()["choices"][0]["text"] == expected


def test_stream_is_the_answer_in_parts(server: Served) -> None:
    body = {"prompt": ["x", "yz"], "max_tokens": 30, "seed": 3, "logprobs": 2, "echo": True}
    whole = server.post(body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = server.post({**body, **options})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, last = events(answer.text)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for index, choice in enumerate(whole["choices"]):
        mine = [each["choices"][0] for each in parts if each["choices"][0]["index"] == index]
        assert len(mine) > 3
        assert "".join(each["text"] for each in mine) == choice["text"]
        for name, column in choice["logprobs"].items():
            assert [value for each in mine for value in each["logprobs"][name]] == column
        reasons = [each["finish_reason"] for each in mine]
        assert reasons == [None] * (len(mine) - 1) + [choice["finish_reason"]]


def test_log_probabilities_of_prompt_and_answer(server: Served) -> None:
    """As OpenAI told them: columns of equal length, nothing of the first token."""
    body = {"prompt": "hello", "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    (choice,) = server.post(body).json()["choices"]
    told = choice["logprobs"]
    assert {len(column) for column in told.values()} == {6}
    assert told["tokens"][:5] == list("hello")
    assert told["text_offset"][:6] == [0, 1, 2, 3, 4, 5]
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    # Greedy: the last one is the likeliest of all, so that it stands alone.
    assert list(told["top_logprobs"][5].values()) == [told["token_logprobs"][5]]
    new = alone(server, "hello", max_new_tokens=1, log_probabilities=1, sampling={"greedy": True})
    assert new.likelihoods is not None
    assert told["token_logprobs"][5] == pytest.approx(new.likelihoods[0].log_probability, abs=1e-4)
    (none,) = server.post({**body, "max_tokens": 0}).json()["choices"]
    assert none["text"] == "hello"
    assert none["logprobs"]["token_logprobs"] == told["token_logprobs"][:5]
    assert none["finish_reason"] == "length"


def test_stop_texts_are_not_told(server: Served) -> None:
    body = {"prompt": "once", "max_tokens": 40, "seed": 8, "logprobs": 0}
    (whole,) = server.post(body).json()["choices"]
    stop = next(letter for letter in whole["text"][4:] if letter.isprintable())
    (choice,) = server.post({**body, "stop": [stop, "never"]}).json()["choices"]
    assert choice["text"] == whole["text"][: whole["text"].index(stop)]
    assert choice["finish_reason"] == "stop"
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert max(told["text_offset"]) < len(choice["text"])


def test_token_that_ends_a_text_has_its_log_probability(server: Served) -> None:
    """What lm_eval counts on: behind a prompt stands one token more, whatever it is."""
    seeds = range(400)
    for first in range(0, len(seeds), 32):
        body = {"prompt": "q", "max_tokens": 1, "n": 32, "seed": first, "logprobs": 0, "echo": True}
        choices = server.post(body).json()["choices"]
        assert all(len(each["logprobs"]["tokens"]) == 2 for each in choices)
        ended = [each for each in choices if each["finish_reason"] == "stop"]
        if ended:
            assert ended[0]["logprobs"]["tokens"][1] == "<|endoftext|>"
            assert ended[0]["text"] == "q"
            return
    pytest.fail("no text of 400 ended at once")


def test_chat_renders_the_template(server: Served) -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    body = {"messages": messages, "max_tokens": 12, "seed": 4, "logprobs": True, "top_logprobs": 2}
    answer = server.post(body, CHAT).json()
    expected = alone(server, "[system]be[user]hi[assistant]", max_new_tokens=12, seed=4)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    content = choice["logprobs"]["content"]
    assert all(len(each["top_logprobs"]) in (2, 3) for each in content)
    assert "".join(each["token"] for each in content) == expected.text
    *parts, _ = events(server.post({**body, "stream": True}, CHAT).text)
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    streamed = "".join(each["choices"][0]["delta"].get("content", "") for each in parts)
    assert expected.text.startswith(streamed)


@pytest.mark.parametrize(
    "path, body, status, param, words",
    [
        (PATH, {"prompt": 3}, 400, "prompt", "must be a text, token ids, or a list of several"),
        (PATH, {"prompt": ["a", 1]}, 400, "prompt", "must be a text, token ids"),
        (PATH, {"prompt": []}, 400, "prompt", "prompt=[]: is empty"),
        (PATH, {"prompt": [[]]}, 400, "prompt", "holds no tokens, or others than 0 to 256"),
        (PATH, {"prompt": [[1], [257]]}, 400, "prompt", "prompt=257: holds no tokens, or others"),
        (PATH, {}, 400, "prompt", "prompt: is missing; give it"),
        (PATH, {"prompt": "a", "max_tokens": "9"}, 400, "max_tokens", "max_tokens='9'"),
        (PATH, {"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "must be 1 or more"),
        (PATH, {"prompt": "a", "max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        (PATH, {"prompt": "a", "temperature": -1}, 400, "temperature", "greater than or equal"),
        (PATH, {"prompt": "a", "top_p": 3}, 400, "top_p", "top_p=3.0: must be in (0, 1]"),
        (PATH, {"prompt": "a", "n": 0}, 400, "n", "n=0"),
        (PATH, {"prompt": "a", "n": 128}, 400, "n", "is more than the 40 that can wait here"),
        (PATH, {"prompt": "a", "stop": ""}, 400, "stop", "is empty, and stands everywhere"),
        (PATH, {"prompt": "a", "stop": 7}, 400, "stop", "must be a text or a list of texts"),
        (PATH, {"prompt": "a", "stream": 1}, 400, "stream", "stream=1"),
        (PATH, {"prompt": "a", "foo": 1}, 400, "foo", "foo: is not known here; leave it out"),
        (PATH, {"prompt": "a", "logit_bias": {"1": 2}}, 400, "logit_bias", "is not supported here"),
        (PATH, {"prompt": "a", "model": "gpt"}, 404, "model", "ask for small"),
        (PATH, {"prompt": "a" * 200}, 400, "prompt", "prompt tokens=200: with max_tokens=16"),
        (PATH, [], 400, None, "no JSON object"),
        (CHAT, {"messages": []}, 400, "messages", "messages=[]"),
        (CHAT, {"messages": "hi"}, 400, "messages", "messages='hi'"),
        (CHAT, {"messages": [{"role": "user"}]}, 400, "messages.0.content", "Field required"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2},
            400,
            "top_logprobs",
            "needs logprobs",
        ),
        ("/inspect", {"text": "a"}, 400, "--text", "holds no token that is predicted"),
        ("/inspect", {"text": "a" * 5000}, 400, "text", "at most 1024 are inspected"),
        (PATH, {"prompt": "a" * 30_000}, 413, None, "is more than 20000 bytes"),
        ("/v1/embeddings", {}, 404, None, "Not Found"),
        ("/health", {}, 405, None, "Method Not Allowed"),
    ],
)
def test_mistake_has_a_status_and_a_line(
    server: Served, path: str, body: Any, status: int, param: str | None, words: str
) -> None:
    answer = server.post(body, path)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert words in error["message"]
    assert "\n" not in error["message"]
    # And it goes on.
    assert server.post({"prompt": "a", "max_tokens": 1}).status_code == 200


def test_bodies_that_are_no_json(server: Served) -> None:
    headers = {"content-type": "application/json"}
    with server.client() as client:
        for content in (b"", b"nope", b"\xff\xfe", b"[" * 15_000, b'{"prompt": NaN}'):
            answer = client.post(PATH, content=content, headers=headers)
            assert answer.status_code == 400, content[:10]
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert client.post(PATH, content=b"prompt=a").status_code == 415
        foreign = client.get("/health", headers={"host": "elsewhere.example"})
        assert foreign.status_code == 400
        # Of a body without a length, no more than the limit is read.
        pieces = (b"x" * 1000 for _ in range(100))
        assert client.post(PATH, content=pieces, headers=headers).status_code == 413


def test_health_models_and_metrics(server: Served) -> None:
    with server.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["id"], model["object"], model["max_model_len"]) == ("small", "model", CONTEXT)
        before = _metrics(client.get("/metrics").text)
        client.post(PATH, json={"prompt": "abc", "max_tokens": 4, "seed": 1})
        after = _metrics(client.get("/metrics").text)
    moved = {name: after[name] - before.get(name, 0) for name in after}
    assert moved['roots_requests_total{path="/v1/completions",status="200"}'] == 1
    assert moved["roots_prompt_tokens_total"] == 3
    assert moved["roots_new_tokens_total"] == 4
    assert moved['roots_request_seconds_bucket{le="+Inf"}'] == 1
    assert moved["roots_request_seconds_count"] == 1
    assert after["roots_running_texts"] == after["roots_waiting_texts"] == 0
    assert after["roots_cache_blocks_free"] == 16


def _metrics(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    found = {name: float(value) for name, _, value in lines}
    assert len(found) == len(lines)
    assert all(map(math.isfinite, found.values()))
    return found


def test_inside_of_a_text(server: Served) -> None:
    found = server.post({"text": "hello"}, "/inspect").json()
    assert found["tokens"] == list(b"hello")
    assert found["checkpoint"] == "step_00000001"


def test_key_is_asked_for(server: Served) -> None:
    key = "k" * 16
    with served(server.front._model, api_key=key, host="0.0.0.0") as guarded:
        body = {"prompt": "a", "max_tokens": 1}
        wrong = [{}, {"authorization": "Bearer no"}, {"authorization": f"Bearer {key}x"}]
        for headers in wrong:
            answer = guarded.post(body, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert guarded.post(body, headers={"authorization": f"Bearer {key}"}).status_code == 200
        with guarded.client() as client:
            assert client.get("/metrics").status_code == 401
            assert client.get("/health").status_code == 200
            assert key not in client.get("/").text


def test_time_limit_ends_a_request(server: Served) -> None:
    with served(server.front._model, request_seconds=0.0) as hasty:
        answer = hasty.post({"prompt": "a", "max_tokens": 100})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
