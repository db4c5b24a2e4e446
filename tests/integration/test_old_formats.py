"""Checkpoints of every version of the format, made by the ROOTS of its time, are of use today.

tests/golden/checkpoint_v1 was written at commit fb32571, by tests/integration/old_formats.py; those
of v2 and v3 are of the first ROOTS that had them. A run goes on with other settings, and in one of
two with another implementation of Adam; the reference reads the fp32 weights out of the files as
torch and safetensors do, and steps by torch's AdamW with the gradients that were known.

checkpoint_v1_experts was written at commit ab2600b, the last of that version, with the losses that
this ROOTS found where nothing interrupted the run.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors import safe_open
from torch import Tensor

from roots.checkpoint import manifest
from roots.checkpoint.weights import WeightStore
from roots.cli.main import main
from roots.config import RunConfig
from roots.errors import RootsError
from roots.parallel.mesh import Mesh
from roots.parallel.shard import replicated, shard_of
from roots.training.callbacks.metrics import StepRecord
from roots.training.engine.state_files import read_state
from roots.training.engine.step import Engine
from roots.training.resuming import Candidates
from tests.helpers.distributed import run_distributed
from tests.helpers.sources import ROOT
from tests.integration.old_formats import (
    CLIPPING,
    DONE,
    OVERFLOWS,
    RATE,
    SETTINGS,
    STEPS,
    Trained,
    config_of,
    experts_config,
    gradient_of,
    nothing,
    train,
    write_text,
)

VERSIONS = (1, 2, 3)
FOLDERS = {each: ROOT / f"tests/golden/checkpoint_v{each}/step_00000003" for each in VERSIONS}
EXPERTS = ROOT / "tests/golden/checkpoint_v1_experts"
IMPLEMENTATIONS = ("torch", "deepspeed")
# Old versions do not say what was in their data, so these have to lie where they lay.
DATA = {"train": ["runs/text"]}
OTHERS = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.3}
OTHER_CLIPPING = 0.5
# Weights are below 2 and a step moves one by about RATE: roundings of fp32, of weight and quotient.
TOLERANCE = STEPS * 2 * (2.0**-23 + RATE * 2.0**-20)
# The overflow of step 4 is the second, which the scale does not bear; two clean steps double it.
SCALES = [256.0, 128.0, 128.0, 256.0]


def masters_in(version: int) -> dict[str, Tensor]:
    """The fp32 weights by name, from the files themselves."""
    if version > 1:
        return _joined(FOLDERS[version] / "optimizer" / "rank_00000.safetensors")
    path = FOLDERS[version] / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    state = read_state(str(path))["optimizer_state_dict"]
    flats, places = state["single_partition_of_fp32_groups"], state["param_slice_mappings"]
    return {
        name: flat[place.start : place.start + place.numel]
        for flat, group in zip(flats, places, strict=True)
        for name, place in group.items()
    }


def _joined(path: Path) -> dict[str, Tensor]:
    """The fp32 weights of a file whose entries are boxes of them."""
    wholes: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for entry, place in json.loads(file.metadata()["boxes"]).items():
            kind, _, name = place["tensor"].partition("/")
            if kind == "master":
                whole = wholes.setdefault(name, torch.full(place["shape"], torch.nan))
                held = file.get_tensor(entry)
                sides = zip(place["offsets"], held.shape, strict=True)
                whole[tuple(slice(start, start + size) for start, size in sides)] = held
    return wholes


def shapes_in(version: int) -> dict[str, tuple[int, ...]]:
    return {name: each.shape for name, each in WeightStore(FOLDERS[version]).tensors.items()}


def masters(engine: Engine) -> dict[str, Tensor]:
    """The fp32 weights of an engine by name."""
    named = engine.module.named_parameters()
    return {shard_of(each, name).name: safe_get_full_fp32_param(each) for name, each in named}


def going_on(folder: Path, version: int, implementation: str, **more: Any) -> RunConfig:
    """A run of its own that goes on from the checkpoint."""
    return config_of(
        folder,
        run={"name": f"{version}-{implementation}"},
        training={"steps": STEPS, "gradient_clipping": OTHER_CLIPPING},
        optimizer={**OTHERS, "implementation": implementation},
        checkpoint={"resume": str(FOLDERS[version])},
        data=DATA,
        **more,
    )


def data_in(folder: Path) -> Path:
    """`folder`, with what DATA names from there."""
    (folder / "runs").mkdir()
    write_text(folder / "runs")
    return folder


def train_in(rank: int, world_size: int, folder: Path, *arguments: Any) -> list[Trained]:
    """`train`, as if started in `folder`."""
    with contextlib.chdir(folder):
        return train(rank, world_size, *arguments)


def reference(version: int) -> tuple[dict[str, Tensor], list[float]]:
    """fp32 weights at the end, in float64, and the norms of gradients from DONE on."""
    shapes = shapes_in(version)
    parameters = {name: torch.nn.Parameter(torch.zeros(s).double()) for name, s in shapes.items()}
    groups = [
        {"params": [each for each in parameters.values() if (each.dim() > 1) == matrices]}
        for matrices in (True, False)
    ]
    adam = torch.optim.AdamW(groups, lr=RATE, foreach=False)
    norms = []
    for step in (each for each in range(1, STEPS + 1) if each not in OVERFLOWS):
        before = step <= DONE
        settings = SETTINGS if before else OTHERS
        for group, decay in zip(adam.param_groups, (settings["weight_decay"], 0.0), strict=True):
            group.update(weight_decay=decay, eps=settings["epsilon"])
            group["betas"] = (settings["beta1"], settings["beta2"])
        if not (before or norms):
            for name, each in masters_in(version).items():
                parameters[name].data = each.double().view(shapes[name])
        for name, parameter in parameters.items():
            parameter.grad = gradient_of(name, shapes[name], step).double()
        largest = CLIPPING if before else OTHER_CLIPPING
        norm = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), largest))
        if not before:
            norms.append(norm)
        adam.step()
    return {name: each.detach() for name, each in parameters.items()}, norms


Gone = dict[tuple[int, str], tuple[list[StepRecord], dict[str, Tensor]]]


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory: pytest.TempPathFactory) -> Gone:
    """What the runs from every version and implementation told, and their weights at the end."""
    folder = data_in(tmp_path_factory.mktemp("old"))
    cases = [(version, each) for version in VERSIONS for each in IMPLEMENTATIONS]
    configs = [going_on(folder, *case) for case in cases]
    return dict(zip(cases, run_distributed(train_in, 1, folder, configs, masters)[0], strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("version", VERSIONS)
def test_run_goes_on_from_every_version(version: int, implementation: str, gone_on: Gone) -> None:
    """With weights, moments, count and scale of before, and the settings of now."""
    records, found = gone_on[version, implementation]
    expected, norms = reference(version)
    assert [each.step for each in records] == list(range(DONE + 1, STEPS + 1))
    assert [each.consumed_samples for each in records] == [8, 10, 12, 14]
    assert [each.skipped for each in records] == [each.step in OVERFLOWS for each in records]
    assert [each.loss_scale for each in records] == SCALES
    clean = [each.grad_norm for each in records if not each.skipped]
    assert clean == pytest.approx(norms, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        error = float((found[name].double().view(weight.shape) - weight).abs().max())
        assert error < TOLERANCE, (name, error)


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_of_every_version_are_the_rounded_fp32_ones(version: int) -> None:
    assert manifest.read_manifest(FOLDERS[version]).version == version
    store = WeightStore(FOLDERS[version])
    held = masters_in(version)
    assert held.keys() == store.tensors.keys()
    for name, stored in store.tensors.items():
        weight = store.read(replicated(name, stored.shape))
        assert torch.equal(weight, held[name].view(weight.shape).half())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_generates_evaluates_and_exports(
    version: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str | Path) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert end.value.code == 0
        return capsys.readouterr().out

    folder = FOLDERS[version]
    out = call("generate", folder, "--prompt", "the", "--greedy", "--max-new-tokens", "4", "--json")
    assert len(json.loads(out)["continuations"]) == 1
    data = write_text(tmp_path) / "text"
    report = json.loads(call("evaluate", folder, "--data", data, "--json"))
    assert report["bits_per_byte"] > 0
    call("export", folder, "--to", tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    call("checkpoint", "verify", folder)


def test_first_version_resumes_on_its_own_layout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's files are of one layout; later versions are of none."""
    monkeypatch.chdir(data_in(tmp_path))
    config = going_on(tmp_path, 1, "torch", parallel={"zero_stage": 2})
    layout = manifest.Layout(1, 1, 1, 2, "fp16")
    with pytest.raises(RootsError) as caught:
        Candidates(config, Mesh.single(), tmp_path, layout).find()
    assert caught.value.lines == (
        f"checkpoint={str(FOLDERS[1])!r}: was saved on tensor 1 x pipeline 1 x data 1, ZeRO 1, "
        "fp16, and its optimizer state resumes on that layout only; start the run that way or set "
        "another run.name; this one is tensor 1 x pipeline 1 x data 1, ZeRO 2, fp16",
    )
    for version in VERSIONS[1:]:
        config = going_on(tmp_path, version, "torch", parallel={"zero_stage": 2})
        assert Candidates(config, Mesh.single(), tmp_path, layout).find() == FOLDERS[version]


