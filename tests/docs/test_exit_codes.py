"""The table of exit codes, which is read without the site too, is that of the code."""

from __future__ import annotations

from docs.generate.tables import code, table
from roots.errors import ExitCode
from tests.docs.pages import PAGES


def test_exit_codes_are_those_of_the_code() -> None:
    page = (PAGES / "exit-codes.md").read_text(encoding="utf-8").splitlines()
    rows = [(code(int(each)), code(each.name), each.meaning) for each in ExitCode]
    assert [line for line in page if line.startswith("| `")] == table((), rows)[2:]
