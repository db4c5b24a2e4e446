"""A model is used on any layout, and writes the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from roots.checkpoint import read_config
from roots.device import Device, launch_environment
from roots.errors import RootsError
from roots.generation.layout import Degrees, join_processes, topology_for
from roots.generation.load import load_network
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.generation.texts import WrittenText, sample_texts
from roots.parallel.topology import Topology
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.distributed import run_distributed
from tests.helpers.models import save_model
from tests.helpers.runs import small_config

PROMPTS = ("a", "some words", "xyz and more of it", "b", "cd")
LAYOUTS = {
    "tensor 2": Degrees(tensor=2),
    "pipeline 2": Degrees(pipeline=2),
    "data 2": Degrees(),
    "tensor 2, pipeline 2": Degrees(tensor=2, pipeline=2),
    "pipeline 2, data 2": Degrees(pipeline=2),
    "expert 2": Degrees(expert=2),
    "expert 2, data 4": Degrees(expert=2),
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {"vocab_size": 257, "sequence_length": 64},
    "tied rotary": {
        "vocab_size": 257,
        "position": "rotary",
        "norm": "rms_norm",
        "activation": "swiglu",
        "num_kv_heads": 2,
        "tied_embeddings": True,
    },
    "relative": {
        "vocab_size": 257,
        "position": "relative",
        "relative_buckets": 8,
        "relative_max_distance": 12,
    },
    "experts": {"vocab_size": 257, "position": "rotary", "moe": {"num_experts": 4, "top_k": 2}},
}
OPTIONS = GenerationOptions(max_new_tokens=7, log_probabilities=1, stop=("e", "~"))
CASES = [
    ("gpt", "tensor 2", 2),
    ("gpt", "data 2", 2),
    ("gpt", "tensor 2, pipeline 2", 4),
    ("tied rotary", "pipeline 2", 2),
    ("tied rotary", "pipeline 2, data 2", 4),
    ("relative", "tensor 2, pipeline 2", 4),
    ("experts", "expert 2", 2),
    ("experts", "expert 2, data 4", 4),
    ("experts", "pipeline 2", 2),
]


def texts_on(rank: int, world_size: int, folder: Path, degrees: Degrees) -> list[WrittenText]:
    config = read_config(folder)
    mesh = join_processes(config, degrees, launch_environment(), Device("cpu", rank))
    network = load_network(folder, Device("cpu", rank), mesh).network
    heard: dict[int, str] = {}

    def hear(number: int, event: Any) -> None:
        heard[number] = heard.get(number, "") + event.text

    texts = sample_texts(network, ByteTokenizer(), PROMPTS, OPTIONS, hear=hear)
    assert all(texts[number].text == text for number, text in heard.items())
    return texts


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[WrittenText]]]:
    """Each model with what it writes on one process, by greedy choice and by chance."""
    found = {}
    for name, model in MODELS.items():
        folder = tmp_path_factory.mktemp("models") / name.replace(" ", "_")
        save_model(folder, model=model)
        network = load_network(folder, Device("cpu", 0)).network
        found[name] = folder, sample_texts(network, ByteTokenizer(), PROMPTS, OPTIONS)
    return found


@pytest.mark.parametrize("model, layout, world_size", CASES)
def test_texts_are_those_of_one_process(
    alone: dict[str, tuple[Path, list[WrittenText]]], model: str, layout: str, world_size: int
) -> None:
    folder, expected = alone[model]
    for texts in run_distributed(texts_on, world_size, folder, LAYOUTS[layout]):
        assert [without_figures(text) for text in texts] == [
            without_figures(text) for text in expected
        ]
        for text, other in zip(texts, expected, strict=True):
            torch.testing.assert_close(figures(text), figures(other), rtol=1e-5, atol=1e-5)


def without_figures(text: WrittenText) -> WrittenText:
    return replace(text, likelihoods=None)


def figures(text: WrittenText) -> torch.Tensor:
    return torch.tensor([each.log_probability for each in text.likelihoods or ()])


@pytest.mark.parametrize(
    "degrees, world_size, topology",
    [
        # What the training had, where so many are there; what is given wins.
        (Degrees(), 4, Topology(tensor=2, pipeline=2)),
        (Degrees(), 8, Topology(tensor=2, pipeline=2, data=2)),
        (Degrees(), 1, Topology()),
        (Degrees(), 3, Topology(data=3)),
        (Degrees(tensor=1), 4, Topology(pipeline=2, data=2)),
        (Degrees(tensor=4), 4, Topology(tensor=4)),
        (Degrees(pipeline=1, tensor=1), 2, Topology(data=2)),
    ],
)
def test_layout_is_that_of_the_training_where_it_fits(
    tmp_path: Path, degrees: Degrees, world_size: int, topology: Topology
) -> None:
    config = small_config(tmp_path, tmp_path, parallel={"tensor": 2, "pipeline": 2})
    assert topology_for(config, degrees, world_size) == topology


@pytest.mark.parametrize(
    "degrees, world_size, line",
    [
        (
            Degrees(tensor=2, pipeline=2),
            6,
            "layout=4: tensor 2 x pipeline 2 must divide the 6 processes; start as many processes "
            "as the model is to be cut into, or a multiple",
        ),
        (
            Degrees(pipeline=8),
            8,
            "pipeline=8: is more than the 4 blocks of the model; choose fewer stages",
        ),
        (
            Degrees(expert=3),
            4,
            "parallel.expert=3: must divide the 4 ranks of context x data; set it to 1, 2 or 4",
        ),
    ],
)
def test_layouts_that_cannot_be_are_one_line(
    tmp_path: Path, degrees: Degrees, world_size: int, line: str
) -> None:
    with pytest.raises(RootsError) as error:
        topology_for(small_config(tmp_path, tmp_path), degrees, world_size)
    assert error.value.lines == (line,)


def test_greedy_texts_need_no_chance(
    alone: dict[str, tuple[Path, list[WrittenText]]],
) -> None:
    """A prompt given twice is drawn twice, and chosen greedily once."""
    folder, _ = alone["gpt"]
    network = load_network(folder, Device("cpu", 0)).network
    greedy = GenerationOptions(max_new_tokens=7, sampling=SamplingOptions(greedy=True))
    first, second = sample_texts(network, ByteTokenizer(), ["a", "a"], greedy)
    assert first == second
    drawn = GenerationOptions(max_new_tokens=7)
    first, second = sample_texts(network, ByteTokenizer(), ["a", "a"], drawn)
    assert first.text != second.text
