#!/usr/bin/env bash
# DeepSpeed's --exclude of a whole host is undone by naming a slot of it too.
#
# deepspeed 0.19.8.
# Expected: "b@b:0" excludes host b, and its slot 0 once more: nothing of b is used. (A filter that is put together from
#           two lists, of hosts that are down and of slots that are broken, looks like this.)
# Seen:     a host without slots counts as one with an empty list of slots, to which the others are added: only slot 0 is
#           excluded, in either order, and the launcher uses slot 1 of the excluded host. --include "b@b:0" narrows in the
#           same way.
# Output seen:
#   exclude b: {'a': [0, 1]}
#   exclude b@b:0: {'a': [0, 1], 'b': [1]}
#   exclude b:0@b: {'a': [0, 1], 'b': [1]}
#   include b@b:0: {'b': [0]}
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6 setuptools wheel ninja
"${pip[@]}" --no-build-isolation deepspeed==0.19.8

cat >"$folder/run.py" <<'PYTHON'
from deepspeed.launcher.runner import parse_inclusion_exclusion

HOSTS = {"a": 2, "b": 2}
for option, text in (("exclude", "b"), ("exclude", "b@b:0"), ("exclude", "b:0@b"), ("include", "b@b:0")):
    words = {"inclusion": "", "exclusion": ""} | {option.replace("clude", "clusion"): text}
    print(f"{option} {text}: {dict(parse_inclusion_exclusion(HOSTS, **words))}")
PYTHON

expected="exclude b: {'a': [0, 1]}
exclude b@b:0: {'a': [0, 1], 'b': [1]}
exclude b:0@b: {'a': [0, 1], 'b': [1]}
include b@b:0: {'b': [0]}"
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>"$folder/log" | grep '^[ei][xn]clude' || tail -n 3 "$folder/log")"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
