"""Text files of any usual encoding, and values from files as a few words of a message. Imports no torch."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

from snnet.system.terminal import printable

SHOWN_CHARACTERS = 100
_SHOWN_ENTRIES, _SHOWN_DEPTH = 4, 3
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


class FileFault(ValueError):
    """A file cannot be used. The message continues a sentence that begins with its name: "is damaged (...)"."""


class Damaged(FileFault):
    """The file is damaged or of another format than it should be; ``reason`` says how reading it failed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"is damaged ({reason})")
        self.reason = reason


def shown(value: Any, most: int = SHOWN_CHARACTERS) -> str:
    """``value`` for a message, short and printable whatever it is; text stands without quotation marks.

    What a file holds can be nested or long beyond all bounds, and its text can have control characters.
    """
    if not isinstance(value, str):
        return quoted(value, most)
    return printable(value[:most]) + ("…" if len(value) > most else "")


def quoted(value: Any, most: int = SHOWN_CHARACTERS) -> str:
    """As :func:`shown`, but text stands in quotation marks: for a value that should have been of another type."""
    text = _shown(value, _SHOWN_DEPTH)
    return text if len(text) <= most else text[:most] + "…"


def _shown(value: Any, depth: int) -> str:
    if type(value) is int and value.bit_length() > 256:
        return f"a whole number of {value.bit_length():,} bits"
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    if type(value) is str:
        return repr(value[:SHOWN_CHARACTERS])
    if type(value) not in (list, tuple, dict):
        return f"a {type(value).__name__}"
    opening, closing = (
        ("[", "]") if type(value) is list else ("(", ")") if type(value) is tuple else ("{", "}")
    )
    if not value:
        return opening + closing
    if depth == 0:
        return f"{opening}…{closing}"
    parts: list[str] = []
    for entry in value:
        if len(parts) == _SHOWN_ENTRIES:
            parts.append("…")
            break
        part = _shown(entry, depth - 1)
        parts.append(f"{part}: {_shown(value[entry], depth - 1)}" if type(value) is dict else part)
    if type(value) is tuple and len(value) == 1:
        closing = ",)"
    return opening + ", ".join(parts) + closing


def first_line(error: Exception) -> str:
    """An error of other software for a message: its kind, and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text that anyone may have written.

    Raises :class:`FileFault` if it is not JSON, is nested too deep, or has a number of too many digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in error.doc else ""
        raise FileFault(f"is not JSON: {error.msg}: {line}column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise FileFault(f"is not JSON: {shown(str(error))}") from error


def read_bytes(path: Path, *, most_bytes: int) -> bytes:
    """The content of a file. Raises :class:`FileFault` for more than ``most_bytes``, and OSError."""
    with open(path, "rb") as file:
        long = os.fstat(file.fileno()).st_size > most_bytes
        content = b"" if long else file.read(most_bytes + 1)  # of a pipe the size is not known
    if long or len(content) > most_bytes:
        raise FileFault(f"has more than {most_bytes:,} bytes")
    return content


def read_text(path: Path, *, most_bytes: int, file_names: bool = False) -> str:
    """The text of a file: UTF-8, or what its byte order mark says; with line ends as they are.

    With ``file_names``, bytes that are no UTF-8 become what ``os.fsdecode`` makes of them, so that a name still
    finds its file. Raises :class:`FileFault` for other bytes and for more than ``most_bytes``, and OSError.
    """
    content = read_bytes(path, most_bytes=most_bytes)
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding, "surrogateescape" if file_names and encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise FileFault(
            f"is no {encoding.removesuffix('-sig').upper()} text (byte {error.start:,})"
        ) from error
    if "\0" in text:
        raise FileFault(
            "is no text: it has zero bytes (UTF-16 is read where it begins with a byte order mark)"
        )
    return text
