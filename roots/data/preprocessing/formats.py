"""What a file holds, as its name says: the one place of that decision.

Endings count in any letter case, and a compression's after them. Text that no list below knows, a
.py or a README, is one document. Of what is known to hold something else, the lists say how to get
text out of it, and nothing reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from roots.errors import problem

Kind = Literal["text", "jsonl", "json", "parquet", "tsv"]

# "jsonl": one object a line. "json": the same, or one array, or objects over several lines.
_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".ldjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".tsv": "tsv",
}
# What may hold an object a line; only there does the key of a text matter.
KEYED: frozenset[Kind] = frozenset({"jsonl", "json", "parquet"})
PAIRED: frozenset[Kind] = frozenset({"jsonl", "json", "tsv"})
COMPRESSIONS = {".gz": "gz", ".gzip": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2"}
COMPRESSIONS |= {".xz": "xz"}
READABLE = ".txt, .jsonl (.ndjson, .jsonlines, .json) or .parquet"
_AS_PAIRS = "pairs are read from .tsv and .jsonl (.ndjson, .jsonlines, .json) files"

_DATASETS = "`datasets.load_dataset(...)` and `to_json('a.jsonl')` write JSON lines"
_FIXES: dict[str, tuple[str, str]] = {
    "a table": (
        ".csv .xls .xlsx .ods",
        "write it as .jsonl: pandas.read_csv(F).to_json('a.jsonl', orient='records', lines=True)",
    ),
    "a laid-out document": (
        ".pdf .doc .docx .odt .rtf .epub .ppt .pptx .odp .ps .djvu .mobi",
        "extract its text into a .txt or .jsonl file first",
    ),
    "an archive": (
        ".zip .tar .tgz .tbz2 .txz .7z .rar .jar .whl .warc .wet .wat",
        "unpack it and name the files or the folder",
    ),
    "compressed in a way that is not read": (
        ".lz4 .lzma .br .sz .snappy .z .lzo",
        "compress it with gzip, zstd, bzip2 or xz, or not at all",
    ),
    "tokens or an array": (
        ".bin .idx .npy .npz .ds",
        "give a dataset of tokens to data.train or --data by its prefix; this reads text",
    ),
    "a table in a binary form": (
        ".arrow .feather .avro .orc .msgpack .tfrecord .h5 .hdf5 .sqlite .db .mds .lance",
        _DATASETS,
    ),
    "no text": (
        ".pt .pth .ckpt .pkl .pickle .safetensors .gguf .onnx .so .o .a .pyc .exe .dll .class "
        ".wasm .png .jpg .jpeg .gif .webp .bmp .tif .tiff .ico .heic .mp3 .wav .flac .ogg .m4a "
        ".mp4 .mkv .webm .avi .mov .ttf .otf .woff .woff2 .iso .dmg .deb .rpm .model",
        "leave it out",
    ),
}
_REFUSED = {
    ending: (what, fix) for what, (endings, fix) in _FIXES.items() for ending in endings.split()
}


@dataclass(frozen=True)
class Format:
    """Of a file: its kind ("text" where no list knows it), its compression, and its ending.

    `is_known`: whether the ending, and no default, says so; `refused`: what it is and how to get
    text out of it, for what is not read.
    """

    kind: Kind
    compression: str | None
    ending: str
    is_known: bool
    refused: tuple[str, str] | None


def format_of(path: Path) -> Format:
    """Tell the format of a file by its name."""
    name = path.name.lower()
    last = _suffix(name)
    compression = COMPRESSIONS.get(last)
    inner = _suffix(name.removesuffix(last)) if compression else last
    refused = _REFUSED.get(inner)
    kind = _KINDS.get(inner, "text")
    ending = inner + last if compression else last
    return Format(kind, compression, ending or "without ending", inner in _KINDS, refused)


def text_problem(path: Path) -> str | None:
    """The line that says why a file that was named is not read for its texts; None if it is."""
    found = format_of(path)
    if found.kind == "tsv":
        rule = "a .tsv is a table, whose columns are read with --pairs alone"
        fix = f"give --pairs for its pairs, or {_FIXES['a table'][1].replace('F)', 'F, sep=TAB)')}"
        return problem("FILES", str(path), rule, fix)
    return _refusal(path, found)


def pairs_problem(path: Path) -> str | None:
    """The line that says why a file that was named is not read for its pairs; None if it is."""
    found = format_of(path)
    if found.kind in PAIRED and found.is_known:
        return None
    rule = f"{_AS_PAIRS}, also .gz, .zst, .bz2 and .xz"
    fix = found.refused[1] if found.refused else "convert it, or change its ending"
    return problem("FILES", str(path), rule, fix)


def is_text_file(path: Path) -> bool:
    """Whether a file of a folder is read for its texts."""
    found = format_of(path)
    return found.is_known and found.kind != "tsv"


def _refusal(path: Path, found: Format) -> str | None:
    if found.refused is None:
        return None
    what, fix = found.refused
    return problem("FILES", str(path), f"{found.ending} is {what}", fix)


def _suffix(name: str) -> str:
    """The ending with its dot; "" for a name without one, or of nothing else."""
    stem, dot, ending = name.rpartition(".")
    return dot + ending if stem else ""
