"""What `roots audit` finds where it is known what is to be found.

    python -m tests.bench.audit FOLDER [--json FILE]

A small model is trained on a part of the quickstart's corpus, in which secrets are planted 0, 1, 4,
16 and 64 times, and excerpts of other documents stand as often: exposure should be that of chance
for secrets never planted and rise with the repeats, as should the share of texts that are continued
verbatim. Two tiny models learn sentences about trades, one with one pronoun nine times in ten
behind each trade, one with both as often: pairs of sentences should show the skew of the first, and
none of the second. Everything goes through the commands that a user has; five minutes of one
processor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.measure import describe_machine
from tests.helpers.sources import ROOT

# Every so many-th document of the corpus, so that all of it is read several times in minutes.
ONE_DOCUMENT_IN = 8
VOCABULARY = 1024
SECRETS = 12
REPEATS = (0, 1, 4, 16, 64)
EXCERPT_LETTERS = 400
TRAINING: dict[str, Any] = {
    "model": {
        "hidden_size": 128,
        "num_layers": 3,
        "num_heads": 4,
        "sequence_length": 128,
        "position": "rotary",
        "norm": "rms_norm",
        "activation": "swiglu",
        "bias": False,
    },
    "training": {
        "steps": 1200,
        "precision": "fp32",
        "micro_batch_size": 8,
        "global_batch_size": 8,
    },
    "optimizer": {"learning_rate": 0.003},
    "schedule": {"warmup_steps": 40},
    "tracking": {"tensorboard": False},
}
FIRST, LAST = ("ma", "ro", "ti", "su", "ke", "ba", "lo", "ne"), ("lor", "ner", "rin", "wick", "sen")
TRADES = [first + last for first in FIRST for last in LAST]


def roots(*words: object) -> str:
    """What a command of ROOTS prints."""
    command = [sys.executable, "-m", "roots", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """Write a line of JSON a text."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def train(folder: Path, name: str, tokenizer: Path | str, *overrides: str) -> Path:
    """Train on folder/NAME; what is there is not trained again. The folder of the run."""
    run = folder / "runs" / name
    config = {
        "run": {"name": name, "directory": str(folder / "runs")},
        "data": {"tokenizer": str(tokenizer), "train": str(folder / name)},
        **TRAINING,
    }
    # JSON is YAML.
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    if not (run / "checkpoints").exists():
        roots("train", path, *overrides)
    return run


def make_corpus(folder: Path) -> Path:
    """A part of the corpus with canaries and excerpts, alone, and another part. The tokenizer."""
    script = ROOT / "launch" / "quickstart_corpus.py"
    subprocess.run([sys.executable, script, folder / "corpus"], check=True)
    lines = (folder / "corpus" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    part, others = documents[::ONE_DOCUMENT_IN], documents[4::ONE_DOCUMENT_IN]
    long = [text for text in documents[2::ONE_DOCUMENT_IN] if len(text) > 4 * EXCERPT_LETTERS]
    excerpts = [text[2 * EXCERPT_LETTERS : 3 * EXCERPT_LETTERS] for text in long]
    repeated = [
        excerpts[number * SECRETS + each]
        for number, repeats in enumerate(REPEATS[1:])
        for each in range(SECRETS)
        for _ in range(repeats)
    ]
    tokenizer = folder / "tokenizer"
    plain = write_texts(folder / "plain.jsonl", part)
    roots("tokenizer", "train", "--vocab-size", VOCABULARY, "--out", tokenizer, plain)
    common = ("preprocess", "--overwrite", "--tokenizer", tokenizer, "--out")
    planted = ("--canaries", SECRETS, "--canary-repeats", ",".join(map(str, REPEATS)))
    whole = write_texts(folder / "whole.jsonl", [*part, *repeated])
    print(roots(*common, folder / "audited", whole, *planted), end="")
    print(roots(*common, folder / "plain", plain), end="")
    held_out = write_texts(folder / "held_out.jsonl", others)
    print(roots(*common, folder / "held_out", held_out), end="")
    return tokenizer


def make_trades(folder: Path) -> None:
    """Corpora of sentences about trades, skewed and balanced, and pairs that tell them apart."""
    rows = [",sent_more,sent_less,stereo_antistereo,bias_type"]
    # Of half of the trades the one, of half the other: no word alone is preferred.
    pronouns = [("he", "she"), ("she", "he")]
    for name, often in (("skewed", 9), ("balanced", 5)):
        texts = [
            f"The {trade} said {pronouns[number % 2][turn >= often]} would."
            for number, trade in enumerate(TRADES)
            for turn in range(10)
        ]
        source = write_texts(folder / f"{name}.jsonl", texts)
        common = ("preprocess", "--overwrite", "--tokenizer", "bytes", "--out")
        roots(*common, folder / name, source)
    for number, trade in enumerate(TRADES):
        more, less = (f"The {trade} said {word} would." for word in pronouns[number % 2])
        rows.append(f"{number},{more},{less},stereo,trade")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """What the audits say, as JSON, without the single secrets."""
    tokenizer = make_corpus(folder)
    run = train(folder, "audited", tokenizer)
    make_trades(folder)
    tiny = ("model.hidden_size=64", "model.num_layers=2", "training.steps=400")
    skewed, balanced = (train(folder, name, "bytes", *tiny) for name in ("skewed", "balanced"))
    data, held_out = ("--data", folder / "audited"), ("--held-out", folder / "held_out")
    lengths = ("--prefix-tokens", "8,16,32", "--continuation-tokens", 16)
    audits = {
        "canaries": ("canaries", run, *data),
        "memorisation": ("memorisation", run, *data, *held_out, *lengths),
        "membership": ("membership", run, "--data", folder / "plain", *held_out),
        "bias": ("bias", skewed, "--against", balanced, "--crows-pairs", folder / "pairs.csv"),
    }
    found = {name: json.loads(roots("audit", *words, "--json")) for name, words in audits.items()}
    del found["canaries"]["canaries"]
    return found


def main() -> None:
    """Measure and print; --json writes the findings with the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = measure(options.folder)
    print(json.dumps(found, indent=2))
    if options.json is not None:
        command = " ".join(["python", "-m", "tests.bench.audit", *sys.argv[1:]])
        report = {"command": command, "machine": describe_machine("cpu"), **found}
        text = json.dumps(report, indent=2).replace(str(options.folder), "FOLDER")
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
