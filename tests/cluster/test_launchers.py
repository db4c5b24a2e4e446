"""The page about clusters shows what was measured of every launcher."""

from __future__ import annotations

import json

from roots.errors import ExitCode
from tests.cluster import launchers
from tests.cluster.launchers import RECORD, table
from tests.helpers.sources import ROOT

ROWS = json.loads(RECORD.read_text(encoding="utf-8"))
# What `sbatch --wait` ends with where Slurm itself has ended the job before its script could.
OF_A_LOST_NODE = 255


def test_every_launcher_was_measured_in_every_event() -> None:
    assert [(row["launcher"], row["event"]) for row in ROWS] == launchers.ROWS


def test_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "pages" / "cluster.md").read_text(encoding="utf-8")
    assert "\n".join(table(ROWS)) in page


def test_told_ranks_have_saved_and_all_codes_are_those_of_roots() -> None:
    told = [row for row in ROWS if row["event"].startswith("SIG")]
    # Of all launchers only srun kills at once.
    (killed,) = (row for row in told if row["code"] == ExitCode.LOST)
    assert (killed["launcher"], killed["event"]) == ("`slurm.sbatch`", "SIGTERM to the launcher")
    told.remove(killed)
    assert {(*row["ranks"], row["code"]) for row in told} == {(3, 3, int(ExitCode.INTERRUPTED))}
    assert all(row["saved_step"] == row["last_step"] for row in told)
    codes = {
        "one rank is killed": ExitCode.LOST,
        "one rank exits 2": ExitCode.BAD_INPUT,
        "a host is cut off": ExitCode.LOST,
    }
    for row in ROWS:
        if row["code"] == OF_A_LOST_NODE:
            assert (row["launcher"], row["event"]) == ("`slurm.sbatch`", "a host is cut off")
            assert any("DUE TO NODE FAILURE" in line for line in row["said"]), row
            assert row["ranks"] == [ExitCode.LOST, ExitCode.LOST], row
        else:
            assert row["code"] == codes.get(row["event"], row["code"]), row
        assert row["seconds_all"] < 120, row


def test_line_names_the_host_of_who_is_lost() -> None:
    for row in ROWS:
        if row["event"] in ("one rank is killed", "a host is cut off"):
            host = "node1" if row["launcher"] == "`local.sh`" else "node2"
            assert any(f"rank 1 on host {host}: " in line for line in row["said"]), row
