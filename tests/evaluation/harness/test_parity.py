"""Scores of native checkpoints are those of `lm_eval --model hf` on their exports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from roots.checkpoint.manifest import CONFIG_NAME, Layout, Manifest, describe_files, write_manifest
from roots.config import dump_config, parse_config
from roots.device import Device
from roots.evaluation.harness.evaluate import Asked, TaskRequest, evaluate_tasks, load_tasks
from roots.evaluation.harness.text_model import text_model_of
from roots.exchange.hf.exporting import export_hf
from roots.generation.load import load_model, tokenizer_of
from roots.models.build import build_model
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.parallel.shard import shard_of
from tests.helpers.sources import ROOT
from tests.helpers.stored_weights import save_weights
from tests.helpers.words import EOS, FILES, edit_json, write_words

pytest.importorskip("lm_eval", reason="compares with lm_eval, which is not installed")
pytest.importorskip("transformers", reason="compares with transformers, which is not installed")

TASKS = ROOT / "configs" / "evaluation"
TEXTS, QUESTIONS = TASKS / "examples" / "texts.jsonl", TASKS / "examples" / "questions.jsonl"
ANSWERS, PAIRS = TASKS / "examples" / "answers.jsonl", TASKS / "examples" / "pairs.jsonl"
FAST = {
    name: {**tree, "tokenizer_class": "PreTrainedTokenizerFast"} for name, tree in FILES.items()
}
DECODER = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "sequence_length": 200}
PLAIN = {**DECODER, "norm": "rms_norm", "bias": False}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {**DECODER, "activation": "gelu_tanh"},
    "llama": {
        **PLAIN,
        "num_kv_heads": 2,
        "position": "rotary",
        "activation": "swiglu",
        "tied_embeddings": False,
    },
    "t5": {
        **PLAIN,
        "architecture": "encoder_decoder",
        "source_length": 200,
        "position": "relative",
        "activation": "relu",
        "attention_scale": 1.0,
        "head_scale": 32**-0.5,
        "norm_epsilon": 1e-6,
    },
}


def request(*names: str, few_shot: int = 1) -> TaskRequest:
    files = {
        "corpus_perplexity": TEXTS,
        "cloze": TEXTS,
        "multiple_choice": QUESTIONS,
        "question_answering": ANSWERS,
        "translation": PAIRS,
    }
    data = {name: {"": files[name]} for name in names}
    return TaskRequest(names=names, folders=[TASKS], data=data, few_shot=few_shot, samples=True)


def save(folder: Path, model: Mapping[str, Any], words: Path) -> Path:
    """A checkpoint of random weights far from uniform."""
    tree = {"model": {"vocab_size": 280, "init_std": 0.2, **model}}
    tree |= {"training": {"precision": "fp32"}, "data": {"tokenizer": str(words)}}
    config = parse_config(tree)
    network = build_model(config.model, Mesh.single(), options=BuildOptions())
    initialise(network, 3, config.model)
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(dump_config(config), encoding="utf-8")
    tensors = [(shard_of(parameter), parameter) for parameter in network.parameters()]
    name = save_weights(folder, tensors, pipeline_rank=0, tensor_rank=0)
    layout = Layout(tensor=1, pipeline=1, data=1, zero_stage=1, precision="fp32")
    write_manifest(folder, Manifest(7, 14, layout, describe_files(folder, [CONFIG_NAME, name])))
    return folder


def both(
    folder: Path, shape: str, wanted: TaskRequest, front: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Samples of every task: of the native model, and of its export under lm_eval's own."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    words = write_words(folder / "words", front=front, files=FAST)
    if shape == "t5":
        # Its sources end, as a T5's do.
        end = {"id": "<eos>", "ids": [EOS], "tokens": ["<eos>"]}
        parts = [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<eos>", "type_id": 0}},
        ]
        template = {
            "type": "TemplateProcessing",
            "single": parts,
            "pair": parts,
            "special_tokens": {"<eos>": end},
        }
        edit_json(words / "tokenizer.json", post_processor=template)
    saved = save(folder / "saved", SHAPES[shape], words)
    model = load_model(saved, Device("cpu", 0))
    tokenizer = tokenizer_of(model, None)
    tasks = load_tasks(wanted)
    asked = Asked(text_model_of(model, tokenizer), tokenizer, "ours")
    ours = evaluate_tasks(asked, tasks, wanted)
    export_hf(saved, folder / "exported")
    hf = HFLM(pretrained=str(folder / "exported"), device="cpu", batch_size=3)
    again = load_tasks(wanted)
    for task in again.tasks.values():
        task.set_fewshot_seed(seed=1234)
    theirs = evaluate(hf, again.as_tree(), bootstrap_iters=0)
    return dict(ours.samples), theirs["samples"]


def check_scores(ours: dict[str, Any], theirs: dict[str, Any], *names: str) -> None:
    """Log-likelihoods within 1e-4, and every choice the same."""
    for name in names:
        assert len(ours[name]) == len(theirs[name]) >= 3
        for one, other in zip(ours[name], theirs[name], strict=True):
            assert one["arguments"] == other["arguments"]
            for (mine,), (its,) in zip(one["resps"], other["resps"], strict=True):
                assert mine[0] == pytest.approx(its[0], abs=1e-4)
                assert mine[1] == its[1]
            assert one.get("acc") == other.get("acc")
            assert one.get("acc_norm") == other.get("acc_norm")


@pytest.mark.parametrize("shape, front", [("gpt2", None), ("llama", "<bos>")])
def test_decoder_scores_as_its_export(tmp_path: Path, shape: str, front: str | None) -> None:
    names = ("multiple_choice", "cloze")
    wanted = request(*names, "corpus_perplexity", "question_answering")
    ours, theirs = both(tmp_path, shape, wanted, front)
    check_scores(ours, theirs, *names)
    for one, other in zip(ours["corpus_perplexity"], theirs["corpus_perplexity"], strict=True):
        ((mine,),), ((its,),) = one["resps"], other["resps"]
        assert mine == pytest.approx(its, abs=1e-4)
    written = [sample["resps"] for sample in ours["question_answering"]]
    assert written == [sample["resps"] for sample in theirs["question_answering"]]
    assert any(text for ((text,),) in written)


def test_encoder_decoder_scores_as_its_export(tmp_path: Path) -> None:
    wanted = request("multiple_choice", "translation", few_shot=0)
    ours, theirs = both(tmp_path, "t5", wanted, None)
    check_scores(ours, theirs, "multiple_choice")
    for one, other in zip(ours["translation"], theirs["translation"], strict=True):
        ((mine,),), ((its,),) = one["resps"], other["resps"]
        # Its texts may be longer than max_gen_toks by as many tokens as the sources are long.
        assert mine
        assert its.startswith(mine)
