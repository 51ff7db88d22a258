"""``python -m snnet``: which commands there are. Imports no torch."""

from __future__ import annotations

import sys

from snnet.config.fields import suggestion
from snnet.errors import UserError
from snnet.system.command import run_command
from snnet.system.terminal import answer, open_streams

COMMANDS = {
    "train": "train a network on images without labels",
    "report": "write one HTML page about a run",
    "evaluate": "rank a gallery where identities are known: CMC and mAP",
    "search": "find the crops of a gallery that are most similar to a query",
    "extract": "write the features of images to a file",
    "label": "predict pseudo labels from a file of features",
    "export": "write a trained network as ONNX, or its weights",
}


def main(arguments: list[str]) -> None:
    """Print the commands; :class:`~snnet.errors.UserError` where something else is asked for."""
    asked = next((word for word in arguments if word not in ("-h", "--help")), None)
    if asked in COMMANDS:
        raise UserError(f"the name of this command has a dot: python -m snnet.{asked}")
    if asked is not None:
        raise UserError(
            f"unknown command '{asked}'{suggestion(asked, COMMANDS)} (python -m snnet lists the commands)"
        )
    lines = (f"  python -m snnet.{name:<9} {text}" for name, text in COMMANDS.items())
    answer("commands, each with --help:", *lines)


if __name__ == "__main__":
    open_streams()
    run_command(lambda: main(sys.argv[1:]))
