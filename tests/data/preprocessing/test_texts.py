"""Text files to a dataset."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from roots.data.indexed import IndexedDataset
from roots.data.preprocessing.texts import preprocess
from roots.errors import RootsError
from roots.tokenizer.tokenizer import load_tokenizer
from tests.helpers.words import BOS, EOS, write_words

END = 256


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts_of(prefix):
    dataset = IndexedDataset(prefix)
    documents = [dataset[i].tolist() for i in range(len(dataset))]
    assert all(document[-1] == END and END not in document[:-1] for document in documents)
    return [bytes(document[:-1]).decode() for document in documents]


def test_every_document_ends_with_its_token(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two", "<|endoftext|>"])
    summary = preprocess([path], tmp_path / "out", "bytes", num_workers=0)
    assert texts_of(tmp_path / "out") == ["one", "two", "<|endoftext|>"]
    description = summary.description
    assert (description.documents, description.tokens) == (3, 3 + 3 + 13 + 3)
    assert (description.tokenizer, description.vocab_size) == ("bytes", 257)
    assert (description.end_of_document, description.max_token_id) == (256, 256)


def documents_of(prefix):
    dataset = IndexedDataset(prefix)
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_documents_stand_between_the_tokens_of_their_tokenizer(tmp_path, monkeypatch):
    words = str(write_words(tmp_path / "words"))
    path = write_jsonl(tmp_path / "a.jsonl", ["the cat", "mat"])
    cat, mat = (load_tokenizer(words).encode(text) for text in ("the cat", "mat"))
    chosen = {"begin_token": "none", "end_token": "<|endoftext|>"}
    for options, begin, end in (({}, [BOS], EOS), (chosen, [], 0)):
        for workers in (0, 1):
            summary = preprocess(
                [path], tmp_path / "out", words, num_workers=workers, **options
            ).description
            assert documents_of(tmp_path / "out") == [[*begin, *cat, end], [*begin, *mat, end]]
            assert (summary.begin_tokens, summary.end_of_document) == (tuple(begin), end)
            assert load_tokenizer(words).has_ids_of(summary.tokenizer)
    # A text in pieces begins once.
    monkeypatch.setattr("roots.data.preprocessing.readers._BATCH_BYTES", 4)
    (tmp_path / "b.txt").write_text("the\ncat\nsat\n" * 9)
    preprocess([tmp_path / "b.txt"], tmp_path / "b", words, num_workers=0)
    (document,) = documents_of(tmp_path / "b")
    assert (document[0], document[-1], document.count(BOS), document.count(EOS)) == (BOS, EOS, 1, 1)


def test_truncation_left_in_the_tokenizer_loses_no_text(tmp_path):
    cut = {"max_length": 64, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    plain = str(write_words(tmp_path / "plain"))
    used = str(write_words(tmp_path / "used", left_over={"truncation": cut}))
    path = write_jsonl(tmp_path / "a.jsonl", ["the cat " * n for n in (100, 500)])
    first, second = (
        preprocess([path], tmp_path / "out", words, num_workers=0).description
        for words in (plain, used)
    )
    assert first == second
    assert first.tokens > 1200


def test_files_and_folders_of_several_kinds(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("whole\nfile\n")
    write_jsonl(folder / "a.jsonl", ["one", "two"])
    (tmp_path / "x.py").write_text("print()")
    preprocess([tmp_path / "x.py", folder], tmp_path / "out", "bytes", num_workers=0)
    assert texts_of(tmp_path / "out") == ["print()", "one", "two", "whole\nfile\n"]


def test_long_text_file_is_one_document_of_several_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("roots.data.preprocessing.readers._BATCH_BYTES", 100)
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = ["".join(f"{name} {i}\n" for i in range(200)) for name in "ab"] + ["short"]
    for name, text in zip("abc", texts, strict=True):
        (folder / f"{name}.txt").write_text(text)
    seen = []
    for workers in (0, 2):
        out = tmp_path / f"out{workers}"
        preprocess([folder], out, "bytes", num_workers=workers, on_progress=seen.append)
        assert texts_of(out) == texts
    alone = [progress.documents for progress in seen[: len(seen) // 2]]
    assert alone == sorted(alone)
    assert len(alone) > 20  # the progress goes on inside a document
    assert alone[-1] == 3


def test_text_with_broken_pieces_is_left_out_as_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr("roots.data.preprocessing.readers._BATCH_BYTES", 4)
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"one\ntwo\nbad\xff\nsix\nbad\xff\nend\n")
    (folder / "b.txt").write_bytes(b"one\ntwo\nbad\xff")
    (folder / "c.txt").write_bytes(b"good\nand whole\n")
    summary = preprocess([folder], tmp_path / "out", "bytes", on_error="skip", num_workers=0)
    assert texts_of(tmp_path / "out") == ["good\nand whole\n"]
    assert (summary.num_skipped, summary.num_empty) == (2, 0)


def test_dataset_does_not_depend_on_the_number_of_workers(tmp_path):
    files = [
        write_jsonl(tmp_path / f"{i}.jsonl", [f"{i} {j} " + "x" * (j % 9) for j in range(1500)])
        for i in range(2)
    ]
    for workers in (0, 2):
        preprocess(files, tmp_path / f"out{workers}", "bytes", num_workers=workers)
    for ending in ("bin", "idx", "json"):
        alone = (tmp_path / f"out0.{ending}").read_bytes()
        assert (tmp_path / f"out2.{ending}").read_bytes() == alone


def test_reading_stays_close_to_writing(tmp_path, monkeypatch):
    """Batches are read only as they are needed, so memory does not grow with the file."""
    path = write_jsonl(tmp_path / "a.jsonl", ["x"] * 20_000)
    import roots.data.preprocessing.texts as module

    read, written, largest = [0], [0], [0]
    real = module.read_batches

    def counted(*arguments):
        for batch in real(*arguments):
            read[0] += 1
            largest[0] = max(largest[0], read[0] - written[0])
            yield batch

    def on_progress(progress):
        written[0] += 1

    monkeypatch.setattr(module, "read_batches", counted)
    preprocess([path], tmp_path / "out", "bytes", num_workers=1, on_progress=on_progress)
    assert read == written == [20]
    assert largest[0] <= 2 * 1 + 1


def test_broken_line_stops_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(RootsError) as caught:
        preprocess([path], tmp_path / "out", "bytes", num_workers=0)
    assert str(caught.value) == (
        f"{path} line 2: must hold a text under 'text': Expecting value (column 9); "
        "repair it, or continue without it by --on-error skip"
    )
    assert [item.name for item in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_line_is_skipped_and_counted(tmp_path, caplog, workers):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n{"txt": "b"}\n{"text": ""}\n{"text": "c"}\n')
    summary = preprocess([path], tmp_path / "out", "bytes", on_error="skip", num_workers=workers)
    assert texts_of(tmp_path / "out") == ["a", "c"]
    assert (summary.num_skipped, summary.num_empty) == (2, 1)


def test_errors_cross_the_process_boundary(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(RootsError, match=r"a\.jsonl line 2: .* only the keys \['txt'\]; repair it"):
        preprocess([path], tmp_path / "out", "bytes", num_workers=1)


@pytest.mark.parametrize("content", ["", '{"text": ""}\n'])
def test_empty_corpus(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    other = tmp_path / "b.txt"
    other.touch()
    with pytest.raises(RootsError) as caught:
        preprocess([path, other], tmp_path / "out", "bytes", num_workers=0)
    empty = 2 if content else 1
    assert str(caught.value) == (
        f"FILES='{path} and 1 more': no text in it ({empty} empty documents, 0 broken ones); "
        "name files with text, or check --text-key"
    )
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.jsonl", "b.txt"]


def test_files_without_documents_are_counted_apart(tmp_path, caplog):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "c.csv").write_text("a,b")
    write_jsonl(tmp_path / "b.json", ["one"])
    summary = preprocess([tmp_path], tmp_path / "out", "bytes", num_workers=0)
    assert (summary.files, summary.num_bare_files, summary.left_out) == (1, 1, {".csv": 1})
    assert f"{tmp_path}/a.jsonl.gz: gives no document" in caplog.messages
    assert texts_of(tmp_path / "out") == ["one"]


def test_disk_that_is_full(tmp_path, monkeypatch):
    def add(self, tokens, lengths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("roots.data.preprocessing.texts.IndexedWriter.add", add)
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(RootsError) as caught:
        preprocess([path], tmp_path / "out", "bytes", num_workers=0)
    assert str(caught.value) == (
        f"--out='{tmp_path}/out': cannot be written (No space left on device); "
        "free some disk space, or name another place"
    )
    assert [item.name for item in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("size", [2_000, 200_000], ids=["at the close", "before"])
def test_disk_that_is_full_leaves_nothing(tmp_path, size):
    path = write_jsonl(tmp_path / "a.jsonl", ["x" * size])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RootsError) as caught:
            preprocess([path], tmp_path / "out", "bytes", num_workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(caught.value) == (
        f"--out='{tmp_path}/out': cannot be written (File too large); "
        "raise the limit on the size of a file (ulimit -f), or name another place"
    )
    assert os.listdir(tmp_path) == ["a.jsonl"]


KILLED = """
import os, sys
from roots.data.preprocessing.texts import preprocess
if __name__ == "__main__":
    die = lambda progress: os._exit(9)
    preprocess(sys.argv[1:2], sys.argv[2], "bytes", num_workers=0, on_progress=die)