def test_experts_of_the_first_version_go_on_where_they_were(tmp_path: Path) -> None:
    """Each of two ranks with its own experts, their fp32 weights and moments."""
    folder = EXPERTS / FOLDERS[1].name
    assert manifest.read_manifest(folder).version == 1
    steps, resume = {"steps": STEPS}, {"resume": str(folder)}
    config = experts_config(data_in(tmp_path), training=steps, checkpoint=resume, data=DATA)
    ranks = run_distributed(train_in, 2, tmp_path, [config], nothing, False)
    told = [rank[0][0] for rank in ranks]
    expected = json.loads((EXPERTS / "losses.json").read_text(encoding="utf-8"))[DONE:]
    for records in told:
        assert [each.step for each in records] == list(range(DONE + 1, STEPS + 1))
        assert [each.loss for each in records] == pytest.approx(expected, rel=1e-5)


def test_experts_of_the_first_version_resume_on_their_own_ranks_alone(tmp_path: Path) -> None:
    folder = EXPERTS / FOLDERS[1].name
    resume = {"resume": str(folder)}
    config = experts_config(tmp_path, parallel={"expert": 1}, checkpoint=resume)
    candidates = Candidates(config, Mesh.single(), tmp_path, manifest.Layout(1, 1, 2, 1, "fp32"))
    with pytest.raises(RootsError, match="its optimizer state resumes on that layout only"):
        candidates.find()
