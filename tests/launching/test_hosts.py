"""Hostfiles are read line by line, and filters select what DeepSpeed selects."""

from __future__ import annotations

import ast
import collections
import importlib.util
import logging
import typing
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from roots.errors import RootsError
from roots.launching.hosts import Host, filter_of, read_hostfile, refuse_hostfile, select

HOSTS = [Host("b", (0, 1, 2, 3)), Host("a", (0, 1)), Host("c", (0,))]


def hostfile(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text, encoding="utf-8")
    return path


def test_hostfile_is_read_line_by_line(tmp_path: Path) -> None:
    text = "# ours\nb slots=4\r\n\n  user@a  slots = 2 max_slots=8 # old\nc slots=1 max-slots=1"
    assert read_hostfile(hostfile(tmp_path, text)) == [
        Host("b", (0, 1, 2, 3)),
        Host("user@a", (0, 1)),
        Host("c", (0,)),
    ]


def test_every_wrong_line_is_named(tmp_path: Path) -> None:
    wrong = ["c", "d slots=0", "e slots=8 cores=9", "-oX=y slots=1"]
    path = hostfile(tmp_path, "\n".join(["a slots=2", "b slot=2", "a slots=1", *wrong]))
    with pytest.raises(RootsError) as caught:
        read_hostfile(path)
    fix = "write the host's name and its number of ranks, `host1 slots=8`"
    assert caught.value.lines == (
        f"{path} line 2='b slot=2': must read `NAME slots=N`; {fix}",
        f"{path} line 3='a': is there already; give each host one line with all its slots",
        *(
            f"{path} line {number}={line!r}: must read `NAME slots=N`; {fix}"
            for number, line in enumerate(wrong, start=4)
        ),
    )


def test_no_file_and_no_host_are_told(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "# nobody\n")
    with pytest.raises(
        RootsError, match=r": names no host; write a line `NAME slots=N` for each host$"
    ):
        read_hostfile(path)
    path.unlink()
    with pytest.raises(RootsError, match=r"^hostfile='.*': No such file or directory; name the"):
        read_hostfile(path)


def test_config_and_hostfile_that_stand_in_each_others_place(tmp_path: Path) -> None:
    config, hosts = tmp_path / "run.yaml", hostfile(tmp_path, "a slots=2\nb slots=2\n")
    config.write_text("run: {name: x}\ndata:\n  train: y\n", encoding="utf-8")
    fix = "name the file of hosts here, and the run's YAML file as CONFIG"
    with pytest.raises(RootsError) as caught:
        read_hostfile(config)
    rule = "is no hostfile: none of its 3 lines reads `NAME slots=N`"
    assert caught.value.lines == (f"hostfile={str(config)!r}: {rule}; {fix}",)
    refuse_hostfile(config)
    with pytest.raises(RootsError) as caught:
        refuse_hostfile(hosts)
    rule = "is a hostfile, with lines `NAME slots=N`"
    fix = "name the run's YAML file as CONFIG, and this one as the hostfile"
    assert caught.value.lines == (f"CONFIG={str(hosts)!r}: {rule}; {fix}",)


FILTERS = [
    "a",
    "a@b",
    "b:3,1",
    "b:1,1,0",
    "c:0@b:2",
    "b:1@b",
    "b@b:0@a:1",
    "a:0,1",
    "b:0,1,2,3",
    "z",
    "b:7",
    "b:x",
    "",
    "b:",
    "a@",
    "a:0-1",
    "a:01",
    "b:2@b:1@c",
]


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("text", FILTERS)
def test_filters_select_what_deepspeed_selects(option: str, text: str) -> None:
    info = {host.name: list(host.slots) for host in HOSTS}
    try:
        theirs = dict(_deepspeeds_filter()(info, **{f"{option}_str": text}))
    except ValueError:
        theirs = {}
    try:
        ours = {host.name: list(host.slots) for host in select(HOSTS, **{option: text})}
    except RootsError:
        ours = {}
    assert list(ours.items()) == list(theirs.items())


def _deepspeeds_filter() -> Any:
    """DeepSpeed's own function, out of its source: importing it takes seconds."""
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).with_name("launcher").joinpath("runner.py").read_text())
    wanted = {
        "_stable_remove_duplicates",
        "parse_node_config",
        "parse_node_config_list",
        "parse_resource_filter",
    }
    tree.body = [
        each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name in wanted
    ]
    names: dict[str, Any] = {
        **vars(typing),
        "collections": collections,
        "defaultdict": collections.defaultdict,
        "deepcopy": deepcopy,
        "logger": logging.getLogger("deepspeed stand-in"),
    }
    exec(compile(tree, str(spec.origin), "exec"), names)
    return names["parse_resource_filter"]


@pytest.mark.parametrize(
    "filters, line",
    [
        ({"include": "z"}, "--include='z': 'z' is not in the hostfile; its hosts are b, a, c"),
        ({"exclude": "a:5"}, "--exclude='a:5': a has no slot 5; its slots are 0 to 1"),
        (
            {"include": "a:x"},
            "--include='a:x': slots are numbers with commas between; write `NAME:0,1`, joined by @",
        ),
        (
            {"include": "a", "exclude": "b"},
            "--exclude='b': cannot be used together with --include; drop one of them",
        ),
        (
            {"exclude": "a@b@c"},
            "--exclude='a@b@c': leaves none of the hosts b, a, c; take one of them out of it",
        ),
        (
            {"include": "@a"},
            "--include='@a': @ stands between two hosts; "
            "write `NAME@NAME`, with nothing before the first and behind the last",
        ),
    ],
)
def test_filters_say_what_is_wrong(filters: dict[str, str], line: str) -> None:
    with pytest.raises(RootsError) as caught:
        select(HOSTS, **filters)
    assert caught.value.lines == (line,)


def test_filter_and_hosts_with_users_are_told_apart() -> None:
    with pytest.raises(RootsError) as caught:
        select([Host("me@a", (0,))], include="me@a")
    rule = "@ separates hosts there, and stands in the name me@a of the hostfile"
    assert caught.value.lines == (f"--include='me@a': {rule}; give the user in ~/.ssh/config",)


def test_filter_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("a\nc\n", encoding="utf-8")
    assert select(HOSTS, exclude=filter_of("--exclude", str(path))) == [HOSTS[0]]
    path.write_text("", encoding="utf-8")
    assert select(HOSTS, exclude=filter_of("--exclude", str(path))) == HOSTS
    path.write_text("a\nb\nc\n", encoding="utf-8")
    with pytest.raises(RootsError) as caught:
        select(HOSTS, exclude=str(path))
    rule = "leaves none of the hosts b, a, c; take one of them out of it"
    assert caught.value.lines == (f"--exclude {path}='a@b@c': {rule}",)
    # Without a / it is none, as for Slurm.
    assert filter_of("--exclude", "a@c:1") == "a@c:1"


@pytest.mark.parametrize(
    "content, reason", [(None, "No such file or directory"), (b"\xff", "is no text")]
)
def test_file_of_a_filter_that_is_none(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "out"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RootsError) as caught:
        filter_of("--exclude", str(path))
    fix = "name a file with a host a line, as `roots doctor --exclude-to` writes it"
    assert caught.value.lines == (f"--exclude={str(path)!r}: {reason}; {fix}",)
