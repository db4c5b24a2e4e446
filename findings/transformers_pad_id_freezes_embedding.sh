#!/usr/bin/env bash
# Naming an id as pad_token_id in config.json stops its embedding row from learning.
#
# transformers 5.23.0, torch 2.13.0.
# Expected: pad_token_id says which id fills up batches; a row that is a token of the text as well (a common choice,
#           pad = end of text) goes on learning where the text has it.
# Seen:     it depends on the family: Llama builds nn.Embedding(..., padding_idx=pad_token_id), whose row gets no
#           gradient wherever it stands; GPT-2 and GPT-NeoX build theirs without. With pad_token_id unset all learn.
# Output seen:
#   gpt2 pad=0: row 0 moves
#   gpt2 pad=None: row 0 moves
#   gpt_neox pad=0: row 0 moves
#   gpt_neox pad=None: row 0 moves
#   llama pad=0: row 0 stays
#   llama pad=None: row 0 moves
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 transformers==5.23.0

cat >"$folder/run.py" <<'PYTHON'
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

sizes = {"vocab_size": 16, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 0}
wide = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
kinds = {
    "gpt2": lambda pad: GPT2Config(n_embd=8, n_layer=1, n_head=2, pad_token_id=pad, **sizes),
    "gpt_neox": lambda pad: GPTNeoXConfig(pad_token_id=pad, **wide, **sizes),
    "llama": lambda pad: LlamaConfig(pad_token_id=pad, num_key_value_heads=2, **wide, **sizes),
}
for name, make in kinds.items():
    for pad in (0, None):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(make(pad))
        tokens = torch.tensor([[1, 2, 0, 3, 0, 4]])
        model(input_ids=tokens, labels=tokens).loss.backward()
        gradient = model.get_input_embeddings().weight.grad[0].abs().sum()
        print(f"{name} pad={pad}: row 0 {'moves' if gradient > 0 else 'stays'}")
PYTHON

expected='gpt2 pad=0: row 0 moves
gpt2 pad=None: row 0 moves
gpt_neox pad=0: row 0 moves
gpt_neox pad=None: row 0 moves
llama pad=0: row 0 stays
llama pad=None: row 0 moves'
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
