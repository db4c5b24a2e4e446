#!/usr/bin/env bash
# Two templates in a Sequence of post-processors: the second one is not applied to what the first one made.
#
# tokenizers 0.23.3.
# Expected: processors.Sequence([first, second]) wraps a text in the first template, and that in the second.
# Seen:     a text comes out with the tokens of the first template alone.
# Output seen:
#   first: ['<turn>', 'word']
#   second: ['<bos>', 'word']
#   first, then second: ['<turn>', 'word']
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3

cat >"$folder/run.py" <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers, processors

words = Tokenizer(models.WordLevel({"<bos>": 0, "<turn>": 1, "word": 2}, unk_token="word"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.add_special_tokens(["<bos>", "<turn>"])


def template(token):
    front = [(token, words.token_to_id(token))]
    return processors.TemplateProcessing(single=f"{token} $A", special_tokens=front)


first, second = template("<turn>"), template("<bos>")
both = processors.Sequence([first, second])
for name, processor in (("first", first), ("second", second), ("first, then second", both)):
    words.post_processor = processor
    print(f"{name}: {words.encode('word').tokens}")
PYTHON

expected="first: ['<turn>', 'word']
second: ['<bos>', 'word']
first, then second: ['<turn>', 'word']"
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
