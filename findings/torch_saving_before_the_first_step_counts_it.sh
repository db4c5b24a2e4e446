#!/usr/bin/env bash
# Asking torch for an optimizer's state before the first step makes that step smaller by a quarter.
#
# torch 2.13.0.
# Expected: get_optimizer_state_dict reads. A run that saves a checkpoint at step 0 trains as one that does not.
# Seen:     an Adam without a state is stepped once with gradients of zero and a rate of zero, which leaves "step" at 1: the
#           first real update is corrected for bias as the second, and 0.744 as large. The saved state says step 1 too, so
#           that who goes on from it has the same.
# Output seen:
#   first update: 1.000 of the rate
#   first update after get_optimizer_state_dict, step 1: 0.744 of the rate
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$folder/run.py" <<'PYTHON'
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

RATE = 2**-4


def made():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    return model, torch.optim.Adam(model.parameters(), lr=RATE)


def updated(model, optimizer):
    """How far the weight goes in one step whose gradient is 1, in rates."""
    before = model.weight.item()
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    return (before - model.weight.item()) / RATE


print(f"first update: {updated(*made()):.3f} of the rate")
model, optimizer = made()
step = get_optimizer_state_dict(model, optimizer)["state"]["weight"]["step"].item()
print(f"first update after get_optimizer_state_dict, step {step:g}: {updated(model, optimizer):.3f} of the rate")
PYTHON

expected='first update: 1.000 of the rate
first update after get_optimizer_state_dict, step 1: 0.744 of the rate'
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
