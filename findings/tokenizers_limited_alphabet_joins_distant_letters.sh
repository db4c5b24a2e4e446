#!/usr/bin/env bash
# BpeTrainer(limit_alphabet=...) learns tokens of letters that never stand together.
#
# tokenizers 0.23.3.
# Expected: letters beyond the limit separate those that are kept, or are unknown tokens: "a-b" has no pair (a, b).
# Seen:     they are cut out before pairs are counted. The token "ab" is learned from texts in which a and b never meet, and none
#           of which is encoded with it: it has taken the place of a token that would be of use.
# Output seen:
#   tokens: ['?', 'a', 'ab', 'b']
#   a1b: ['a', '?', 'b']
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3

cat >"$folder/run.py" <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXTS = ["a1b", "a2b", "a3b", "a4b"]
tokenizer = Tokenizer(models.BPE(unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
trainer = trainers.BpeTrainer(limit_alphabet=2, special_tokens=["?"], show_progress=False)
tokenizer.train_from_iterator(TEXTS, trainer)
print(f"tokens: {sorted(tokenizer.get_vocab())}")
print(f"a1b: {tokenizer.encode('a1b').tokens}")
PYTHON

expected="tokens: ['?', 'a', 'ab', 'b']
a1b: ['a', '?', 'b']"
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
