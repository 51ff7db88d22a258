"""Damaged files of every format that the package reads.

Each is refused with one line within bounds of time and memory, or read as exactly what was written. Texts that a
person may write are read as what they then say, and formats without a checksum may come out as other content of
their kind: that is counted as a note.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from snnet.system.progress import set_quiet
from tests.hard import damage
from tests.hard.bombs import Try, bombs
from tests.hard.formats import Format, all_formats, same
from tests.hard.isolation import outcomes
from tests.hard.share import Share
from tests.hard.tally import Tally

FILES = 3000  # at full size


def attack(share: Share) -> Tally:
    """Damaged files of each format in turn, and the bombs."""
    tally = Tally()
    set_quiet(True)
    warnings.simplefilter("ignore")  # images may be left out, caches be made again
    damage_all(share, all_formats(share.folder), tally)
    if share.part == 0:
        explode(bombs(share.folder / "bombs"), tally)
    return tally


def damage_all(share: Share, formats: list[Format], tally: Tally) -> None:
    """As many damaged files as the share has, of the formats in turn."""
    tries, words = [], []
    sound = {format.name: format.read() for format in formats}
    for number in share.numbers(FILES):
        format = formats[number // share.parts % len(formats)]
        how, one = _try(share.random(5, number), format, sound[format.name])
        tries.append(one)
        words.append((format, how, f"seed {share.seed} file {number}"))
    for (format, how, where), (word, text, trace) in zip(words, outcomes(tries), strict=True):
        _count(tally, format, how, where, word, text, trace)


def explode(exploding: list[Try], tally: Tally) -> None:
    """Read every bomb."""
    for (name, _), (word, text, trace) in zip(
        exploding, outcomes([one for _, one in exploding]), strict=True
    ):
        tally.tried("bombs")
        if word == "failure":
            tally.failed("bombs", f"{name}: {text}", name, trace)


def _try(random: np.random.Generator, format: Format, sound: Any) -> tuple[str, Callable[[], str]]:
    """How the file goes bad, and a function that puts the bad file in place, reads it and puts the sound one back."""
    content = format.file.read_bytes()
    how, bad = damage.damaged(random, content, text=format.strictness == "text")
    if how in ("swapped_members", "lost_member") and not format.own:  # whoever wrote it may have meant it
        how, bad = "flipped", damage.flipped(random, content)

    def read() -> str:
        _write(format.file, bad)
        try:
            found = format.read()
            return "sound" if bad == content or same(found, sound) else "other"
        finally:
            _write(format.file, content)

    return how, read


def _write(path: Path, content: bytes) -> None:
    """In place and with the time stamps of before: what reads it goes by its content alone."""
    stat = os.stat(path)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _count(tally: Tally, format: Format, how: str, where: str, word: str, text: str, trace: str) -> None:
    kind = f"damaged {format.name}"
    tally.tried(kind)
    if word == "failure":
        tally.failed(kind, f"{how}: {text}", where, trace)
    elif word == "other" and format.strictness == "checked":
        tally.failed(kind, f"{how}: other content was used silently", where)
    elif word == "other":
        tally.noted(f"{format.name}: read as other content")
