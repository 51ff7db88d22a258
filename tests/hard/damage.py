"""Ways in which the bytes of a file go bad."""

from __future__ import annotations

import io
import re
import zipfile

import numpy as np

Random = np.random.Generator
MARKS = re.compile("metadata|digest|checksum|sha256")  # names of members that hold a file's digest


def damaged(random: Random, content: bytes, text: bool = False) -> tuple[str, bytes]:
    """``content`` after one kind of damage, and which."""
    ways = [flipped, flipped, flipped, truncated, zeroed, exchanged, overwritten, repeated]
    if text:
        ways += [hostile_text, hostile_text]
    elif zipfile.is_zipfile(io.BytesIO(content)):
        ways += [swapped_members, lost_member]
    way = ways[random.integers(len(ways))]
    return way.__name__, way(random, content)


def flipped(random: Random, content: bytes) -> bytes:
    """One bit."""
    changed = bytearray(content)
    place = int(random.integers(8 * len(changed)))
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def truncated(random: Random, content: bytes) -> bytes:
    return content[: int(random.integers(len(content)))]


def _range(random: Random, content: bytes) -> tuple[int, int]:
    length = min(len(content), int(2 ** random.uniform(0, 12)))
    start = int(random.integers(len(content) - length + 1))
    return start, start + length


def zeroed(random: Random, content: bytes) -> bytes:
    """A range, as a disk leaves it whose blocks were never written."""
    start, end = _range(random, content)
    return content[:start] + bytes(end - start) + content[end:]


def exchanged(random: Random, content: bytes) -> bytes:
    """Two ranges of one length in each other's place."""
    (a, b), size = _range(random, content), len(content)
    c = int(random.integers(size - (b - a) + 1))
    changed = bytearray(content)
    changed[a:b], changed[c : c + b - a] = content[c : c + b - a], content[a:b]
    return bytes(changed)


def overwritten(random: Random, content: bytes) -> bytes:
    start, end = _range(random, content)
    return content[:start] + random.bytes(end - start) + content[end:]


def repeated(random: Random, content: bytes) -> bytes:
    """A range twice, so that what follows is shifted."""
    start, end = _range(random, content)
    return content[:end] + content[start:]


def _members(content: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def _zipped(members: list[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for info, data in members:
            archive.writestr(info.filename, data, info.compress_type)
    return file.getvalue()


def swapped_members(random: Random, content: bytes) -> bytes:
    """A zip file, sound by its checksums, in which two members have each other's content."""
    members = _members(content)
    if len(members) < 2:
        return flipped(random, content)
    a, b = random.choice(len(members), 2, replace=False)
    members[a], members[b] = (members[a][0], members[b][1]), (members[b][0], members[a][1])
    return _zipped(members)


def lost_member(random: Random, content: bytes) -> bytes:
    """A zip file, sound by its checksums, without one of its members.

    Not without the one that says who wrote it: what is left would be a sound file of somebody else's.
    """
    members = _members(content)
    others = [place for place, (info, _) in enumerate(members) if not MARKS.search(info.filename)]
    if not others:
        return flipped(random, content)
    del members[others[random.integers(len(others))]]
    return _zipped(members)


# Words that YAML, JSON or a terminal takes for something else than text.
HOSTILE_TEXTS = (
    b"2024-13-45", b"!!int ''", b"!!float ''", b"!!timestamp ''", b"9" * 5000, b"1e999", b"-1e999", b".nan", b"NaN",
    b"Infinity", b"null", b"true", b"[" * 3000, b"{" * 3000, b"[[[[[[[[1]]]]]]]]", b"&a [*a]", b"*b",
    b"!!python/name:os.system", b"!!set {a, b}", b"<<: 3", b"? [a, b] : c", b"\x00", b"\xff\xfe", b"\xed\xa0\x80",
    b"\x1b[2J", b"\x85", b'"\\ud800"', b"0x7fffffffffffffffffff", b"1_0", b"0o17", b"1:30:00", b"=", b"|", b">",
    b"- ", b": ", b"\t", b"'", b'"', b"%YAML 9.9\n---\n",
)  # fmt: skip


def hostile_text(random: Random, content: bytes) -> bytes:
    """One word of a text, or a place between two lines, taken by something that a parser may choke on."""
    text = HOSTILE_TEXTS[random.integers(len(HOSTILE_TEXTS))]
    lines = content.split(b"\n")
    place = int(random.integers(len(lines)))
    words = lines[place].split(b" ")
    words[int(random.integers(len(words)))] = text
    lines[place] = b" ".join(words)
    return b"\n".join(lines)
