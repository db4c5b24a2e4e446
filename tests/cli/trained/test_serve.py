"""`roots serve` as a process: what it refuses before it begins, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

pytest.importorskip("starlette", reason="needs roots-pretrain[serve]")
pytest.importorskip("uvicorn", reason="needs roots-pretrain[serve]")

from roots.cli.main import main
from tests.helpers.distributed import fork_context
from tests.helpers.models import save_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "step_00000001"
    save_model(
        folder, model={"vocab_size": 257, "sequence_length": 64}, data={"tokenizer": "bytes"}
    )
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        main(["serve", *map(str, words)])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_refuses_before_it_begins(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("short\n", encoding="utf-8")
    assert refusal(capsys, checkpoint, "--host", "0.0.0.0") == (
        "roots: error: --host='0.0.0.0': is reached from other machines, and anyone could use the "
        "model; give --api-key-file FILE, or listen on 127.0.0.1\n"
    )
    assert refusal(capsys, checkpoint, "--api-key-file", key) == (
        "roots: error: the key in --api-key-file: must be one line of at least 16 letters, digits "
        "and signs; make one with `openssl rand -hex 32`\n"
    )
    assert refusal(capsys, checkpoint, "--api-key-file", tmp_path / "none") == (
        f"roots: error: --api-key-file='{tmp_path / 'none'}': cannot be read (No such file or "
        "directory); name a file that holds the key\n"
    )
    assert refusal(capsys, checkpoint, "--context", 65) == (
        "roots: error: --context=65: is more than the 64 positions that the model has learned; "
        "lower it\n"
    )
    assert refusal(capsys, checkpoint, "--cache-tokens", 63) == (
        "roots: error: --cache-tokens=63: is less than one text of --context 64 tokens needs; "
        "raise it, or lower --context\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert refusal(capsys, checkpoint, "--port", port) == (
            f"roots: error: 127.0.0.1:{port}: cannot be listened on (Address already in use); "
            "choose another --port, or end the program that has it; check --host\n"
        )


def test_other_architectures_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "step_00000001"
    save_model(folder, model={"architecture": "encoder"}, data={"objective": "masked"})
    assert "architecture of" in refusal(capsys, folder)


def _serve(words: list[str], out: Path) -> None:
    with out.open("wb") as file:
        os.dup2(file.fileno(), 1)
    main(words)


def test_signal_ends_it_once_all_is_answered(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", str(checkpoint), "--port", str(port), "--name", "mine"]
    process = fork_context().Process(target=_serve, args=(words, out))
    process.start()
    try:
        address = f"http://127.0.0.1:{port}"
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(base_url=address, transport=transport, timeout=60) as client:
            assert client.get("/health").json() == {"status": "ok"}
            body = {"prompt": "a", "max_tokens": 60, "stream": True, "logprobs": 0, "seed": 1}
            with client.stream("POST", "/v1/completions", json=body) as answer:
                pieces = answer.iter_text()
                text = next(pieces)
                os.kill(process.pid or 0, signal.SIGTERM)
                text += "".join(pieces)
        assert text.endswith("data: [DONE]\n\n")
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
    assert out.read_text(encoding="utf-8") == (
        f"serving mine on {address} (API: {address}/v1)\nstopped\n"
    )
