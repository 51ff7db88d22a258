"""How a flag is declared: a dataclass field with its help text and its range beside it. Imports no torch."""

from __future__ import annotations

import contextlib
import difflib
import math
import operator
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NewType, get_args, get_origin, get_type_hints

from snnet.errors import UserError
from snnet.files.paths import expand_home
from snnet.files.text import shown

FileName = NewType("FileName", str)  # of a file or a folder; a leading ~ is the user's home


@dataclass(frozen=True)
class Option:
    """A declared field, as the command line and YAML see it."""

    help: str
    range: str = ""  # that a number must lie in, such as ">= 0 and < 1"
    prefix: str | None = None  # begins words that are allowed beside those of a choice
    metavar: str | None = None
    lacking: str | None = None  # the error where the field is not given, for one without default
    given_flag: str | None = None  # where it is not the name of the field; "" for an argument without flag
    name: str = ""
    group: str = ""  # of the configuration; "" for a flag that one command has for itself
    type: Any = None
    default: Any = None

    @property
    def flag(self) -> str:
        """``--data-dir`` for the field ``data_dir``."""
        return "--" + self.name.replace("_", "-") if self.given_flag is None else self.given_flag

    @property
    def kind(self) -> Any:
        """The type of a value other than None."""
        kinds = get_args(self.type)
        return next(kind for kind in kinds if kind is not NoneType) if NoneType in kinds else self.type

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that the value may be; empty where it is no choice of words."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def nothing(self) -> str | None:
        """The word for None; None where None is no value."""
        return ("auto" if self.kind is bool else "none") if NoneType in get_args(self.type) else None

    def text(self, value: Any) -> str:
        """``value`` as help texts show it."""
        if isinstance(value, bool):
            return "on" if value else "off"
        return str(self.nothing if value is None else value)

    def read(self, word: str) -> Any:
        """The value that a word of a command line stands for."""
        value: Any = word
        if self.kind is int:
            with contextlib.suppress(ValueError):
                value = int(word)
        return self.checked(value, self.flag)

    def checked(self, value: Any, where: str) -> Any:
        """``value`` as the option's type, in the ways that YAML and the command line write it.

        Raises :class:`~snnet.errors.UserError` naming ``where`` it stands if it is of another type.
        """
        if self.choices and isinstance(value, bool):  # YAML's words on and off
            value = self.text(value)
        if self.nothing and (value is None or (isinstance(value, str) and value.lower() == self.nothing)):
            return None
        if self.choices:
            if value not in self.choices and not (self.prefix and str(value).startswith(self.prefix)):
                hint = suggestion(shown(value), self.choices)
                raise UserError(
                    f"{where}: must be one of {', '.join(self.choices)}, got '{shown(value)}'{hint}"
                )
            return value
        if self.kind is float and type(value) in (int, float, str):
            with contextlib.suppress(ValueError, OverflowError):
                return float(value)  # from an integer, and from 1e-3, which YAML takes for text
        if self.kind in (FileName, Path) and isinstance(value, str):
            if not value:  # to Path it is the current folder
                raise UserError(f"{where}: must be the name of a file or folder, got ''")
            return Path(expand_home(value)) if self.kind is Path else expand_home(value)
        needed = _NEEDED.get(self.type) or _NEEDED[self.kind]
        if type(value) is not self.kind:
            raise UserError(f"{where}: must be {needed}, got '{shown(value)}'")
        if type(value) is int and value.bit_length() > 63:
            raise UserError(f"{where}: must be {needed} of at most 63 bits, got '{shown(value)}'")
        return value

    def check_range(self, value: Any) -> None:
        """Raise :class:`~snnet.errors.UserError` naming the flag where a number lies outside of its range."""
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{self.flag} must be a finite number, got {value}")
        bounds = re.findall(r"([<>]=?) (\S+)", self.range)
        if value is not None and not all(_MEETS[sign](value, float(bound)) for sign, bound in bounds):
            raise UserError(f"{self.flag} must be {self.range}, got {value}")


_MEETS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_NEEDED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    bool | None: "true, false or auto",
    str: "text",
    str | None: "text or null",
    FileName | None: "text or null",
}


def option(default: Any, help: str, range: str = "", *, flag: str | None = None, **more: str) -> Any:
    """A field of a dataclass that is a flag.

    ``default`` is a value, a function that makes it, or MISSING; the rest is as in :class:`Option`.
    """
    metadata = {"option": Option(help, range, given_flag=flag, **more)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(cls: type, group: str = "") -> dict[str, Option]:
    """The flags that a dataclass declares, by the names of their fields."""
    types = get_type_hints(cls)
    return {
        f.name: replace(f.metadata["option"], name=f.name, group=group, type=types[f.name], default=f.default)
        for f in fields(cls)
        if f.metadata
    }


def suggestion(word: str, known: Collection[str]) -> str:
    """What an error about ``word`` ends with: the known word that it may have been, if there is one."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
