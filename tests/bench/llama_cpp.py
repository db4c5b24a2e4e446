"""What llama.cpp makes of GGUF exports: ids of texts, logits and greedy text beside ROOTS' own.

llama-cpp-python takes a quarter of an hour to build and is no dependency; it is given as the Python
of an environment of its own. Run by hand from the root of the repository:

    python -m tests.bench.llama_cpp --python /path/to/env/bin/python

Writes tests/bench/results/llama-cpp.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, processors
from torch import Tensor

from roots.device import Device
from roots.errors import RootsError
from roots.exchange.gguf.exporting import export_gguf
from roots.exchange.hf.importing import import_hf
from roots.generation.load import load_model
from roots.tokenizer.tokenizer import load_tokenizer
from roots.tokenizer.train import save_tokenizer, train_bpe
from tests.exchange.gguf.test_known_splits import KNOWN, UNKNOWN
from tests.helpers.hf_models import Case, build, of_llama

RESULT = Path(__file__).parent / "results" / "llama-cpp.json"
VOCABULARY = 420
NEW_TOKENS = 24
TEXTS = [
    "the quick brown fox jumps over the lazy dog, 1234567 times",
    "  two spaces\tand a tab\n\n\nthree lines  \n and  an end ",
    "I'll say it's DON'T; they'Ve 3.14159 -- (x+y)**2 != 0x1F!?",
    "na\u00efve caf\u00e9 \u65e5\u672c\u8a9e \u0e20\u0e32\u0e29\u0e32 \U0001f600 \u0661\u0662",
    "a special token <|endoftext|> amid text",
    "",
]
MODELS = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
}
# Runs in the other environment: the files' names come in, what llama.cpp says of each goes out.
_INSIDE = """
import json, sys, llama_cpp
out = []
for path, texts, ids, new in json.load(sys.stdin):
    try:
        model = llama_cpp.Llama(path, n_ctx=96, n_threads=1, logits_all=True, verbose=False)
    except Exception as error:
        out.append({"error": str(error).splitlines()[0]})
        continue
    found = {}
    if texts:
        found["ids"] = [model.tokenize(t.encode(), add_bos=False, special=True) for t in texts]
        found["begun"] = model.tokenize(b"the", add_bos=True, special=True)
        found["bos"], found["eos"] = model.token_bos(), model.token_eos()
    model.eval(ids)
    found["logits"] = model.scores[: len(ids)].tolist()
    greedy = []
    for _ in range(new):
        greedy.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval([greedy[-1]])
    found["greedy"] = greedy
    out.append(found)
json.dump({"version": llama_cpp.__version__, "models": out}, sys.stdout)
"""


def tokenizer_of(case: str, folder: Path) -> Path:
    """A tokenizer with the steps of a case of the tests; `begun` has a begin token of its own."""
    words = Tokenizer.from_str(train_bpe(TEXTS * 5, VOCABULARY - 20).to_str())
    normalizer, steps, *_ = KNOWN.get(case) or UNKNOWN.get(case) or (None, words.pre_tokenizer)
    if normalizer is not None:
        words.normalizer = normalizer
    words.pre_tokenizer = steps
    if case == "begun":
        words.add_special_tokens(["<begin>"])
        front = [("<begin>", words.token_to_id("<begin>"))]
        words.post_processor = processors.TemplateProcessing("<begin> $A", None, front)
    save_tokenizer(words, folder)
    if case == "begun":
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": "<begin>"}))
    return folder


def exported(name: str, words: Path | None, folder: Path) -> Path:
    """A model file of random weights; the checkpoint that it comes from lies beside it."""
    kind, fields = MODELS[name]
    model = build(Case(name, lambda: of_llama(kind, vocab_size=VOCABULARY, **fields)))
    model.save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "roots")
    export_gguf(folder / "roots", folder / "out", tokenizer=None if words is None else str(words))
    return next((folder / "out").glob("*.gguf"))


def own_answers(checkpoint: Path, ids: list[int]) -> tuple[Tensor, list[int]]:
    """ROOTS' logits of `ids`, shape (T, V), and what it writes after them greedily."""
    decoder = load_model(checkpoint, Device("cpu", 0)).decoder
    written, zero_B = list(ids), torch.zeros(1, dtype=torch.int64)

    def logits_of(tokens: list[int]) -> Tensor:
        tokens_BT = torch.tensor([tokens])
        return decoder(tokens_BT, torch.zeros_like(tokens_BT), zero_B)[0]

    with torch.no_grad():
        logits_TV = logits_of(written)
        for _ in range(NEW_TOKENS):
            written.append(int(logits_of(written)[-1].argmax()))
    return logits_TV, written[len(ids) :]


