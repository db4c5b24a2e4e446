"""Connections to rank 0: only who knows the token is heard, and to the last word."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from roots.errors import RootsError
from roots.parallel.watchdog.link import Hub, Waker, connect
from roots.parallel.watchdog.record import Goodbye, Question


@pytest.fixture
def hub() -> Iterator[Hub]:
    opened = Hub.open("127.0.0.1")
    yield opened
    opened.close()
    opened.listener.close()


def test_ranks_are_let_in_by_the_token_alone(hub: Hub) -> None:
    strangers = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(2)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    strangers[1].sendall(b"0123 1\n")
    mine = connect("localhost", hub.port, hub.token, 1)
    assert [hub.let_in() for _ in range(3)] == [None, None, 1]
    assert list(hub.lines) == [1]
    assert hub.hosts == {1: socket.gethostname()}
    assert list(mine.receive()) == [Question()]
    for each in (*strangers, mine.connection):
        each.close()


def test_the_port_is_on_the_loopback_where_all_ranks_are(hub: Hub) -> None:
    assert hub.listener.getsockname()[0] == "127.0.0.1"


def test_what_was_said_arrives_before_the_end(hub: Hub) -> None:
    mine = connect("127.0.0.1", hub.port, hub.token, 3)
    assert hub.let_in() == 3
    mine.send(Question())
    hub.lines[3].send(Goodbye(0, 1, "x"))
    # With unread messages on it, closing resets the connection.
    hub.close()
    mine.send(Question())
    mine.send(Question())
    assert list(mine.receive()) == [Question(), Goodbye(0, 1, "x")]
    assert not mine.broken
    assert list(mine.receive()) == []
    assert mine.broken
    mine.close()


def test_a_line_that_is_no_message_breaks_the_connection(hub: Hub) -> None:
    mine = connect("127.0.0.1", hub.port, hub.token, 1)
    assert hub.let_in() == 1
    mine.connection.sendall(b'{"Popen": {"args": "true"}}\n')
    assert list(hub.lines[1].receive()) == []
    assert hub.lines[1].broken
    mine.close()


def test_no_way_to_rank_0_is_named() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(RootsError) as error:
            connect("127.0.0.1", port, "", 2)
    assert str(error.value) == (
        f"watchdog.timeout_seconds: rank 2 must reach rank 0 at 127.0.0.1:{port} (Connection "
        "refused); let the ranks' hosts reach each other, or set it to 0, which switches it off"
    )


def test_a_wait_ends_with_a_message_or_by_another_thread() -> None:
    waker = Waker()
    mine, theirs = socket.socketpair()
    waker.add(mine, 5)
    assert waker.wait(0.0) == []
    theirs.send(b"x")
    assert waker.wait(60.0) == [5]
    waker.remove(mine)
    threading.Timer(0.05, waker.wake).start()
    assert waker.wait(60.0) == []
    mine.close()
    theirs.close()