"""


def test_killed_run_leaves_only_temporaries_which_the_next_replaces(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", KILLED, str(path), str(out)], check=False)
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "a.jsonl", "out.bin.partial"]
    with pytest.raises(RootsError, match=r"out\.idx: no such file; "):
        IndexedDataset(out)
    preprocess([path], out, "bytes", num_workers=0)
    assert texts_of(out) == ["one", "two"]
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out.bin", "out.idx", "out.json"]


def test_worker_that_dies(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    monkeypatch.setattr("roots.data.preprocessing.workers._tokenize_in_worker", die)
    with pytest.raises(RootsError) as caught:
        preprocess([path], tmp_path / "out", "bytes", num_workers=1)
    assert str(caught.value) == (
        "--workers=1: a worker process was killed, most likely because memory ran out; "
        "use fewer workers, or split large files"
    )
    assert [item.name for item in tmp_path.iterdir()] == ["a.jsonl"]


def die(*arguments):
    os._exit(9)


def test_progress_is_in_bytes_of_all_files(tmp_path):
    files = [write_jsonl(tmp_path / f"{i}.jsonl", ["a" * i] * 1500) for i in (1, 2)]
    seen = []
    preprocess(files, tmp_path / "out", "bytes", num_workers=0, on_progress=seen.append)
    sizes = [path.stat().st_size for path in files]
    assert [progress.total_bytes for progress in seen] == [sum(sizes)] * 4
    read = [progress.read_bytes for progress in seen]
    assert read == sorted(read)
    assert read[1] == sizes[0]
    assert read[3] == sum(sizes)
    assert [progress.documents for progress in seen] == [1024, 1500, 2524, 3000]


def test_workers_do_not_import_torch(tmp_path):
    script = (
        "import sys, roots.data.preprocessing.texts, roots.cli.preprocess, roots.cli.tokenizer; "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0
