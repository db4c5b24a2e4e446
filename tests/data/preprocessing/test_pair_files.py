"""Files of pairs: what is read, and the line of every mistake."""

from __future__ import annotations

import gzip

import pytest

from roots.data.preprocessing import pair_files
from roots.data.preprocessing.file_lists import find_pair_files
from roots.data.preprocessing.pair_files import PairColumns, read_pairs
from roots.data.preprocessing.readers import RawBatch
from roots.data.preprocessing.streams import LineTooLong
from roots.errors import RootsError

PAIRS = [('a "b', "\u00fc c"), ("d", "e\\t")]
FIX = "repair it, or leave it out of the file"


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
            f"the line has 1 columns, and the first line 2; {FIX}",
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


UNQUOTED = (
    "quotes are text here, so write a table with quoted fields as .jsonl: "
    "pandas.read_csv(F, sep=TAB).to_json('a.jsonl', orient='records', lines=True)"
)


@pytest.mark.parametrize(
    "line, rule",
    [
        ('"a\tb"\tc', f"the line has 3 columns, and the first line 2 ({UNQUOTED})"),
        ("a\tb\tc", "the line has 3 columns, and the first line 2"),
        ('"a', f"the line has 1 columns, and the first line 2 ({UNQUOTED})"),
        (
            '"she said ""hi"""\tb',
            f"the field 'source' is quoted, and its quotes doubled ({UNQUOTED})",
        ),
    ],
)
@pytest.mark.parametrize("header", ["source\ttarget", "x\ty"])
def test_tables_with_quotes_or_other_columns_are_told(tmp_path, line, rule, header):
    path = tmp_path / "a.TSV"
    path.write_text(f"{header}\n{line}\n")
    names = ("1", "2") if header == "x\ty" else ("source", "target")
    rule = rule.replace("'source'", repr(names[0]))
    with pytest.raises(RootsError) as caught:
        read_pairs(path, PairColumns(*names))
    where = f"{path} line 2: must hold a pair under {names[0]!r} and {names[1]!r}: "
    assert caught.value.lines == (f"{where}{rule}; {FIX}",)


def test_quotation_marks_are_text(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('source\ttarget\n"Hello," he said.\t"Hallo"\n""\tb"\n')
    assert read_pairs(path) == [('"Hello," he said.', '"Hallo"'), ('""', 'b"')]


def test_columns_that_cannot_be_told_apart(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("source\tsource\ttarget\na\tb\tc\n")
    with pytest.raises(RootsError) as caught:
        read_pairs(path)
    assert caught.value.lines == (
        f"--source-key='source': the first line of {path} names more than one column so: "
        "['source', 'source', 'target']; rename all but one of them",
    )
    with pytest.raises(RootsError) as caught:
        read_pairs(path, PairColumns("1", "4"))
    assert caught.value.lines == (
        f"--target-key='4': the first line of {path} has 3 columns; "
        "give a number of one of them, from 1",
    )


def test_pairs_of_an_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"source": "a", "target": "b"},\n {"source": "c", "target": "d"}]')
    assert read_pairs(path) == [("a", "b"), ("c", "d")]


def test_files_that_cannot_hold_pairs_are_named_at_once(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(RootsError) as caught:
        find_pair_files([tmp_path / "a.txt", tmp_path / "b.tsv"])
    assert caught.value.lines == (
        f"FILES='{tmp_path}/a.txt': pairs are read from .tsv and .jsonl (.ndjson, .jsonlines, "
        ".json) files, also .gz, .zst, .bz2 and .xz; convert it, "
        "or change its ending",
        f"FILES='{tmp_path}/b.tsv': no such file or folder; check the path",
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


def test_errors_of_a_whole_file_name_no_option_that_its_command_lacks(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"source": "a"}\n')
    with pytest.raises(RootsError, match=f"; {FIX}$"):
        read_pairs(path)
    too_long = [RawBatch(str(path), "jsonl", [LineTooLong(3 << 20, 1 << 20)], 1, 0)]
    monkeypatch.setattr(pair_files, "read_lines", lambda *_: iter(too_long))
    with pytest.raises(RootsError) as caught:
        read_pairs(path)
    assert str(caught.value) == (
        f"{path} line 1: is too long: it has 3.0 MiB, and a line or value is held whole up to "
        "1 MiB; cut it, or leave it out of the file"
    )
