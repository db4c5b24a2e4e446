"""The generated parts of docs/pages/versions.md, between marks: tables of recorded results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.contracts.contract import numbers, value_of
from tests.helpers.sources import ROOT

PAGE = ROOT / "docs" / "pages" / "versions.md"


def page_of(record: Mapping[str, Any], page: str) -> str:
    """`page` with every generated part made anew from `record`."""
    parts = {
        "pairs": pairs(record),
        "differences": differences(record),
        "contracts": contracts(record["contracts"]),
    }
    for name, text in parts.items():
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"{PAGE.name} has no marks for {name}"
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def faults(record: Mapping[str, Any], torch: str, deepspeed: str) -> Iterator[str]:
    """What does not hold under one pair: a contract, or a run of ROOTS; a line for each."""
    (pair,) = [
        each for each in record["pairs"] if (each["torch"], each["deepspeed"]) == (torch, deepspeed)
    ]
    if "seen" not in pair:
        yield str(pair["failed"])
        return
    for name in broken(record["contracts"], pair):
        seen = pair["seen"].get(name, "nothing")
        yield f"{name}: {seen} instead of {expected(record['contracts'][name], pair)}"
    for name, outcome in pair["roots"].items():
        if outcome != "holds":
            yield f"{name}: {outcome}"


def expected(words: Mapping[str, Any], pair: Mapping[str, Any]) -> Any:
    """What a contract holds the pair to."""
    return value_of(words["since"], pair[words["of"]])


def broken(words: Mapping[str, Any], pair: Mapping[str, Any]) -> list[str]:
    """The contracts that do not hold under a pair, or that were not seen there."""
    return [
        name
        for name, each in words.items()
        if name not in pair["seen"] or pair["seen"][name] != expected(each, pair)
    ]


def pairs(record: Mapping[str, Any]) -> str:
    """Torch by DeepSpeed: how many contracts hold, and how many runs of ROOTS pass."""
    cells = {(each["torch"], each["deepspeed"]): _cell(record, each) for each in record["pairs"]}
    torches = sorted({torch for torch, _ in cells}, key=numbers)
    rows = [["DeepSpeed", *(f"torch {torch}" for torch in torches)]]
    for deepspeed in sorted({version for _, version in cells}, key=numbers, reverse=True):
        rows.append([deepspeed, *(cells.get((torch, deepspeed), "") for torch in torches)])
    return _table(rows)


def _cell(record: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    if "seen" not in pair:
        return "does not run"
    words = record["contracts"]
    passed = sum(outcome == "holds" for outcome in pair["roots"].values())
    told = f"ROOTS {passed}/{len(pair['roots'])}"
    if any("must be" in outcome for outcome in pair["roots"].values()):
        told = "refused"
    held = len(words) - len(broken(words, pair))
    return f"{held}/{len(words)}, {told}"


def differences(record: Mapping[str, Any]) -> str:
    """Every behaviour that differs between versions, with the versions in which each was seen."""
    rows = [["behaviour", "what is done", "by"]]
    for name, words in record["contracts"].items():
        if len(words["since"]) == 1:
            continue
        seen: dict[str, set[str]] = {}
        for pair in record["pairs"]:
            if name in pair.get("seen", {}):
                value = json.dumps(pair["seen"][name]).replace("|", "\\|")
                seen.setdefault(value, set()).add(pair[words["of"]])
        for value, versions in seen.items():
            by = f"{words['of']} {', '.join(sorted(versions, key=numbers))}"
            rows.append([name.replace("_", " "), f"`{value}`", by])
    return _table(rows)


def contracts(words: Mapping[str, Mapping[str, Any]]) -> str:
    """Every contract in words, with the files of ROOTS that are written for it."""
    rows = [["contract", "what is relied on", "where"]]
    for name, each in words.items():
        where = ", ".join(f"`{file}`" for file in each["relied_on"])
        rows.append([name.replace("_", " "), each["statement"], where])
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"
