#!/usr/bin/env bash
# One gradient that is there, zeros even, makes torch load no optimizer state, without a word.
#
# torch 2.13.0.
# Expected: get_optimizer_state_dict, dcp.load into it, set_optimizer_state_dict, as the tutorials have it, gives a new
#           optimizer the saved moments.
# Seen:     where a parameter of the new run has a gradient (gradients that are kept at zero, a step to warm up) the first
#           call gives no state to load into, and the optimizer begins anew.
# Output seen:
#   without gradients: step 2, exp_avg 0.19
#   with a gradient of zero: no state
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$folder/run.py" <<'PYTHON'
import sys

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict


def made():
    model = torch.nn.Linear(1, 1, bias=False)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


model, optimizer = made()
for _ in range(2):
    optimizer.zero_grad()
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
optimizer.zero_grad()
dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=sys.argv[1])

for case in ("without gradients", "with a gradient of zero"):
    model, optimizer = made()
    if case == "with a gradient of zero":
        model.weight.grad = torch.zeros_like(model.weight)
    tree = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(tree, checkpoint_id=sys.argv[1])
    set_optimizer_state_dict(model, optimizer, tree["optimizer"])
    state = optimizer.state.get(model.weight)
    told = f"step {state['step'].item():g}, exp_avg {state['exp_avg'].item():.2f}" if state else "no state"
    print(f"{case}: {told}")
PYTHON

expected='without gradients: step 2, exp_avg 0.19
with a gradient of zero: no state'
seen="$("$folder/venv/bin/python" "$folder/run.py" "$folder/checkpoint" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
