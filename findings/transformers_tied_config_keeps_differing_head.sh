#!/usr/bin/env bash
# A config that ties the head does not tie it where the file holds another head.
#
# transformers 5.23.0, torch 2.13.0, safetensors 0.8.0.
# Expected: tie_word_embeddings=true in config.json means that the head is the embedding, whatever else lies in the file.
# Seen:     a lm_head.weight in the file that differs from the embedding is loaded and used, with a warning; one that
#           is equal, or missing, is tied. The same folder in transformers 4 is tied, and its head dropped.
# Output seen:
#   file without head: tied
#   file with an equal head: tied
#   file with another head: not tied, the head is the file's
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 transformers==5.23.0 safetensors==0.8.0

cat >"$folder/run.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

folder = Path(sys.argv[1])
config = LlamaConfig(
    vocab_size=16,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    intermediate_size=16,
    tie_word_embeddings=True,
)
AutoModelForCausalLM.from_config(config).save_pretrained(folder)
file = folder / "model.safetensors"
tensors = load_file(file)
embedding = tensors["model.embed_tokens.weight"]
heads = {"without head": None, "with an equal head": embedding.clone(), "with another head": embedding + 1}
for name, head in heads.items():
    held = {key: value for key, value in tensors.items() if key != "lm_head.weight"}
    if head is not None:
        held["lm_head.weight"] = head
    save_file(held, file, metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows, columns = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = rows.data_ptr() == columns.data_ptr()
    own = head is not None and not tied and torch.equal(columns, head)
    print(f"file {name}: {'tied' if tied else 'not tied'}{', the head is the file' + chr(39) + 's' if own else ''}")
PYTHON

expected="file without head: tied
file with an equal head: tied
file with another head: not tied, the head is the file's"
seen="$("$folder/venv/bin/python" "$folder/run.py" "$folder/model" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
