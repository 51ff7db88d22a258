"""Identities and cameras in the names of images, and the numbers that they stand for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snnet.errors import UserError

MINUS_SIGNS = "-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
_WHOLE_NUMBER = re.compile(rf"([{MINUS_SIGNS}]?)(\d{{1,18}})(?:\.0+)?")


@dataclass(frozen=True)
class NamePattern:
    """A regular expression with the groups ``pid`` and ``cam`` (either may be missing), searched in names."""

    text: str
    pid_required: bool = True

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.text).groupindex
        except re.error as error:
            raise UserError(f"name pattern {self.text!r} is not a regular expression: {error}") from error
        wanted = "pid" if self.pid_required else "cam"
        if wanted not in groups:
            raise UserError(f"name pattern {self.text!r} needs a group (?P<{wanted}>...)")

    def parse(self, name: str, folder: str, files: Sequence[str]) -> dict[str, list[str]]:
        """What the groups matched in each of ``files``: lists under "pid" and "cam", if it has that group.

        Raises:
            UserError: a name does not match, or a group matches nothing in it, or the identity leaves out the minus
                sign that the name begins with; the first is named.
        """
        expression = re.compile(self.text)
        values: dict[str, list[str]] = {key: [] for key in ("pid", "cam") if key in expression.groupindex}
        for file in files:
            match = expression.search(file)
            path = os.path.join(folder, file)
            if match is None or any(not (match[key] or "").strip() for key in values):
                raise UserError(f"dataset {name}: the name of {path!r} does not match {self.text!r}")
            if "pid" in values and _cuts_minus(file, match):
                raise UserError(
                    f"dataset {name}: {self.text!r} takes the identity {match['pid']!r} from {path!r} without the "
                    "minus sign before it, which marks junk; write (?P<pid>-?\\d+)"
                )
            for key, column in values.items():
                column.append(match[key])
        return values


def _cuts_minus(file: str, match: re.Match[str]) -> bool:
    """Whether a name begins with a minus sign and, behind that, the number found as its identity."""
    start = match.start("pid")
    return (
        os.path.basename(file)[:1] in tuple(MINUS_SIGNS)
        and start == len(file) - len(os.path.basename(file)) + 1
        and whole_number(match["pid"]) is not None
    )


def to_numbers(columns: Sequence[Sequence[str]], *, identities: bool = False) -> list[np.ndarray]:
    """int64 numbers for the strings of several splits, the same string always the same number.

    Where all are whole numbers, these; otherwise the distinct ones are counted from 0, sorted. Space around, leading
    zeros, ".0" behind and the kind of minus sign do not matter. With ``identities`` a negative number is junk, and
    is -1 whatever the others are.
    """
    key = {value: whole_number(value) for column in columns for value in column}
    distinct = {value.strip() if number is None else number for value, number in key.items()}
    if identities:
        distinct = {value for value in distinct if isinstance(value, str) or value >= 0}
    if any(isinstance(value, str) for value in distinct):
        place = {value: position for position, value in enumerate(sorted(distinct, key=str))}
    else:
        place = {value: int(value) for value in distinct}
    number_of = {
        value: place.get(value.strip() if number is None else number, -1) for value, number in key.items()
    }
    return [np.array([number_of[value] for value in column], dtype=np.int64) for column in columns]


def whole_number(text: str) -> int | None:
    """The whole number that a text is, whichever minus sign it has; None for any other text."""
    match = _WHOLE_NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    return -int(match[2]) if match[1] else int(match[2])
