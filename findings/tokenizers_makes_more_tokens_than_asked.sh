#!/usr/bin/env bash
# BpeTrainer(vocab_size=20) makes 256 tokens, and says nothing.
#
# tokenizers 0.23.3.
# Expected: a vocabulary of at most the size asked for, or an error as that of the Unigram trainer where there are more letters.
# Seen:     all letters of the alphabet get an id, whatever the size: an embedding of vocab_size rows is too short for them. So
#           it is with WordPiece.
# Output seen:
#   BPE of bytes: 20 asked for, 256 made
#   BPE: 20 asked for, 26 made
#   WordPiece: 20 asked for, 45 made
#   Unigram: 20 asked for, refused
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3

cat >"$folder/run.py" <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = ["the quick brown fox jumps over the lazy dog"]
TRAINERS = {
    "BPE of bytes": (models.BPE, trainers.BpeTrainer, {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}),
    "BPE": (models.BPE, trainers.BpeTrainer, {}),
    "WordPiece": (models.WordPiece, trainers.WordPieceTrainer, {}),
    "Unigram": (models.Unigram, trainers.UnigramTrainer, {}),
}
for name, (model, trainer, settings) in TRAINERS.items():
    tokenizer = Tokenizer(model())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    try:
        tokenizer.train_from_iterator(TEXT, trainer(vocab_size=20, show_progress=False, **settings))
    except Exception:
        print(f"{name}: 20 asked for, refused")
    else:
        print(f"{name}: 20 asked for, {tokenizer.get_vocab_size()} made")
PYTHON

expected='BPE of bytes: 20 asked for, 256 made
BPE: 20 asked for, 26 made
WordPiece: 20 asked for, 45 made
Unigram: 20 asked for, refused'
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
