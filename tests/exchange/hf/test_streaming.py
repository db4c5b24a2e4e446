"""Large models pass through little memory: one tensor at a time, whatever the files' size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from roots.checkpoint.safetensors_writer import SafetensorsWriter, TensorPlan, split_by_bytes
from tests.helpers.sources import ROOT

MEBIBYTE = 1 << 20
SHARD_BYTES = 12 * MEBIBYTE
LAYERS = 8

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": LAYERS,
    "vocab_size": 512,
    "max_position_embeddings": 64,
}
_LAYER_BYTES = 4 * (4 * 512 * 512 + 3 * 512 * 1024)

# What a command adds to the peak of a process that has imported all that it needs.
_MEASURE = """
import sys
from roots.exchange.hf.exporting import export_hf
from roots.exchange.hf.importing import import_hf
run = {"import": import_hf, "export": export_hf}[sys.argv[1]]
from pathlib import Path
import torch
# Imported where a tensor is first read in parts.
import torch.distributed.checkpoint.planner_helpers
from roots.device import Device, memory_bytes
torch.zeros(1) + 1
cpu = Device("cpu", 0)
before = memory_bytes(cpu)
run(Path(sys.argv[2]), Path(sys.argv[3]), shard_bytes=int(sys.argv[4]))
print(memory_bytes(cpu) - before)
"""


def write_made_up_model(folder: Path) -> int:
    """A model in shards, written as a stream too; its size in bytes."""
    from roots.config.model import ModelConfig
    from roots.exchange.hf.llama import LLAMA
    from roots.exchange.hf.model_files import write_index

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    fields, refusals = LLAMA.read_config(_CONFIG)
    assert not refusals
    rules = LLAMA.tensors(ModelConfig(**fields))
    plans = [TensorPlan(part.name, part.shape, torch.float32) for r in rules for part in r.parts]
    shards = split_by_bytes(plans, SHARD_BYTES)
    files = {f"model-{number}.safetensors": shard for number, shard in enumerate(shards)}
    for name, shard in files.items():
        with SafetensorsWriter(folder / name, shard, {"format": "pt"}) as writer:
            for plan in writer.order:
                writer.write(torch.full(plan.shape, float(len(plan.name))))
    write_index(folder, files)
    return sum(plan.num_bytes for plan in plans)


def peak_growth(direction: str, source: Path, target: Path) -> int:
    words = [sys.executable, "-c", _MEASURE, direction, source, target, SHARD_BYTES]
    result = subprocess.run(
        [str(word) for word in words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(result.stdout)


def test_import_and_export_hold_at_most_two_layers_above_a_shard(tmp_path: Path) -> None:
    size = write_made_up_model(tmp_path / "hf")
    limit = SHARD_BYTES + 2 * _LAYER_BYTES
    # Otherwise whoever held the whole model would pass too.
    assert size > 2 * limit
    assert peak_growth("import", tmp_path / "hf", tmp_path / "roots") < limit
    assert peak_growth("export", tmp_path / "roots", tmp_path / "back") < limit
    names = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert all((tmp_path / "back" / name).stat().st_size < SHARD_BYTES * 1.01 for name in names)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size
    for name, place in index["weight_map"].items():
        with safe_open(tmp_path / "back" / place, framework="pt") as file:
            assert bool((file.get_tensor(name) == len(name)).all())


def test_files_are_cut_between_tensors() -> None:
    plans = [TensorPlan(str(size), (size,), torch.float32) for size in (2, 3, 9, 1, 1)]
    cut = [[plan.name for plan in file] for file in split_by_bytes(plans, 20)]
    assert cut == [["2", "3"], ["9"], ["1", "1"]]


def test_mixed_dtypes_stay_aligned(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.int8),
        "half": torch.randn(5, generator=torch.Generator().manual_seed(1)).bfloat16(),
        "wide": torch.arange(4, dtype=torch.int64),
        "single": torch.tensor(2.5),
    }
    plans = [TensorPlan(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    with SafetensorsWriter(tmp_path / "mixed.safetensors", plans, {"who": "test"}) as writer:
        for plan in writer.order:
            writer.write(tensors[plan.name])
    with safe_open(tmp_path / "mixed.safetensors", framework="pt") as file:
        assert file.metadata() == {"who": "test"}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
