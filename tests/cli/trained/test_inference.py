"""`roots generate` and `roots evaluate` on a checkpoint saved under tensor 2 x pipeline 2."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roots.checkpoint.manifest import CONFIG_NAME, Layout, Manifest, describe_files, write_manifest
from roots.cli.main import main
from roots.config import RunConfig, dump_config, parse_config
from roots.data.batch import DocumentRules
from roots.data.indexed import IndexedDataset, IndexedWriter
from roots.evaluation.perplexity import evaluate_perplexity
from roots.generation.generate import generate
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.models.build import model_layers
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.shard import shard_of
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.decoders import fake_mesh, small_decoder
from tests.helpers.stored_weights import save_weights

SEED = 4
STAGES = (slice(0, 2), slice(2, None))


def run_config(tokenizer: str | None = "bytes", init_std: float = 0.3) -> RunConfig:
    model = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 257,
        "sequence_length": 24,
        "init_std": init_std,
    }
    training = {"precision": "fp32", "micro_batch_size": 2, "seed": SEED}
    return parse_config({"model": model, "training": training, "data": {"tokenizer": tokenizer}})


def save_checkpoint(run: Path, tokenizer: str | None = "bytes", init_std: float = 0.3) -> Path:
    """What training leaves of a model that was cut over 2 tensor ranks and 2 stages."""
    config = run_config(tokenizer, init_std)
    folder = run / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    (folder / CONFIG_NAME).write_text(dump_config(config), encoding="utf-8")
    names = [CONFIG_NAME]
    for tensor_rank in range(2):
        mesh = fake_mesh(2, tensor_rank)
        layers = model_layers(config.model, mesh, BuildOptions())
        for stage, part in enumerate(STAGES):
            modules = [layer.build() for layer in layers[part]]
            for module in modules:
                initialise(module, SEED, config.model)
            tensors = [(shard_of(p), p) for module in modules for p in module.parameters()]
            names.append(
                save_weights(folder, tensors, pipeline_rank=stage, tensor_rank=tensor_rank)
            )
    layout = Layout(tensor=2, pipeline=2, data=1, zero_stage=1, precision="fp32")
    write_manifest(folder, Manifest(7, 14, layout, describe_files(folder, names)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ByteTokenizer()
    path = tmp_path_factory.mktemp("data") / "valid"
    with IndexedWriter(path, words.vocab_size) as writer:
        for text in ("It was a bright cold day in April.", "Call me Ishmael."):
            writer.add(np.array([*words.encode(text), words.end_of_document]))
        writer.finish(tokenizer=words.fingerprint, end_of_document=words.end_of_document)
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return captured.out


def call_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    return json.loads(call(capsys, *arguments, "--json"))


def expected_texts(sampling: SamplingOptions, seed: int = 1234) -> list[str]:
    decoder = small_decoder(run_config().model, seed=SEED)
    options = GenerationOptions(max_new_tokens=6, sampling=sampling, seed=seed)
    return generate(decoder, ByteTokenizer(), ["once", "a"], options)


def test_generate_prints_prompts_with_their_continuations(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ("--prompt", "once", "--prompt", "a")
    texts = expected_texts(SamplingOptions(greedy=True))
    out = call(capsys, "generate", run, *prompts, "--max-new-tokens", 6, "--greedy")
    assert out == f"--- 1 of 2\nonce{texts[0]}\n--- 2 of 2\na{texts[1]}\n"
    report = call_json(capsys, "generate", run, *prompts, "--max-new-tokens", 6, "--greedy")
    assert report["checkpoint"] == str(run / "checkpoints" / "step_00000007")
    assert [c["text"] for c in report["continuations"]] == texts
    assert [c["prompt"] for c in report["continuations"]] == ["once", "a"]


def test_generate_passes_every_option_of_sampling(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--temperature", 3.0, "--top-k", 40, "--top-p", 0.9, "--seed", 5)
    prompts = ("--prompt", "once", "--prompt", "a")
    step = run / "checkpoints" / "step_00000007"
    report = call_json(capsys, "generate", step, *prompts, "--max-new-tokens", 6, *options)
    expected = expected_texts(SamplingOptions(temperature=3.0, top_k=40, top_p=0.9), seed=5)
    assert [c["text"] for c in report["continuations"]] == expected


def test_one_beam_of_a_decoder_writes_what_greedy_choice_does(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Behind the second prompt 24 positions leave room for 3 tokens.
    prompts = ("--prompt", "once", "--prompt", "a" * 22, "--max-new-tokens", 6)
    greedy = call_json(capsys, "generate", run, *prompts, "--greedy")["continuations"]
    beams = call_json(capsys, "generate", run, *prompts, "--beams", 1)["continuations"]
    assert [each["text"] for each in beams] == [each["text"] for each in greedy]
    assert [each["stopped_by"] for each in beams] == [each["stopped_by"] for each in greedy]
    assert all(each["score"] < 0 for each in beams)


def test_decoder_is_not_evaluated_on_pairs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "a.tsv"
    pairs.write_text("source\ttarget\na\tb\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--pairs", str(pairs)])
    assert capsys.readouterr().err == (
        f"roots: error: model.architecture of {run}/checkpoints/step_00000007='decoder': "
        "must be encoder_decoder, which alone writes a target for every source; "
        "give another checkpoint\n"
    )


def test_evaluate_reports_the_perplexity_of_the_dataset(
    run: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = call_json(capsys, "evaluate", run, "--data", prefix)
    expected = evaluate_perplexity(
        small_decoder(run_config().model, seed=SEED),
        IndexedDataset(prefix),
        rules=DocumentRules(),
        batch_size=2,
        tokenizer=ByteTokenizer(),
    )
    assert report["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert report["perplexity"] == pytest.approx(math.exp(expected.loss), rel=1e-6)
    assert report["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)
    assert report["tokens"] == expected.tokens
    text = call(capsys, "evaluate", run, "--data", prefix, "--batch-size", 5)
    assert f"loss           {expected.loss:.4f} nats per token" in text.splitlines()


def test_evaluate_without_the_tokenizer_leaves_out_bits_per_byte_alone(
    run: Path, prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path, tokenizer=None)
    report = call_json(capsys, "evaluate", checkpoint, "--data", prefix)
    complete = call_json(capsys, "evaluate", run, "--data", prefix)
    assert report["bits_per_byte"] is None
    assert report["loss"] == complete["loss"]
    reason = f"data.tokenizer: is not set in the config of {checkpoint}; give --tokenizer DIR"
    text = call(capsys, "evaluate", checkpoint, "--data", prefix)
    assert text.splitlines()[-1] == f"bits per byte  not computed ({reason})"
    given = call_json(capsys, "evaluate", checkpoint, "--data", prefix, "--tokenizer", "bytes")
    assert given["bits_per_byte"] == complete["bits_per_byte"]


def test_a_figure_that_json_cannot_hold_is_null(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path, init_std=1e4)
    out = call(capsys, "evaluate", checkpoint, "--data", prefix, "--json")
    report = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["loss"] > 1000.0
    assert report["perplexity"] is None


def test_mistakes_are_one_line_and_exit_code_2(
    run: Path, prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("generate", tmp_path / "none", "--prompt", "a"): (
            f"roots: error: checkpoint='{tmp_path / 'none'}': does not exist; "
            "give a folder like RUN/checkpoints/step_00000100, or the folder of a run\n"
        ),
        ("generate", run, "--prompt", "a" * 30): (
            "roots: error: prompt 1 tokens=30: is more than the 24 positions that the model has "
            "learned; shorten the prompt\n"
        ),
        ("generate", run, "--prompt", "a", "--temperature", "0"): (
            "roots: error: temperature=0.0: must be above 0, and finite; "
            "choose greedily for the limit at 0\n"
        ),
        ("evaluate", run): (
            "roots: error: --data, --pairs, --tasks: exactly one of them says what to evaluate on; "
            "give one of the three\n"
        ),
        ("evaluate", run, "--data", tmp_path / "none"): (
            f"roots: error: {tmp_path / 'none'}.idx: no such file; "
            "check data.train and data.valid, or run `roots preprocess`\n"
        ),
    }
    for arguments, line in cases.items():
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert stop.value.code == 2
        assert capsys.readouterr().err == line


@pytest.mark.parametrize("command", ["generate", "evaluate", "export"])
def test_damaged_weights_are_the_same_line_in_every_command(
    command: str, tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_checkpoint(tmp_path)
    path = folder / "weights" / "pipeline_001_tensor_000_expert_000.safetensors"
    whole = path.read_bytes()
    options = {
        "generate": ("--prompt", "a"),
        "evaluate": ("--data", prefix),
        "export": ("--to", tmp_path / "exported"),
    }[command]
    flipped = bytearray(whole)
    flipped[-2] ^= 0x40
    rules = {
        bytes(flipped): "does not have the checksum that the manifest records",
        whole[:-9]: f"has {len(whole) - 9} bytes where the manifest says {len(whole)}",
        None: "is missing",
    }
    for content, expected in rules.items():
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(SystemExit) as stop:
            main([command, str(tmp_path), *map(str, options)])
        assert stop.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"roots: error: checkpoint file='{path}': {expected}; use another checkpoint of the run"
        )
    (folder / "manifest.json").unlink()
    for given, rule in (
        (folder, "has no manifest.json"),
        (tmp_path, f"holds no finished checkpoint: {folder.name} has no manifest.json"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([command, str(given), *map(str, options)])
        assert stop.value.code == 2
        assert f"checkpoint='{given}': {rule}" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_generate_and_evaluate_at_a_url(
    run: Path,
    prefix: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for command in (
        ["generate", "--prompt", "ab", "--greedy", "--max-new-tokens", "4"],
        ["evaluate", "--data", str(prefix)],
    ):
        here, there = (
            call_json(capsys, command[0], given, *command[1:])
            for given in (str(run), f"file://{run}")
        )
        folder = Path(there.pop("checkpoint"))
        assert folder.is_relative_to(tmp_path / "roots" / "checkpoints")
        del here["checkpoint"]
        assert there == here
