#!/usr/bin/env bash
# TCPStore.set returns without an error when the server of the store has died.
#
# torch 2.13.0.
# Expected: set raises when nobody can have stored the value, as add, check and get do.
# Seen:     set and append wait for no answer: the first one after the death of the server is told to have succeeded, and
#           only the next one raises. Who marks the end of its work by a set, or a beat of its heart, does not learn of it.
# Output seen:
#   set: done, then DistNetworkError
#   append: done, then DistNetworkError
#   add: DistNetworkError, then DistNetworkError
#   get: DistNetworkError, then DistNetworkError
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$folder/server.py" <<'PYTHON'
import sys

from torch.distributed import TCPStore

store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
PYTHON
cat >"$folder/run.py" <<'PYTHON'
import subprocess
import sys
from datetime import timedelta

from torch.distributed import DistNetworkError, TCPStore

OPERATIONS = {
    "set": lambda store: store.set("key", "new"),
    "append": lambda store: store.append("key", "new"),
    "add": lambda store: store.add("number", 1),
    "get": lambda store: store.get("key"),
}


def told(operation, store):
    try:
        operation(store)
    except DistNetworkError as error:
        return type(error).__name__
    return "done"


server = subprocess.Popen([sys.executable, sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
port = int(server.stdout.readline())
clients = {}
for name in OPERATIONS:
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
    store.set("key", "old")
    assert store.get("key") == b"old"
    clients[name] = store
server.kill()
server.wait()
for name, operation in OPERATIONS.items():
    print(f"{name}: {told(operation, clients[name])}, then {told(operation, clients[name])}")
PYTHON

expected='set: done, then DistNetworkError
append: done, then DistNetworkError
add: DistNetworkError, then DistNetworkError
get: DistNetworkError, then DistNetworkError'
seen="$("$folder/venv/bin/python" "$folder/run.py" "$folder/server.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
