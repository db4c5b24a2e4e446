"""`roots` and `python` for the sessions of pages, in forks of a process that has torch loaded.

A start of Python with torch and DeepSpeed takes seconds, a fork milliseconds. `serving` puts a
folder with the commands `roots` and `python` in front of PATH: small clients that hand their
arguments, folder, environment and files to the server, pass signals on, and end as the fork does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.command import run_here
from tests.helpers.distributed import fork_context

_CLIENT = r"""#!{python} -SE
import json, os, signal, socket, sys
name = os.path.basename(sys.argv[0])
if name == "python" and not (sys.argv[1:] and sys.argv[1].endswith(".py")):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect("{address}")
socket.send_fds(server, [b"x"], [0, 1, 2])
request = {{"name": name, "words": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
server.sendall(json.dumps(request).encode() + b"\n")
replies = server.makefile()
worker = int(replies.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.kill(worker, number))
code = int(replies.readline() or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def serving() -> Iterator[Path]:
    """Run the server; gives the folder of its commands."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/socket"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()
        commands = Path(folder, "bin")
        commands.mkdir()
        for name in ("roots", "python"):
            client = commands / name
            client.write_text(_CLIENT.format(python=sys.executable, address=address))
            client.chmod(0o755)
        # No daemon: `roots verify` starts processes of its own.
        server = fork_context().Process(target=_serve, args=(listener,))
        server.start()
        listener.close()
        try:
            yield commands
        finally:
            server.kill()
            server.join()


def _serve(listener: socket.socket) -> None:
    import torch

    import roots.cli.main
    import roots.evaluation.perplexity
    import roots.generation.load
    import roots.training.assemble  # noqa: F401 - what forks would load otherwise, each for itself

    torch.set_num_threads(1)
    # Whoever answers a request is reaped by the system.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection)
            os._exit(0)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Fork the process that does what the client asked for, and tell the client of its end."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    worker = os.fork()
    if worker == 0:
        for place, file in enumerate(files):
            os.dup2(file, place)
        connection.close()
        os._exit(_run(request))
    for file in files:
        os.close(file)
    connection.sendall(f"{worker}\n".encode())
    _, status = os.waitpid(worker, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run(request: dict[str, Any]) -> int:
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - they last as long as the process
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    code = 0
    try:
        run_here([request["name"], *request["words"]], request["cwd"], request["env"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - a process ends here, as the interpreter would end it
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
