"""A small model behind a real socket of this process, served by a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from roots.device import Device
from roots.generation.chat import ChatTemplate
from roots.generation.load import LoadedModel, load_model
from roots.serving.app import Front
from roots.serving.server import Server, listen
from roots.serving.settings import Settings
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.models import save_model

CONTEXT = 128
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def small_model(folder: Path, **sections: dict[str, Any]) -> LoadedModel:
    """A random decoder over bytes."""
    model = {"vocab_size": 257, "sequence_length": CONTEXT, "num_layers": 2}
    save_model(folder, model={**model, **sections.pop("model", {})}, data={"tokenizer": "bytes"})
    return load_model(folder, Device("cpu", 0))


def settings(**given: Any) -> Settings:
    fields: dict[str, Any] = {
        "name": "small",
        "context": CONTEXT,
        "max_rows": 8,
        "max_waiting": 32,
        "max_blocks": 16,
        "max_body_bytes": 20_000,
        "request_seconds": 60.0,
        "stop_seconds": 20.0,
        "api_key": None,
        "host": "127.0.0.1",
    }
    return Settings(**{**fields, **given})


@dataclass
class Served:
    """`address`: where it is reached; `stop` begins its end."""

    front: Front
    address: str
    server: Server
    loop: asyncio.AbstractEventLoop

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)

    def client(self, **given: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=60, trust_env=False, **given)

    def post(self, body: Any, path: str = "/v1/completions", **given: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **given)


@contextmanager
def served(model: LoadedModel, **given: Any) -> Iterator[Served]:
    """Serve `model` within the block; `given` are fields of its settings."""
    template = ChatTemplate(TEMPLATE, Path("template"), {})
    front = Front(model, ByteTokenizer(), template, settings(**given))
    server = Server(front)
    begun = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        begun.set()
        await server.serve(sockets=[listening])

    with listen("127.0.0.1", 0) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=asyncio.run, args=(run(),))
        thread.start()
        assert begun.wait(20)
        found = Served(front, address, server, loops[0])
        try:
            yield found
        finally:
            if thread.is_alive():
                found.stop()
            thread.join(40)
        assert not thread.is_alive(), "the server does not end"
