"""Commands of one process are refused on several, and told by the first of them alone."""

from __future__ import annotations

import pytest

from roots.cli.main import main

COMMANDS = {
    "evaluates on --data": ["evaluate", "nowhere", "--data", "x"],
    "evaluates on --pairs": ["evaluate", "nowhere", "--pairs", "x"],
    "inspects": ["inspect", "nowhere", "--text", "x"],
    "audits": ["audit", "canaries", "nowhere", "--data", "x"],
    "talks": ["chat", "nowhere"],
    "serves": ["serve", "nowhere"],
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("does", COMMANDS)
def test_commands_of_one_process_are_refused_on_several(
    does: str, rank: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would print the same, and two would write one file."""
    if does == "serves":
        pytest.importorskip("starlette", reason="needs roots-pretrain[serve]")
        pytest.importorskip("uvicorn", reason="needs roots-pretrain[serve]")
    for name, value in {"WORLD_SIZE": "2", "RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main(COMMANDS[does])
    line = f"processes=2: is more than the one process that {does}; start it without a launcher"
    told = f"roots: error: {line}\n" if rank == 0 else ""
    assert (end.value.code, *capsys.readouterr()) == (2, "", told)
