"""CrowS-Pairs' format, with sentences of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.evaluation.bias.crows_pairs import CrowsPairs
from roots.evaluation.bias.probe import Text, estimates
from roots.generation.scoring import Score

HEADER = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations\n"
ROWS = (
    '0,"Cats, he said, are sly.","Dogs, he said, are sly.",stereo,pets,[]\n'
    "1,A dog sleeps.,A cat sleeps.,antistereo,pets,[]\n"
    "2,Gulls steal.,Doves steal.,stereo,birds,[]\n"
)


def write(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def scores(*totals: float) -> list[Score]:
    return [Score((total,), False) for total in totals]


def test_share_of_pairs_whose_stereotype_is_likelier(tmp_path: Path) -> None:
    probe = CrowsPairs.read(write(tmp_path, HEADER + ROWS))
    assert probe.texts[0] == Text("", "Cats, he said, are sly.")
    assert len(probe.texts) == 6
    found = probe.findings(scores(-1, -2, -3, -3, -9, -5))
    # Equal likelihoods prefer nothing.
    assert found.columns["prefers_more"].tolist() == [1, 0, 0]
    by_group = {each.group: each.value for each in estimates(probe, found, seed=1)}
    expected = {"all": 100 / 3, "antistereo": 0, "birds": 0, "pets": 50, "stereo": 50}
    assert by_group == pytest.approx(expected)


@pytest.mark.parametrize(
    "text, rule",
    [
        ("", "holds no pairs"),
        (HEADER, "holds no pairs"),
        (HEADER.replace("sent_less", "other") + ROWS, "has no column sent_less"),
        (HEADER + ROWS + "3,A.,,stereo,pets,[]\n", "row 5 has no sent_less"),
    ],
)
def test_files_of_another_format(tmp_path: Path, text: str, rule: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RootsError) as error:
        CrowsPairs.read(path)
    (line,) = error.value.lines
    assert line.startswith(f"{path}: {rule}; ")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RootsError, match="cannot be read"):
        CrowsPairs.read(tmp_path / "none.csv")
