#!/usr/bin/env bash
# One function of torch.distributed.checkpoint's planner brings sympy, FSDP and torchrun's agent with it.
#
# torch 2.13.0.
# Expected: a function that computes overlaps of chunks from lists of offsets and sizes needs little beyond torch, which has
#           been imported with torch.distributed.
# Seen:     importing it loads over 600 more modules, most of them sympy's, although torch itself leaves sympy alone until
#           something is compiled; DTensor, FSDP and the elastic agent come too. It is 50 MB in every rank.
# Output seen:
#   with torch and torch.distributed: sympy False, fsdp False, elastic agent False
#   with create_read_items_for_chunk_list: sympy True, fsdp True, elastic agent True
#   more than 600 modules more: True
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$folder/run.py" <<'PYTHON'
import sys

import torch
import torch.distributed

PACKAGES = {
    "sympy": "sympy",
    "fsdp": "torch.distributed.fsdp",
    "elastic agent": "torch.distributed.elastic.agent.server.api",
}


def tell(after):
    there = ", ".join(f"{word} {name in sys.modules}" for word, name in PACKAGES.items())
    print(f"with {after}: {there}")


tell("torch and torch.distributed")
before = len(sys.modules)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list as planned  # noqa: E402

tell(planned.__name__)
print(f"more than 600 modules more: {len(sys.modules) - before > 600}")
PYTHON

expected='with torch and torch.distributed: sympy False, fsdp False, elastic agent False
with create_read_items_for_chunk_list: sympy True, fsdp True, elastic agent True
more than 600 modules more: True'
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
