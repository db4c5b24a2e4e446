#!/usr/bin/env bash
# Half of zstandard's ways to read drop all but the first frame of a file, without a word.
#
# zstandard 0.25.0.
# Expected: a file of several frames, as `cat part1.zst part2.zst`, pzstd and appending writers make it and as `zstd -d` reads
#           it, is read whole, or refused; and every way to read agrees.
# Seen:     decompress and read_to_iter return what is in the first frame, as if that were all; stream_reader, copy_stream
#           and zstandard.open read on. A corpus read by the former ends at the seam.
# Output seen:
#   decompress: b'first'
#   read_to_iter: b'first'
#   stream_reader: b'first and second'
#   copy_stream: b'first and second'
#   open: b'first and second'
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check zstandard==0.25.0

cat >"$folder/run.py" <<'PYTHON'
import io
import sys
from pathlib import Path

import zstandard

compress = zstandard.ZstdCompressor().compress
frames = compress(b"first") + compress(b" and second")
reader = zstandard.ZstdDecompressor()
print(f"decompress: {reader.decompress(frames)}")
print(f"read_to_iter: {b''.join(reader.read_to_iter(io.BytesIO(frames)))}")
print(f"stream_reader: {reader.stream_reader(io.BytesIO(frames)).read()}")
copied = io.BytesIO()
reader.copy_stream(io.BytesIO(frames), copied)
print(f"copy_stream: {copied.getvalue()}")
Path(sys.argv[1]).write_bytes(frames)
with zstandard.open(sys.argv[1]) as opened:
    print(f"open: {opened.read()}")
PYTHON

expected="decompress: b'first'
read_to_iter: b'first'
stream_reader: b'first and second'
copy_stream: b'first and second'
open: b'first and second'"
seen="$("$folder/venv/bin/python" "$folder/run.py" "$folder/frames.zst" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
