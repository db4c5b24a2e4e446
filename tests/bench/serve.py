"""64 requests of unequal length through the server, side by side against one after the other.

python -m tests.bench.serve [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch

from roots.files import write_atomically
from tests.helpers.serving import served, small_model

REQUESTS = 64
SIZES = {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "sequence_length": 256}


def bodies() -> list[dict[str, Any]]:
    """Prompts of 8 to 128 tokens, and 4 to 24 tokens after each."""
    chance = random.Random(0)
    return [
        {
            "prompt": [chance.randrange(256) for _ in range(chance.randint(8, 128))],
            "max_tokens": chance.randint(4, 24),
            "seed": number,
        }
        for number in range(REQUESTS)
    ]


async def ask(address: str, at_once: int) -> dict[str, float]:
    """Send all requests, so many at once -> requests a second and the times of single ones."""
    places = asyncio.Semaphore(at_once)
    seconds: list[float] = []
    async with httpx.AsyncClient(base_url=address, timeout=600, trust_env=False) as client:

        async def one(body: dict[str, Any]) -> None:
            async with places:
                begin = time.perf_counter()
                answer = await client.post("/v1/completions", json=body)
                answer.raise_for_status()
                seconds.append(time.perf_counter() - begin)

        begin = time.perf_counter()
        await asyncio.gather(*map(one, bodies()))
        whole = time.perf_counter() - begin
    seconds.sort()
    return {
        "requests_per_second": round(REQUESTS / whole, 3),
        "p50_seconds": round(seconds[REQUESTS // 2], 3),
        "p95_seconds": round(seconds[int(REQUESTS * 0.95)], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tests/bench/results/serve.json"))
    parser.add_argument("--rounds", type=int, default=2)
    out, rounds = (given := parser.parse_args()).out, given.rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder) / "step_00000001", model=SIZES)
        fields = {"context": 256, "max_rows": 32, "max_waiting": 64, "max_blocks": 128}
        found: dict[str, list[dict[str, float]]] = {"one_after_the_other": [], "side_by_side": []}
        with served(model, request_seconds=600, **fields) as server:
            asyncio.run(ask(server.address, REQUESTS))
            for _ in range(rounds):
                found["one_after_the_other"].append(asyncio.run(ask(server.address, 1)))
                found["side_by_side"].append(asyncio.run(ask(server.address, REQUESTS)))
    best = {name: max(each["requests_per_second"] for each in runs) for name, runs in found.items()}
    result = {
        "command": "python -m tests.bench.serve",
        "machine": {"processor": platform.machine(), "threads": 1, "torch": torch.__version__},
        "model": {**SIZES, "precision": "fp32"},
        "requests": REQUESTS,
        "rounds": found,
        "times_as_many_requests_per_second": round(
            best["side_by_side"] / best["one_after_the_other"], 2
        ),
    }
    write_atomically(out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
