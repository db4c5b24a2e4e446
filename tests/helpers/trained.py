"""A tiny decoder that has read documents of bytes a few hundred times, and its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from roots.checkpoint.manifest import CONFIG_NAME, Layout, Manifest, describe_files, write_manifest
from roots.config import dump_config, parse_config
from roots.config.run import RunConfig
from roots.data.canaries import Canaries
from roots.data.preprocessing.texts import preprocess
from roots.models.decoder import Decoder
from roots.parallel.shard import shard_of
from tests.helpers.decoders import small_decoder
from tests.helpers.stored_weights import save_weights


def byte_config(**model: object) -> RunConfig:
    """A decoder of bytes with two layers and 64 positions."""
    fields = {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 257,
        "sequence_length": 64,
        "position": "rotary",
        **model,
    }
    training = {"precision": "fp32", "micro_batch_size": 2, "seed": 1}
    return parse_config({"model": fields, "training": training, "data": {"tokenizer": "bytes"}})


def write_texts(prefix: Path, texts: Sequence[str], canaries: Canaries | None = None) -> Path:
    """Preprocess texts to a dataset of bytes."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    source = prefix.with_name(f"{prefix.name}.jsonl")
    source.write_text(lines, encoding="utf-8")
    preprocess([source], prefix, "bytes", canaries=canaries, num_workers=0)
    return prefix


def train_bytes(
    config: RunConfig,
    documents: Sequence[Sequence[int]],
    *,
    steps: int = 150,
    peak: float = 5e-3,
    seed: int = 3,
) -> Decoder:
    """Read random documents, cut to the model's length, sixteen a step."""
    decoder = small_decoder(config.model)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(documents), (16,), generator=draws).tolist()
        texts = [list(documents[number])[: config.model.sequence_length + 1] for number in chosen]
        length = max(map(len, texts)) - 1
        rows = torch.tensor([[*text, *[0] * (length + 1 - len(text))] for text in texts])
        counted = torch.tensor([[n < len(text) - 1 for n in range(length)] for text in texts])
        tokens, labels = rows[:, :-1], rows[:, 1:].contiguous()
        weights = counted.float() / counted.sum() * len(texts)
        zeros = torch.zeros_like(tokens)
        loss = decoder(tokens, zeros, torch.zeros(len(texts), dtype=torch.int64), labels, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return decoder.eval()


def save_decoder(run: Path, config: RunConfig, decoder: Decoder, step: int = 1) -> Path:
    """The checkpoint that a training on one rank would leave of `decoder`."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / CONFIG_NAME).write_text(dump_config(config), encoding="utf-8")
    tensors = [(shard_of(each), each) for each in decoder.parameters()]
    names = [CONFIG_NAME, save_weights(folder, tensors, pipeline_rank=0, tensor_rank=0)]
    layout = Layout(tensor=1, pipeline=1, data=1, zero_stage=1, precision="fp32")
    write_manifest(folder, Manifest(step, 14, layout, describe_files(folder, names)))
    return folder
