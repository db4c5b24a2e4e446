#!/usr/bin/env bash
# The same tokenizer.json gives whole texts in transformers and cut ones in tokenizers.
#
# tokenizers 0.23.3, transformers 5.23.0.
# Expected: a tokenizer.json means the same to the library that defines it and to the one built on top of it.
# Seen:     a `truncation` and a `padding` section, left behind by whoever saved the file after a call that cut or
#           padded, are in force for every encode() of tokenizers.Tokenizer.from_file; PreTrainedTokenizerFast switches
#           both off at every call that does not ask for them.
# Output seen:
#   tokenizers: 4 ids of 9 words, 4 ids of 1 word
#   transformers: 9 ids of 9 words, 1 ids of 1 word
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 transformers==5.23.0

cat >"$folder/run.py" <<'PYTHON'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

path = sys.argv[1]
saved = Tokenizer(models.WordLevel({"word": 0, "[PAD]": 1}, unk_token="[PAD]"))
saved.pre_tokenizer = pre_tokenizers.Whitespace()
saved.enable_truncation(max_length=4)
saved.enable_padding(length=4, pad_id=1, pad_token="[PAD]")
saved.save(path)
texts = [" ".join(["word"] * count) for count in (9, 1)]
long, short = (len(Tokenizer.from_file(path).encode(text).ids) for text in texts)
print(f"tokenizers: {long} ids of 9 words, {short} ids of 1 word")
fast = PreTrainedTokenizerFast(tokenizer_file=path)
long, short = (len(fast(text).input_ids) for text in texts)
print(f"transformers: {long} ids of 9 words, {short} ids of 1 word")
PYTHON

expected='tokenizers: 4 ids of 9 words, 4 ids of 1 word
transformers: 9 ids of 9 words, 1 ids of 1 word'
seen="$("$folder/venv/bin/python" "$folder/run.py" "$folder/tokenizer.json" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
