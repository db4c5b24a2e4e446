"""Documents from text files."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys

import pytest

from roots.data.preprocessing.readers import parse_batch, read_batches, read_texts
from roots.errors import RootsError

TEXTS = ["first", "second line\n", "d\u00e9j\u00e0 vu", "x" * 5000]


def lines_of(texts, key="text"):
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def read(path, text_key="text", on_error="stop"):
    skipped = []
    texts = list(read_texts([path], text_key, on_error, skipped.append))
    return (texts, skipped) if on_error == "skip" else texts


def write_parquet(path, texts, key="text"):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    parquet.write_table(pyarrow.table({key: texts, "n": list(range(len(texts)))}), path)
    return path


def write_zst(path, content, frames=1):
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    step = -(-len(content) // frames)
    pieces = [content[i : i + step] for i in range(0, len(content), step)]
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(piece) for piece in pieces))
    return path


def test_text_file_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n\ntwo\n")
    assert read(path) == ["one\n\ntwo\n"]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_long_text_file_is_cut_at_ends_of_lines(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("roots.data.preprocessing.readers._BATCH_BYTES", 10)
    content = "\ufeffone\n\ntwo and three\n\ufeff\u00e9t\u00e9 four five\nsix seven eight".encode()
    path = tmp_path / f"a.txt{ending}"
    if ending == ".zst":
        write_zst(path, content)
    else:
        path.write_bytes(gzip.compress(content) if ending else content)
    batches = list(read_batches(path))
    assert [batch.goes_on for batch in batches] == [True, True, False]
    assert [batch.first for batch in batches] == [1, 4, 5]
    assert read(path) == [
        "one\n\ntwo and three\n",
        "\ufeff\u00e9t\u00e9 four five\n",
        "six seven eight",
    ]


@pytest.mark.parametrize("content", [b"", b"0123456789", b"0123456789\n", b"\n" * 10])
def test_text_of_one_piece_does_not_go_on(tmp_path, monkeypatch, content):
    monkeypatch.setattr("roots.data.preprocessing.readers._BATCH_BYTES", 10)
    (tmp_path / "a.txt").write_bytes(content)
    (batch,) = read_batches(tmp_path / "a.txt")
    assert (batch.items, batch.goes_on) == ([content], False)


def test_broken_piece_of_a_text_is_named_with_its_line_and_ends_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("roots.data.preprocessing.readers._BATCH_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\ncaf\xe9\nbad\xff\nend\n")
    assert read(path, on_error="skip") == (
        ["one\ntwo\n"],
        [
            f"{path} from line 3 on: must be UTF-8 text: 'utf-8' codec can't decode byte 0xe9 in "
            "position 3: invalid continuation byte; "
            "repair it, or continue without it by --on-error skip"
        ],
    )


@pytest.mark.parametrize("name", ["script.py", "README", "notes.md", "page.rst"])
def test_any_other_named_file_is_text(tmp_path, name):
    path = tmp_path / name
    path.write_text("{not json}")
    assert read(path) == ["{not json}"]


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(TEXTS))
    assert read(path) == TEXTS


def test_jsonl_with_blank_lines_and_no_last_newline(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + lines_of(["a"]) + b"  \r\n" + lines_of(["b"]).rstrip())
    assert read(path) == ["a", "b"]


def test_jsonl_gz(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines_of(TEXTS)))
    assert read(path) == TEXTS


@pytest.mark.parametrize("frames", [1, 3])
def test_jsonl_zst(tmp_path, frames):
    assert read(write_zst(tmp_path / "a.jsonl.zst", lines_of(TEXTS * 100), frames)) == TEXTS * 100


def test_parquet(tmp_path):
    assert read(write_parquet(tmp_path / "a.parquet", TEXTS)) == TEXTS


def test_text_key(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(TEXTS, "content"))
    assert read(path, "content") == TEXTS
    assert read(write_parquet(tmp_path / "a.parquet", TEXTS, "content"), "content") == TEXTS


@pytest.mark.parametrize(
    "line, detail",
    [
        (b'{"text": "cut o', "Unterminated string starting at (column 10)"),
        (b'{"body": "x", "a": 1}', "the object has only the keys ['a', 'body']"),
        (b'["text"]', "the line is no object but list"),
        (b'{"text": 3}', "the value is no string but int"),
        (
            b'{"text": "\xff"}',
            "'utf-8' codec can't decode byte 0xff in position 10: invalid start byte",
        ),
        (
            b'{"text": "\\ud800"}',
            "'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed",
        ),
    ],
    ids=["cut off", "missing key", "no object", "no string", "no UTF-8", "half a surrogate"],
)
def test_broken_line_is_named_with_its_number(tmp_path, line, detail):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["a"]) + b"\n" + line + b"\n" + lines_of(["b"]))
    expected = (
        f"{path} line 3: must hold a text under 'text': {detail}; "
        "repair it, or continue without it by --on-error skip"
    )
    with pytest.raises(RootsError) as caught:
        read(path)
    assert str(caught.value) == expected
    assert read(path, on_error="skip") == (["a", "b"], [expected])


def test_line_nested_too_deep(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"[" * 200_000 + b"\n")
    with pytest.raises(RootsError, match=r"a\.jsonl line 1: must hold a text under 'text': "):
        read(path)


def test_line_numbers_go_on_from_batch_to_batch(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["x"] * 2500) + b"{\n" + lines_of(["y"]))
    assert [batch.first for batch in read_batches(path)] == [1, 1025, 2049]
    texts, skipped = read(path, on_error="skip")
    assert len(texts) == 2501
    assert skipped[0].startswith(f"{path} line 2501: ")


def test_batches_are_small_whatever_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["x" * 400_000] * 12))
    sizes = [sum(map(len, batch.items)) for batch in read_batches(path)]
    assert len(sizes) == 4
    assert max(sizes) < 1_300_000


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(RootsError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: must be UTF-8 text: 'utf-8' codec can't decode byte 0xe9 in position 3: "
        "unexpected end of data; repair it, or continue without it by --on-error skip"
    )


def test_parquet_without_the_column(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", TEXTS, "content")
    with pytest.raises(RootsError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path} --text-key='text': has only the columns ['content', 'n']; "
        "name the one with the text by --text-key"
    )


def test_parquet_with_a_null(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["a", None, "b"])
    texts, skipped = read(path, on_error="skip")
    assert texts == ["a", "b"]
    assert skipped == [
        f"{path} row 2: must hold a text under 'text': the value is no string but NoneType; "
        "repair it, or continue without it by --on-error skip"
    ]


def test_parquet_that_is_none(tmp_path):
    write_parquet(tmp_path / "a.parquet", TEXTS)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(RootsError, match=r"a\.parquet: is not a whole parquet file \(.*\); copy"):
        read(tmp_path / "a.parquet")


def test_truncated_gz(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines_of(TEXTS))[:-10])
    with pytest.raises(RootsError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: is not a whole compressed file (Compressed file ended before the end-of-stream "
        "marker was reached); copy it again, or leave it out"
    )


def test_truncated_zst(tmp_path):
    path = write_zst(tmp_path / "a.jsonl.zst", lines_of([str(i) for i in range(50_000)]))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RootsError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: is not a whole compressed file (it ends inside a frame); "
        "copy it again, or leave it out"
    )


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2", "xz"])
def test_empty_compressed_file_is_not_whole(tmp_path, ending):
    path = tmp_path / f"a.jsonl.{ending}"
    path.touch()
    with pytest.raises(RootsError) as caught:
        read(path)
    rule = "is not a whole compressed file (it is empty)"
    assert str(caught.value) == f"{path}: {rule}; copy it again, or leave it out"


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2", "xz"])
def test_wrong_ending(tmp_path, ending):
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(lines_of(TEXTS))
    with pytest.raises(RootsError, match=r"is not a whole compressed file \(.*\); copy it again"):
        read(path)


@pytest.mark.parametrize(
    "module, name, message",
    [
        ("pyarrow", "a.parquet", "reading parquet needs pyarrow; run `pip install pyarrow`"),
        ("zstandard", "a.jsonl.zst", "reading .zst needs zstandard; run `pip install zstandard`"),
    ],
)
def test_optional_libraries(tmp_path, monkeypatch, module, name, message):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / name
    path.write_bytes(b"any")
    with pytest.raises(RootsError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: {message}"


def test_progress_reaches_the_size_of_the_file(tmp_path):
    for name, content in [("a.txt", b"abc"), ("a.jsonl.gz", gzip.compress(lines_of(TEXTS * 999)))]:
        (tmp_path / name).write_bytes(content)
        positions = [batch.read_bytes for batch in read_batches(tmp_path / name)]
        assert positions == sorted(positions)
        assert positions[-1] == len(content)


@pytest.mark.parametrize("name", ["a.json", "A.JSON", "a.ndjson", "a.jsonlines", "a.JsonL"])
@pytest.mark.parametrize("compression", ["", ".gz", ".GZ", ".bz2", ".xz", ".zst"])
def test_json_lines_under_every_usual_name(tmp_path, name, compression):
    path = tmp_path / f"{name}{compression}"
    content = lines_of(TEXTS)
    if compression == ".zst":
        write_zst(path, content)
    else:
        same = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
        path.write_bytes(same[compression.lower()](content))
    assert read(path) == TEXTS


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_array_and_objects_over_several_lines(tmp_path, indent, mark):
    path = tmp_path / "a.json"
    values = [{"text": text, "n": [number]} for number, text in enumerate(TEXTS)]
    path.write_text(mark + json.dumps(values, indent=indent), encoding="utf-8")
    assert read(path) == TEXTS
    path.write_text(mark + "\n".join(json.dumps(value, indent=2) for value in values))
    assert read(path) == TEXTS
    path.write_text(mark + json.dumps(values[0], indent=indent))
    assert read(path) == TEXTS[:1]


@pytest.mark.parametrize(
    "content, line",
    [
        (
            '[{"text": "a"}, {"text": ',
            "{path}: is not a whole JSON file (value 2: Expecting",
        ),
        ('[{"text": "a"} {"text": "b"}]', "(after value 1 should be ',' or ']')"),
        ('[{"text": "a"}', "(after value 1 should be ',' or ']')"),
        ('[{"text": "a"}] {"text": "b"}', "(something stands after the array)"),
        ('{\n "text": "cut', "(value 1: Unterminated string starting at)"),
        ('{\n "text" 1}' + " " * 99, "(value 1: Expecting ':' delimiter)"),
        ("[" * 99_999, "(value 1 is nested too deep)"),
        ('[{"text": "a"}, "b"]', "{path} value 2: must hold a text under 'text': the line is no "),
        ('{"text": "cut', "{path} line 1: must hold a text under 'text': Unterminated string "),
    ],
)
def test_broken_json_file_is_one_line(tmp_path, content, line):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(RootsError) as caught:
        read(path)
    assert line.format(path=path) in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.txt"])
def test_line_beyond_the_bound_is_told_and_passed_over(tmp_path, name):
    path = tmp_path / name
    long = '{"text": "' + "x" * (3 << 20) + '"}'
    content = f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n'.encode()
    if name == "a.json":
        content = f'[{{"text": "a"}},\n{long}]'.encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    texts = []
    errors = []
    for batch in read_batches(path, line_limit=1 << 20):
        for parsed in parse_batch(batch):
            (texts if parsed.error is None else errors).append(parsed.text or parsed.error)
    unit = "value" if name == "a.json" else "line"
    # Of a value no more is read than the bound.
    size = next(text for text in ("3.0", "1.2", "2.0", "1.0") if f"it has {text} MiB" in errors[0])
    assert (size == "3.0") == (name != "a.json")
    assert errors == [
        f"{path} {unit} 2: is too long: it has {size} MiB, and a line or value is held whole up to "
        "--line-limit, 1 MiB; cut it, raise --line-limit, or continue without it by --on-error skip"
    ]
    assert texts == {"a.json": ["a"], "a.txt": []}.get(name, ["a", "b"])


def test_batches_parse_by_themselves(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["a", "b"]) + b"{\n")
    (batch,) = read_batches(path)
    parsed = list(parse_batch(batch))
    assert [item.text for item in parsed] == ["a", "b", ""]
    assert [item.error is None for item in parsed] == [True, True, False]
