#!/usr/bin/env bash
# Workers that torchrun has restarted find what the workers before them wrote into the store.
#
# torch 2.13.0, two workers on a CPU.
# Expected: workers of a new start meet in an empty store, or under another prefix: torch's own code says that a store is made
#           for every retry.
# Seen:     the store is that of torchrun's agent, at the same address for all starts, and every key is still there: a key that
#           says "rank 0 has come" says so before it has, and names a port on which nobody listens any more.
# Output seen:
#   start 0, rank 1: key of rank 0 there before it has come: False
#   start 1, rank 1: key of rank 0 there before it has come: True, of start 0
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$folder/worker.py" <<'PYTHON'
import os
import sys
from datetime import timedelta

from torch.distributed.rendezvous import rendezvous

start = os.environ["TORCHELASTIC_RESTART_COUNT"]
store, rank, _ = next(rendezvous("env://", timeout=timedelta(seconds=60)))
if rank == 0:
    # Comes when rank 1 has looked.
    store.wait([f"looked in start {start}"])
    store.set("rank 0 has come", f"start {start}")
    store.wait([f"done in start {start}"])
else:
    there = store.check(["rank 0 has come"])
    of = f", of {store.get('rank 0 has come').decode()}" if there else ""
    print(f"start {start}, rank {rank}: key of rank 0 there before it has come: {there}{of}", flush=True)
    store.set(f"looked in start {start}", "")
    store.wait(["rank 0 has come"])
    if start == "0":
        # Fails, so that both are started again.
        sys.exit(1)
    store.set(f"done in start {start}", "")
PYTHON

expected='start 0, rank 1: key of rank 0 there before it has come: False
start 1, rank 1: key of rank 0 there before it has come: True, of start 0'
seen="$("$folder/venv/bin/torchrun" --standalone --nproc-per-node=2 --max-restarts=1 "$folder/worker.py" 2>"$folder/log" |
    grep '^start' || tail -n 3 "$folder/log")"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
