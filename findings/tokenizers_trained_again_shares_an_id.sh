#!/usr/bin/env bash
# A tokenizer that is trained a second time has two special tokens with one id.
#
# tokenizers 0.23.3.
# Expected: train replaces what was trained before, special tokens included; each token has an id of its own.
# Seen:     the vocabulary is replaced, but the special tokens of the first time go on to be found by name, with their old ids:
#           token_to_id gives 0 for <first> and for <second>, although 0 is <second> alone.
# Output seen:
#   trained with <first>: id 0
#   trained with <second>: id 0
#   after both, <first>: id 0, which is <second>
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3

cat >"$folder/run.py" <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
for special in ("<first>", "<second>"):
    tokenizer.train_from_iterator(["some words"], trainers.BpeTrainer(special_tokens=[special], show_progress=False))
    print(f"trained with {special}: id {tokenizer.token_to_id(special)}")
first = tokenizer.token_to_id("<first>")
print(f"after both, <first>: id {first}, which is {tokenizer.id_to_token(first)}")
PYTHON

expected='trained with <first>: id 0
trained with <second>: id 0
after both, <first>: id 0, which is <second>'
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
