"""Which files are read, and the line for each that is not."""

from __future__ import annotations

import os

import pytest

from roots.data.preprocessing.file_lists import find_files, find_pair_files
from roots.errors import RootsError

RECORD = '{"text": "a"}\n'


def touch(folder, *names, content=""):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def names(found, folder):
    return [str(path.relative_to(folder)) for path in found.paths]


def lines_of_error(*paths, find=find_files):
    with pytest.raises(RootsError) as caught:
        find(paths)
    return list(caught.value.lines)


def test_folders_are_read_recursively_in_order_of_names(tmp_path):
    read = ["a/b/c.jsonl.gz", "a/c.parquet", "a/z.JSONL", "b.txt", "d.json.zst", "e.ndjson.xz"]
    touch(tmp_path, *reversed(read))
    assert names(find_files([tmp_path]), tmp_path) == read


def test_what_a_folder_leaves_out_is_counted_by_ending(tmp_path, caplog):
    touch(
        tmp_path, "a.txt", "a.csv", "b/b.CSV", "c.tsv.gz", "d.py", "README", ".hidden/x.txt", ".x"
    )
    touch(tmp_path, "data.bin", "data.idx", "data.json")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    found = find_files([tmp_path])
    assert names(found, tmp_path) == ["a.txt"]
    line = (
        "2 .csv, 2 hidden, 1 .bin, 1 .idx, 1 .py, 1 .tsv.gz, 1 broken link, 1 no regular file, "
        "1 of a dataset, 1 without ending"
    )
    assert found.describe_left_out() == line
    assert caplog.messages == [f"of the folders is left out: {line}"]


def test_linked_folders_are_read_and_circles_end(tmp_path):
    touch(tmp_path, "elsewhere/x.txt", "corpus/a.txt")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "corpus")
    found = find_files([tmp_path / "corpus"])
    assert names(found, tmp_path / "corpus") == ["a.txt", "linked/x.txt"]
    assert found.left_out == {"met twice": 1}


def test_a_file_is_read_once(tmp_path):
    touch(tmp_path, "corpus/a.txt", "b.txt")
    (tmp_path / "c.txt").symlink_to("b.txt")
    (tmp_path / "corpus" / "again.txt").symlink_to("a.txt")
    found = find_files([tmp_path / "corpus"])
    assert (len(found.paths), found.left_out) == (1, {"met twice": 1})
    once = "name it once (weights in data.train repeat a dataset)"
    b, c, a = (tmp_path / name for name in ("b.txt", "c.txt", "corpus/a.txt"))
    assert lines_of_error(b, c, tmp_path / "corpus", a, b) == [
        f"FILES='{c}': is the same file as '{b}'; {once}",
        f"FILES='{a}': is the same file as '{a}'; {once}",
        f"FILES='{b}': is the same file as '{b}'; {once}",
    ]
    touch(tmp_path, "p.tsv")
    pair = tmp_path / "p.tsv"
    assert lines_of_error(pair, pair, find=find_pair_files) == [
        f"FILES='{pair}': is the same file as '{pair}'; {once}"
    ]


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert lines_of_error(tmp_path / "absent", tmp_path / "pipe") == [
        f"FILES='{tmp_path}/absent': no such file or folder; check the path",
        f"FILES='{tmp_path}/pipe': is no regular file; "
        "write what it gives to a file, and name that",
    ]


def test_folder_without_texts(tmp_path):
    touch(tmp_path, "x.py")
    assert lines_of_error(tmp_path) == [
        f"FILES='{tmp_path}': holds no .txt, .jsonl (.ndjson, .jsonlines, .json) or .parquet file, "
        "but 1 .py; name other files one by one: they are read as plain text"
    ]


