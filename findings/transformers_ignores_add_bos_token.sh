#!/usr/bin/env bash
# add_bos_token in tokenizer_config.json has no effect where there is a tokenizer.json.
#
# transformers 5.23.0, tokenizers 0.23.3.
# Expected: "add_bos_token": true puts the begin token in front of every text, as the key says and as published folders
#           (DeepSeek-V3 and others) have it.
# Seen:     with tokenizer_class PreTrainedTokenizerFast the folder loads without a word, and texts begin as the post-processor of tokenizer.json has
#           it: without a begin token, whatever the key says.
# Output seen:
#   add_bos_token=True: [1]
#   add_bos_token=False: [1]
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 transformers==5.23.0

cat >"$folder/run.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

folder = Path(sys.argv[1])
folder.mkdir()
words = Tokenizer(models.WordLevel({"<bos>": 0, "word": 1, "<unk>": 2}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.add_special_tokens(["<bos>"])
words.save(str(folder / "tokenizer.json"))
for wanted in (True, False):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "add_bos_token": wanted}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    print(f"add_bos_token={wanted}: {AutoTokenizer.from_pretrained(folder)('word').input_ids}")
PYTHON

expected='add_bos_token=True: [1]
add_bos_token=False: [1]'
seen="$("$folder/venv/bin/python" "$folder/run.py" "$folder/model" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
