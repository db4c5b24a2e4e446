"""The table of docs/pages/slurm.md is the one that was recorded."""

from __future__ import annotations

import json

from tests.cluster.slurm_events import EVENTS, RESULTS, table
from tests.helpers.sources import ROOT


def test_table_of_the_page_is_the_recorded_one() -> None:
    recorded = json.loads(RESULTS.read_text("utf-8"))
    page = (ROOT / "docs" / "pages" / "slurm.md").read_text("utf-8")
    assert "\n".join(table(recorded["events"])) in page
    assert [each["event"] for each in recorded["events"]] == [event.name for event in EVENTS]
    # What the page says of the cluster that this was recorded on.
    settings = recorded["settings"]
    assert "22.05" in recorded["slurm"]
    assert "Slurm 22.05" in page
    for name in ("SlurmdTimeout", "cred_expire", "KillWait"):
        assert f"`{name}` {settings[name]} s" in page
