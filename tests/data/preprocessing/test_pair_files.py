"""Files of pairs: what is read, and the line of every mistake."""

from __future__ import annotations

import gzip

import pytest

from roots.data.preprocessing.pair_files import PairColumns, find_pair_files, read_pairs
from roots.errors import RootsError

PAIRS = [('a "b', "\u00fc c"), ("d", "e\\t")]
FIX = "repair it, or continue without it by --on-error skip"


@pytest.mark.parametrize(
    "name, text, columns",
    [
        ("a.tsv", '\ufeffid\ttarget\tsource\n1\t\u00fc c\ta "b\r\n\n2\te\\t\td\n', PairColumns()),
        ("a.tsv", 'a "b\t7\t\u00fc c\nd\t8\te\\t', PairColumns("1", "3")),
        (
            "a.jsonl",
            '{"q": "a \\"b", "a": "\u00fc c"}\n\n{"a": "e\\\\t", "q": "d"}',
            PairColumns("q", "a"),
        ),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_form_gives_the_same_pairs(tmp_path, name, text, columns, compressed):
    path = tmp_path / (name + ".gz" * compressed)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert read_pairs(path, columns) == PAIRS


@pytest.mark.parametrize(
    "name, text, line",
    [
        (
            "a.tsv",
            "source\tziel\na\tb\n",
            "--target-key='target': the first line of {path} names only the columns "
            "['source', 'ziel']; name one of them by --target-key, or give a number from 1 if "
            "there is no such line",
        ),
        (
            "a.tsv",
            "source\ttarget\na\tb\nc\n",
            "{path} line 3: must hold a pair under 'source' and 'target': "
            f"the line has 1 columns; {FIX}",
        ),
        (
            "a.tsv",
            "source\ttarget\na\t \n",
            "{path} line 2: must hold a pair under 'source' and 'target': "
            f"the field 'target' is empty; {FIX}",
        ),
        (
            "a.jsonl",
            '{"source": "a", "target": "b"}\n{"source": "c", "ziel": "d"}\n',
            "{path} line 2: must hold a pair under 'source' and 'target': "
            f"the object has only the keys ['source', 'ziel']; {FIX}",
        ),
        (
            "a.jsonl",
            '{"source": "a", "target": ""}\n',
            "{path} line 1: must hold a pair under 'source' and 'target': "
            f"the field 'target' is empty; {FIX}",
        ),
        ("a.tsv", "source\ttarget\n", "pairs='{path}': holds no pairs; name a file with pairs"),
    ],
)
def test_every_mistake_is_one_line(tmp_path, name, text, line):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(RootsError) as caught:
        read_pairs(path)
    assert caught.value.lines == (line.format(path=path),)


def test_files_that_cannot_hold_pairs_are_named_at_once(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(RootsError) as caught:
        find_pair_files([tmp_path / "a.txt", tmp_path / "b.tsv"])
    assert caught.value.lines == (
        f"FILES='{tmp_path}/a.txt': pairs are read from .tsv and .jsonl files, also .gz and .zst; "
        "convert it, or change its ending",
        f"FILES='{tmp_path}/b.tsv': no such file; check the path",
    )


def test_a_folder_and_a_header_in_another_encoding_are_told(tmp_path):
    with pytest.raises(RootsError) as caught:
        find_pair_files([tmp_path])
    line = f"FILES='{tmp_path}': is a folder; name its .tsv or .jsonl files"
    assert caught.value.lines == (line,)
    path = tmp_path / "unicode-text.tsv"
    path.write_bytes("source\ttarget\na\tb\n".encode("utf-16"))
    with pytest.raises(RootsError, match=r"line 1: must be a header in UTF-8: .*; save it as UTF"):
        read_pairs(path)
