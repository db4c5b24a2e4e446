"""The values of a .json file that is no list of lines: one array, or objects over several lines.

The values are split here, within a bound each, and parsed where lines are parsed.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator

from roots.data.preprocessing.streams import BATCH_BYTES, LineTooLong, put_back

_FIRST_LINE = 1 << 16
_BREAKS = (b"{", b"[", b",", b":")
_SPACES = " \t\r\n"
_LONGEST_WORD = 16  # more than any of "false", "-Infinity" or an escape


class BrokenValues(ValueError):
    """The file stops being JSON; nothing behind that place can be told apart."""


def are_values(stream: io.BufferedReader) -> tuple[bool, io.BufferedReader]:
    """Whether a .json file is to be split into values, and the stream from its beginning.

    It is one array where it begins with "["; its objects go over several lines where the first line
    is none and ends as a printer breaks lines. Anything else is read line by line.
    """
    head = b""
    while True:
        line = stream.readline(_FIRST_LINE)
        head += line
        content = line.removeprefix(codecs.BOM_UTF8).strip()
        if content or not line or len(head) > BATCH_BYTES:
            break
    whole = put_back(head, stream)
    if not content.startswith(b"{"):
        return content.startswith(b"["), whole
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return content.endswith(_BREAKS), whole
    return False, whole


def split_values(stream: io.BufferedReader, limit: int) -> Iterator[bytes | LineTooLong]:
    """Yield the values of an array, or objects that follow each other, each as UTF-8.

    A value of over `limit` bytes ends the file with its error. Raises BrokenValues where it is no
    JSON, with the number of the value.
    """
    buffer = _Buffer(stream, limit)
    is_array = buffer.next() == "["
    if is_array:
        buffer.position += 1
    number = 0
    while (character := buffer.next()) != ("]" if is_array else ""):
        if is_array and number:
            if character != ",":
                raise BrokenValues(f"after value {number} should be ',' or ']'")
            buffer.position += 1
            buffer.next()
        number += 1
        value = buffer.value(number)
        yield value
        if isinstance(value, LineTooLong):
            return
    if is_array:
        buffer.position += 1
        if buffer.next():
            raise BrokenValues("something stands after the array")


class _Buffer:
    """What has been read and not yet been split."""

    def __init__(self, stream: io.BufferedReader, limit: int) -> None:
        self.position = 0
        self._stream = stream
        self._limit = limit
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._ended = False

    def next(self) -> str:
        """Go to the next character that is no white space, and return it; "" at the end."""
        while True:
            while self.position < len(self._text):
                if self._text[self.position] not in _SPACES:
                    return self._text[self.position]
                self.position += 1
            if self._ended:
                return ""
            self._read(BATCH_BYTES)

    def value(self, number: int) -> bytes | LineTooLong:
        """Take the value that begins here."""
        decoder = json.JSONDecoder()
        while True:
            try:
                _, end = decoder.raw_decode(self._text, self.position)
            except json.JSONDecodeError as error:
                if self._ended or not self._is_cut(error):
                    raise BrokenValues(f"value {number}: {error.msg}") from None
                end = len(self._text)
            except RecursionError:
                raise BrokenValues(f"value {number} is nested too deep") from None
            size = end - self.position
            if size > self._limit:
                return LineTooLong(size, self._limit)
            # A number that ends with what was read may go on.
            if end < len(self._text) or self._ended:
                value = self._text[self.position : end].encode(errors="surrogatepass")
                self.position = end
                return value
            self._read(max(BATCH_BYTES, size))

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend it."""
        unterminated = error.msg.startswith("Unterminated string")
        return unterminated or error.pos + _LONGEST_WORD >= len(self._text)

    def _read(self, size: int) -> None:
        piece = self._stream.read(size)
        self._ended = not piece
        try:
            more = self._decoder.decode(piece, self._ended)
        except UnicodeDecodeError as error:
            raise BrokenValues(f"is not UTF-8: {error}") from None
        self._text = self._text[self.position :] + more
        self.position = 0
