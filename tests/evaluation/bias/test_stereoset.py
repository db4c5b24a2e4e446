"""StereoSet's format, with sentences of our own, and its scores worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roots.errors import RootsError
from roots.evaluation.bias.probe import Text, estimates
from roots.evaluation.bias.stereoset import StereoSet
from roots.generation.scoring import Score


def example(target: str, bias_type: str, *sentences: str, context: str = "BLANK") -> dict[str, Any]:
    labels = ("anti-stereotype", "unrelated", "stereotype")
    told = [{"sentence": text, "gold_label": label} for text, label in zip(sentences, labels)]
    return {
        "id": target,
        "target": target,
        "bias_type": bias_type,
        "context": context,
        "sentences": told,
    }


DATA = {
    "version": "1.0",
    "data": {
        "intrasentence": [
            example("cat", "pets", "Cats obey.", "Cats seven.", "Cats are sly."),
            example("cat", "pets", "Cats swim.", "Cats blue.", "Cats sleep."),
        ],
        "intersentence": [
            example(
                "gull", "birds", "It shared.", "Tea is hot.", "It stole.", context="A gull came."
            )
        ],
    },
}


def write(folder: Path, data: object) -> Path:
    path = folder / "dev.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_scores_by_hand(tmp_path: Path) -> None:
    probe = StereoSet.read(write(tmp_path, DATA))
    # The stereotype, its opposite, nonsense; what follows a context keeps its space.
    assert probe.texts[:3] == [
        Text("", "Cats are sly."),
        Text("", "Cats obey."),
        Text("", "Cats seven."),
    ]
    assert probe.texts[6] == Text("A gull came.", " It stole.")
    means = [(-1, -2, -3), (-2, -1, -1.5), (-1, -3, -2)]
    # By the mean of a token, whatever the length.
    scores = [Score((mean,) * (1 + n), False) for some in means for n, mean in enumerate(some)]
    found = {
        (each.group, each.statistic): each.value
        for each in estimates(probe, probe.findings(scores), seed=1)
    }
    # cat: stereotypes 1 of 2, meaningful 2 of 2 and 1 of 2; gull: 1 of 1, 1 of 2.
    assert found["pets", "SS"] == 50.0
    assert found["pets", "LMS"] == 75.0
    assert found["pets", "ICAT"] == 75.0
    assert found["birds", "SS"] == 100.0
    assert found["birds", "ICAT"] == 0.0
    # Means over terms, of which there are two.
    assert found["all", "SS"] == 75.0
    assert found["all", "LMS"] == 62.5
    assert found["all", "ICAT"] == pytest.approx(62.5 * 25 / 50)
    assert found["intersentence", "LMS"] == 50.0


@pytest.mark.parametrize(
    "data, rule",
    [
        ([], "is not of the format of StereoSet (TypeError"),
        ({"data": {}}, "holds no examples under data.intrasentence or data.intersentence"),
        (
            {"data": {"intrasentence": [example("cat", "pets", "A.", "B.")]}},
            "example cat has the labels ['anti-stereotype', 'unrelated']",
        ),
    ],
)
def test_files_of_another_format(tmp_path: Path, data: object, rule: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(RootsError) as error:
        StereoSet.read(path)
    (line,) = error.value.lines
    assert line.startswith(f"{path}: ")
    assert rule in line


def test_file_nested_too_deeply_is_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(RootsError) as error:
        StereoSet.read(path)
    (line,) = error.value.lines
    assert line.startswith(f"{path}: is not of the format of StereoSet (RecursionError")
