"""The comparison of outputs tells what differs, and the reader of pages what is to be run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.compare import matches
from tests.docs.pages import read_page


@pytest.mark.parametrize(
    "expected, printed",
    [
        ([], []),
        (["a", "..."], ["a"]),
        (["...", "z"], ["a", "b", "z"]),
        (["loss 4.10  step 20"], ["loss 4.12 step 20"]),
        (["3,130.5 tokens"], ["3,131.0 tokens"]),
    ],
)
def test_equal_outputs(expected: list[str], printed: list[str]) -> None:
    assert matches(expected, printed)


@pytest.mark.parametrize(
    "expected, printed",
    [
        ([], ["a"]),
        (["a"], []),
        (["a", "..."], ["b"]),
        (["loss 4.1"], ["loss 4.5"]),
        (["step 20"], ["step 21"]),
        (["step_00000020"], ["step_00000021"]),
        (["loss 4.1"], ["loss nan"]),
    ],
)
def test_different_outputs(expected: list[str], printed: list[str]) -> None:
    assert not matches(expected, printed)


def test_varying_numbers_are_any_numbers() -> None:
    assert matches(["took 3.1 s"], ["took 9 s"], varies=True)
    assert not matches(["took 3.1 s"], ["took a while"], varies=True)


def test_a_page_is_taken_apart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "---\ncontinues: laptop.md\n---\n# Page\n\n"
        '```yaml title="my.yaml"\nrun: {name: x}\n```\n\n'
        "<!-- varies -->\n<!-- exits 2 -->\n"
        "```console\n$ roots train \\\n    my.yaml\none\n$ ls\n```\n\n"
        "<!-- not run: needs a cluster -->\n    ```bash\n    sbatch x\n    ```\n",
        encoding="utf-8",
    )
    read = read_page(page)
    assert read.continues == "laptop.md"
    file, session, cluster = read.blocks
    assert (file.title, file.lines) == ("my.yaml", ("run: {name: x}",))
    assert (session.varies, session.exit_code, session.not_run) == (True, 2, None)
    assert [each.text for each in session.commands] == ["roots train \\\n    my.yaml", "ls"]
    assert [each.output for each in session.commands] == [["one"], []]
    assert cluster.not_run == "needs a cluster"
    assert [each.text for each in cluster.commands] == ["sbatch x"]
