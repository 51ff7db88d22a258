"""What a command declares, and how its command line is read. Imports no torch.

By argparse: of jsonargparse, tyro, simple-parsing and pydantic-settings none reports a wrong value on one line.
"""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import MISSING, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from snnet.config.fields import Option, option, options_of, suggestion
from snnet.config.options import GROUPS, OPTIONS, config_from, members
from snnet.config.resolve import PRESETS, load_yaml
from snnet.errors import UserError
from snnet.files.run_files import CHECKPOINT_FILE, CONFIG_FILE
from snnet.system.terminal import OutputLost

if TYPE_CHECKING:
    from typing_extensions import Self

_FLAGS_FOR_RUNS = ("--checkpoint", "--resume")  # of these a command has one, or none


@dataclass(frozen=True, kw_only=True)
class Command:
    """A parsed command line.

    A subclass is a command: its docstring is the beginning of its help, its fields that :func:`option` declares
    are the flags that it alone has.
    """

    module: ClassVar[str]
    usage: ClassVar[str] = "[flags]"
    shared: ClassVar[tuple[str, ...]]  # the options of the configuration that are its flags too
    without_default: ClassVar[tuple[str, ...]] = ()  # those of them that must be named

    quiet: bool = option(
        False, "no progress bars and no lines about what is being done: results, warnings and errors only"
    )
    given: dict[str, Any] = field(default_factory=dict)  # the shared options that were given

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        """The command that ``arguments`` ask for, checked as far as that goes without opening its files.

        Raises :class:`~snnet.errors.UserError`, and SystemExit after --help.
        """
        given = _parser(cls).parse(arguments)
        own = {name: given.pop(name) for name in options_of(cls) if name in given}
        for name, declared in options_of(cls).items():
            if declared.default is MISSING and own.get(name) is None:
                raise UserError(
                    f"{declared.flag} {declared.placeholder} is missing: {declared.help}".lstrip()
                )
        return cls(**own, given=given).completed()

    def completed(self) -> Self:
        """The command with what follows from its flags. Raises where they contradict each other."""
        config_from(self.given)
        return self


class _Parser(argparse.ArgumentParser):
    """Whatever is wrong is one line, with what may have been meant."""

    def parse(self, arguments: list[str]) -> dict[str, Any]:
        """What was given, by the names of the fields."""
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            word = next((u for u in unknown if u.startswith("-")), unknown[0]).split("=")[0]
            kind = "unknown flag" if word.startswith("-") else "unexpected argument"
            raise UserError(f"{kind} '{word}'{self._meant(word)} (--help lists the flags)")
        return vars(given)

    def _meant(self, word: str) -> str:
        """What an error about an unknown ``word`` ends with: how this command takes a run, or a similar flag."""
        flags = self._option_string_actions
        for_runs = next((flag for flag in _FLAGS_FOR_RUNS if flag in flags), None)
        if word in _FLAGS_FOR_RUNS and for_runs is not None:
            return f"; did you mean '{for_runs}'?"
        if word in _FLAGS_FOR_RUNS and any(action.metavar == "RUN" for action in self._actions):
            return "; give RUN without a flag"
        is_run = os.path.isfile(Path(word, CONFIG_FILE)) or Path(word).name == CHECKPOINT_FILE
        if for_runs is not None and is_run:
            return f"; did you mean {for_runs} {shlex.quote(word)}?"
        return suggestion(word, flags)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the help; argparse itself goes on where stdout does not take it."""
        try:
            print(message, end="", file=file, flush=True)
        except OSError as error:
            raise OutputLost(error) from error

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        flag = message.removesuffix(": expected one argument")
        if flag in self._option_string_actions:
            action = self._option_string_actions[flag]
            text = (action.help or "").replace("%%", "%")
            raise UserError(f"{flag} needs a value ({action.metavar}): {text}")
        raise UserError(message)


def _parser(command: type[Command]) -> _Parser:
    """The flags that the command has for itself, then those of the configuration in their groups."""
    prog = f"python -m {command.module}"
    parser = _Parser(
        prog,
        f"{prog} {command.usage}",
        command.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for declared in options_of(command).values():
        _add(parser, declared, {})
    synthetic = load_yaml(PRESETS / "synthetic.yaml") if "dataset" in command.shared else {}
    for group, cls in GROUPS.items():
        names = [name for name in members(group) if name in command.shared]
        section = parser.add_argument_group(group, cls.__doc__) if names else parser
        for name in names:
            declared = OPTIONS[name]
            if name in command.without_default:
                declared = replace(declared, default=MISSING)
            _add(section, declared, synthetic)
    return parser


def _add(section: argparse._ActionsContainer, declared: Option, synthetic: dict[str, Any]) -> None:
    """Add one flag, or an argument without flag; ``synthetic`` has the values of the preset of that name."""
    words: dict[str, Any] = {"help": _help(declared, synthetic).replace("%", "%%")}
    if declared.kind is bool:
        words["action"] = argparse.BooleanOptionalAction if declared.group else "store_true"
    else:
        words["metavar"] = declared.placeholder
        words["type"] = partial(declared.checked, where=declared.flag or declared.placeholder)
    if declared.flag:
        section.add_argument(declared.flag, dest=declared.name, **words)
    else:  # with SUPPRESS argparse would pass that very word as the value of an absent argument
        section.add_argument(declared.name, nargs="?", default=None, **words)


def _help(declared: Option, synthetic: dict[str, Any]) -> str:
    """With the default unless the text names it, and the value of the preset ``synthetic`` where that is another."""
    default, value = declared.default, synthetic.get(declared.name, declared.default)
    if "default" in declared.help or default is MISSING or (not declared.group and default in (None, False)):
        return declared.help
    preset = "" if value == default else f"; preset synthetic: {declared.text(value)}"
    return f"{declared.help} (default {declared.text(default)}{preset})"
