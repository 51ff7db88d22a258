"""How a flag is declared: a dataclass field with its help text and its range beside it. Imports no torch."""

from __future__ import annotations

import contextlib
import difflib
import operator
import re
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NewType, get_args, get_origin, get_type_hints

from snnet.errors import UserError
from snnet.files.paths import expand_home
from snnet.files.text import shown

FileName = NewType("FileName", str)  # of a file or a folder; a leading ~ is the user's home

# How help texts name a value of each kind, and what errors say is needed.
_WORDS = {
    int: ("INT", "a whole number"),
    float: ("NUMBER", "a number"),
    bool: ("", "true or false"),
    str: ("TEXT", "text"),
    FileName: ("PATH", "the name of a file or folder"),
    Path: ("PATH", "the name of a file or folder"),
}
_MEETS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Option:
    """A declared field, as the command line and YAML see it."""

    name: str
    group: str  # of the configuration; "" for a flag that one command has for itself
    type: Any
    default: Any  # MISSING where it must be given
    flag: str  # "" for an argument without flag
    help: str
    range: str = ""  # that a number must lie in, such as ">= 0 and < 1"
    prefix: str = ""  # begins words that are allowed beside those of a choice
    metavar: str = ""  # stands for the value in help texts, where that is not said by its type

    @property
    def kind(self) -> Any:
        """The type of a value other than None."""
        kinds = get_args(self.type)
        return next(kind for kind in kinds if kind is not NoneType) if NoneType in kinds else self.type

    @property
    def word_for_none(self) -> str:
        """The word for None; empty where None is no value."""
        return ("auto" if self.kind is bool else "none") if NoneType in get_args(self.type) else ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that the value may be; empty where it is no choice of words."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def placeholder(self) -> str:
        """What stands for the value in help texts."""
        return self.metavar or "|".join(self._words) or _WORDS[self.kind][0]

    @property
    def _words(self) -> list[str]:
        return [*self.choices, *([f"{self.prefix}NAME"] if self.prefix else [])]

    def text(self, value: Any) -> str:
        """``value`` as help texts show it."""
        if isinstance(value, bool):
            return "on" if value else "off"
        return self.word_for_none if value is None else str(value)

    def checked(self, value: Any, where: str) -> Any:
        """``value`` as the option's type, in the ways that YAML and the command line write it.

        Raises :class:`~snnet.errors.UserError` naming ``where`` it stands if it is of another type or out of range.
        """
        if self.choices and isinstance(value, bool):  # YAML's words on and off
            value = self.text(value)
        if self.word_for_none and (
            value is None or (isinstance(value, str) and value.lower() == self.word_for_none)
        ):
            return None
        if type(value) in {int: (str,), float: (int, str)}.get(self.kind, ()):  # YAML takes 1e-3 for text
            with contextlib.suppress(ValueError, OverflowError):
                value = self.kind(value)
        if self.choices:
            named = self.prefix and isinstance(value, str) and value.startswith(self.prefix)
            fits = value in self.choices or bool(named)
        elif self.kind in (FileName, Path):
            fits = isinstance(value, str) and value != ""  # to Path it would be the current folder
        else:
            fits = type(value) is self.kind and self._in_range(value)
        if not fits:
            hint = suggestion(shown(value), self.choices)
            raise UserError(f"{where}: must be {self._needed()}, got '{shown(value)}'{hint}")
        if self.kind in (FileName, Path):
            value = expand_home(value)
        return Path(value) if self.kind is Path else value

    def _in_range(self, value: Any) -> bool:
        bounds = re.findall(r"([<>]=?) (\S+)", self.range)
        return all(_MEETS[sign](value, float(bound)) for sign, bound in bounds)

    def _needed(self) -> str:
        """What the value must be, in words."""
        words = "one of " + ", ".join(self._words) if self.choices else _WORDS[self.kind][1]
        return " ".join([words, self.range]).rstrip() + (
            f", or {self.word_for_none}" if self.word_for_none else ""
        )


def option(default: Any, help: str, range: str = "", **more: str) -> Any:
    """A field of a dataclass that is a flag.

    ``default`` is a value, a function that makes it, or MISSING; the rest is as in :class:`Option`.
    """
    metadata = {"help": help, "range": range, **more}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(cls: type, group: str = "") -> dict[str, Option]:
    """The flags that a dataclass declares, by the names of their fields; ``data_dir`` is ``--data-dir``."""
    types = get_type_hints(cls)
    found = {}
    for f in fields(cls):
        if f.metadata:
            default = f.default if f.default_factory is MISSING else f.default_factory
            said = {"flag": "--" + f.name.replace("_", "-"), **f.metadata}
            found[f.name] = Option(f.name, group, types[f.name], default, **said)
    return found


def suggestion(word: str, known: Collection[str]) -> str:
    """What an error about ``word`` ends with: the known word that it may have been, if there is one."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
