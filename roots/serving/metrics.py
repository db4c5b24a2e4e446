"""What a server has done, in the text format that Prometheus reads (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from roots.serving.engine import Load

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Upper ends of the buckets of a time, in seconds.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """How long something took, in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """Every bucket holds those before it."""
        below = 0
        for end, count in zip((*map(str, BUCKETS), "+Inf"), self._counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{end}"}} {below}'
        yield f"{name}_sum {self._sum}"
        yield f"{name}_count {below}"


class Metrics:
    """Counts of one server; all of its calls are made in its event loop."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.cancelled = 0
        self.prompt_tokens = 0
        self.new_tokens = 0
        self.seconds = Histogram()
        self.first_token_seconds = Histogram()

    def text(self, load: Load) -> str:
        """All of it, and the load."""
        return "".join(f"{line}\n" for line in self._lines(load))

    def _lines(self, load: Load) -> Iterator[str]:
        name = "roots_requests_total"
        yield from _head(name, "counter", "Requests answered, by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'{name}{{path="{path}",status="{status}"}} {count}'
        yield from _single(
            "roots_cancelled_requests_total", "counter", "Clients that left.", self.cancelled
        )
        yield from _single(
            "roots_prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens
        )
        yield from _single("roots_new_tokens_total", "counter", "Tokens written.", self.new_tokens)
        yield from _single("roots_waiting_texts", "gauge", "Texts not begun.", load.waiting)
        yield from _single("roots_running_texts", "gauge", "Texts under way.", load.running)
        yield from _single("roots_cache_blocks", "gauge", "Blocks of the cache.", load.blocks)
        reserved = "Blocks that the texts under way have or may come to need."
        yield from _single("roots_cache_blocks_reserved", "gauge", reserved, load.reserved)
        if load.bound is not None:
            free = load.bound - load.reserved
            yield from _single("roots_cache_blocks_free", "gauge", "Blocks for others.", free)
        for name, text, times in (
            ("roots_request_seconds", "From a request to the end of its answer.", self.seconds),
            (
                "roots_first_token_seconds",
                "From a request to its first token.",
                self.first_token_seconds,
            ),
        ):
            yield from _head(name, "histogram", text)
            yield from times.lines(name)


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _single(name: str, kind: str, text: str, value: int) -> Iterator[str]:
    yield from _head(name, kind, text)
    yield f"{name} {value}"