@pytest.mark.parametrize(
    "name, rule",
    [
        ("a.csv", ".csv is a table; write it as .jsonl: pandas.read_csv(F)"),
        ("a.CSV.GZ", ".csv.gz is a table; "),
        ("a.tsv", "a .tsv is a table, whose columns are read with --pairs alone; give --pairs"),
        ("a.pdf", ".pdf is a laid-out document; extract its text into a .txt or .jsonl file first"),
        ("a.docx", ".docx is a laid-out document; extract"),
        ("a.zip", ".zip is an archive; unpack it and name the files or the folder"),
        ("a.tar.gz", ".tar.gz is an archive; unpack"),
        ("a.jsonl.lz4", ".lz4 is compressed in a way that is not read; compress it with gzip,"),
        ("a.bin", ".bin is tokens or an array; give a dataset of tokens to data.train or --data"),
        ("a.npy", ".npy is tokens or an array; "),
        ("a.arrow", ".arrow is a table in a binary form; `datasets.load_dataset"),
        ("a.safetensors", ".safetensors is no text; leave it out"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, name, rule):
    touch(tmp_path, name, content="a,b\n")
    (line,) = lines_of_error(tmp_path / name)
    assert line.startswith(f"FILES='{tmp_path}/{name}': {rule}")


@pytest.mark.parametrize("name", ["script.py", "README", "notes.md", "page.html", "a.xml"])
def test_any_other_named_file_is_text(tmp_path, name):
    touch(tmp_path, name, content="{not json}\n")
    assert find_files([tmp_path / name]).paths == [tmp_path / name]


def test_first_bytes_that_are_not_what_the_name_says(tmp_path, caplog):
    touch(tmp_path, "part-00000", "a.jsonl.1", "a.txt", content=RECORD * 3)
    (tmp_path / "core").write_bytes(b"\x7fELF\0\0")
    found = [tmp_path / name for name in ("part-00000", "a.jsonl.1", "core")]
    rule = "its first line is a JSON object, but its ending means plain text"
    fix = "name it .jsonl for the texts in it, or .txt to learn braces and keys too"
    nul = "holds NUL bytes, which text in UTF-8 has none of; leave it out, or save it as UTF-8"
    assert lines_of_error(*found) == [
        f"FILES='{tmp_path}/part-00000': {rule}; {fix}",
        f"FILES='{tmp_path}/a.jsonl.1': {rule}; {fix}",
        f"FILES='{tmp_path}/core': {nul}",
    ]
    assert find_files([tmp_path / "a.txt"]).paths == [tmp_path / "a.txt"]
    assert caplog.messages == [
        f"{tmp_path}/a.txt: its first line is a JSON object; braces and keys are learned, unless "
        "it is a .jsonl"
    ]


def test_key_of_a_text_needs_files_with_keys(tmp_path):
    touch(tmp_path, "a.txt", "b.py", "c.json.gz")
    text = find_files([tmp_path / "a.txt", tmp_path / "b.py"])
    assert text.text_key(None) == "text"
    with pytest.raises(RootsError) as caught:
        text.text_key("text")
    assert str(caught.value) == (
        "--text-key='text': has no effect, because every file here is text without keys or "
        "columns; leave it out, or name files of JSON lines .jsonl"
    )
    assert find_files([tmp_path / "a.txt", tmp_path / "c.json.gz"]).text_key("body") == "body"


def test_files_that_cannot_hold_pairs(tmp_path):
    touch(tmp_path, "a.TSV.gz", "b.ndjson", "c.json", "d.csv", "e.parquet")
    good = [tmp_path / name for name in ("a.TSV.gz", "b.ndjson", "c.json")]
    assert find_pair_files(good).paths == good
    rule = (
        "pairs are read from .tsv and .jsonl (.ndjson, .jsonlines, .json) files, "
        "also .gz, .zst, .bz2 and .xz"
    )
    table = "pandas.read_csv(F).to_json('a.jsonl', orient='records', lines=True)"
    assert lines_of_error(tmp_path / "d.csv", tmp_path / "e.parquet", find=find_pair_files) == [
        f"FILES='{tmp_path}/d.csv': {rule}; write it as .jsonl: {table}",
        f"FILES='{tmp_path}/e.parquet': {rule}; convert it, or change its ending",
    ]
