#!/usr/bin/env bash
# After a restart, workers of one torchrun group disagree about how often they have been restarted.
#
# torch 2.13.0, two agents (as on two hosts) with one worker each, on a CPU.
# Expected: TORCHELASTIC_RESTART_COUNT, "the number of worker group restarts so far", is the same for all workers of a start,
#           so that it can name a start: a port, a folder, a prefix of keys.
# Seen:     the agent whose worker has failed counts the restart, the other one, which joins again with it, does not.
# Output seen:
#   start 1, agent that will fail: 0
#   start 1, other agent: 0
#   start 2, agent that has failed: 1
#   start 2, other agent: 0
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$folder/worker.py" <<'PYTHON'
import os
import sys
from datetime import timedelta
from pathlib import Path
from time import sleep

from torch.distributed.rendezvous import rendezvous

folder, agent = Path(sys.argv[1]), os.environ["AGENT"]
start = 1 + (folder / f"{agent}.1").exists()
(folder / f"{agent}.{start}").write_text(os.environ["TORCHELASTIC_RESTART_COUNT"])
store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=60)))
store.set(f"start {start}, rank {rank}", "")
store.wait([f"start {start}, rank {each}" for each in range(size)])
if start == 1:
    if agent == "fails":
        sys.exit(1)
    # Ended by its agent, which sees the other one join again.
    sleep(60)
PYTHON

agents=()
for agent in fails other; do
    AGENT=$agent "$folder/venv/bin/torchrun" --nnodes=2 --nproc-per-node=1 --max-restarts=1 --rdzv-backend=c10d \
        --rdzv-endpoint=localhost:29617 --rdzv-id=two --monitor-interval=0.2 "$folder/worker.py" "$folder" \
        >"$folder/$agent.log" 2>&1 &
    agents+=($!)
done
wait "${agents[@]}" || true

expected='start 1, agent that will fail: 0
start 1, other agent: 0
start 2, agent that has failed: 1
start 2, other agent: 0'
seen="start 1, agent that will fail: $(cat "$folder/fails.1")
start 1, other agent: $(cat "$folder/other.1")
start 2, agent that has failed: $(cat "$folder/fails.2")
start 2, other agent: $(cat "$folder/other.2")"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