def main() -> int:
    """Export every case, ask llama.cpp, compare, write the results; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="Python that has llama-cpp-python.")
    python = parser.parse_args().python
    ids = [7, 30, 55, 2, 99, 120, 3, 3, 41, 80]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        plain = tokenizer_of("plain", root / "plain-words")
        cases: list[tuple[str, str, Path | None]] = [(name, name, plain) for name in MODELS]
        for case in (*KNOWN, "begun"):
            cases.append((f"tokenizer {case}", "llama", tokenizer_of(case, root / f"w-{case}")))
        cases.append(("no tokenizer", "llama", None))
        rows, asked = [], []
        for number, (name, model, words) in enumerate(cases):
            folder = root / str(number)
            folder.mkdir()
            path = exported(model, words, folder)
            rows.append((name, words, folder / "roots"))
            asked.append((str(path), [] if words is None else TEXTS, ids, NEW_TOKENS))
        refused = {case: refusal(case, root / f"r-{case}") for case in UNKNOWN}
        answer = subprocess.run(
            [python, "-c", _INSIDE], input=json.dumps(asked), capture_output=True, text=True
        )
        if answer.returncode:
            sys.exit(answer.stderr[-2000:])
        found = json.loads(answer.stdout)
        results = [
            compared(*row, theirs, ids) for row, theirs in zip(rows, found["models"], strict=True)
        ]
    document = {
        "command": "python -m tests.bench.llama_cpp --python PYTHON",
        "machine": f"{platform.machine()}, {platform.system()}",
        "llama_cpp_python": found["version"],
        "torch": version("torch"),
        "tokenizers": version("tokenizers"),
        "transformers": transformers.__version__,
        "exports": results,
        "refused": refused,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for row in results:
        print(row)
    wrong = [row for row in results if not row["equal"]]
    print(f"{len(results) - len(wrong)} of {len(results)} equal, {len(refused)} refused")
    return bool(wrong)


def refusal(case: str, folder: Path) -> str:
    """The line with which the export of a tokenizer is refused."""
    words = tokenizer_of(case, folder / "words")
    try:
        exported("llama", words, folder)
    except RootsError as error:
        return error.lines[0].replace(str(folder), "FOLDER")
    sys.exit(f"{case} was exported")


def compared(
    name: str, words: Path | None, checkpoint: Path, theirs: dict[str, Any], ids: list[int]
) -> dict[str, Any]:
    """What differs between llama.cpp and ROOTS."""
    if "error" in theirs:
        return {"export": name, "equal": False, "error": theirs["error"]}
    logits_TV, written = own_answers(checkpoint, ids)
    difference = float((torch.tensor(theirs["logits"]) - logits_TV[:, :VOCABULARY]).abs().max())
    row: dict[str, Any] = {
        "export": name,
        "largest_logit_difference": round(difference, 6),
        "greedy_tokens_equal": theirs["greedy"] == written,
    }
    equal = difference < 2e-2 and theirs["greedy"] == written
    if words is not None:
        own = load_tokenizer(str(words))
        library = Tokenizer.from_file(str(words / "tokenizer.json"))
        texts = [library.encode(text, add_special_tokens=False).ids for text in TEXTS]
        row["texts_with_equal_ids"] = sum(a == b for a, b in zip(texts, theirs["ids"], strict=True))
        row["texts"] = len(TEXTS)
        row["begin_equal"] = theirs["begun"] == library.encode("the").ids
        row["end_equal"] = theirs["eos"] == own.end_of_document
        equal = equal and row["texts_with_equal_ids"] == len(TEXTS)
        equal = equal and row["begin_equal"] and row["end_equal"]
    return {**row, "equal": equal}


if __name__ == "__main__":
    sys.exit(main())
