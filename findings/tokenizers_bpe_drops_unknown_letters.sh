#!/usr/bin/env bash
# A BPE model without an unknown token drops letters that it does not know, and tells wrong places for those after them.
#
# tokenizers 0.23.3.
# Expected: an error, as the three other models raise for a text that they cannot represent; or offsets that show a gap.
# Seen:     BPE leaves the letter out without a word. The token behind it has the offsets of the letter that is gone, so that
#           text[start:stop] is not the token. byte_fallback, where the bytes have no tokens, does the same.
# Output seen:
#   BPE: a as a, x as b
#   BPE with byte_fallback: a as a, x as b
#   WordLevel: refused
#   WordPiece: refused
#   Unigram: refused
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3

cat >"$folder/run.py" <<'PYTHON'
from tokenizers import Tokenizer, models

TEXT, LETTERS = "axb", {"a": 0, "b": 1}
MODELS = {
    "BPE": models.BPE(LETTERS, []),
    "BPE with byte_fallback": models.BPE(LETTERS, [], byte_fallback=True),
    "WordLevel": models.WordLevel(LETTERS),
    "WordPiece": models.WordPiece(LETTERS),
    "Unigram": models.Unigram([(letter, -1.0) for letter in LETTERS]),
}
for name, model in MODELS.items():
    try:
        found = Tokenizer(model).encode(TEXT)
    except Exception:
        print(f"{name}: refused")
    else:
        places = ", ".join(f"{TEXT[slice(*place)]} as {token}" for token, place in zip(found.tokens, found.offsets))
        print(f"{name}: {places}")
PYTHON

expected='BPE: a as a, x as b
BPE with byte_fallback: a as a, x as b
WordLevel: refused
WordPiece: refused
Unigram: refused'
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
