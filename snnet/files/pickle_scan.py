"""What a pickle would do, looked at before ``torch.load`` does it.

``torch.load(weights_only=True)`` runs no code of a file's, yet a few hundred bytes can make it take all memory or
hang: ``bytearray(10**11)``, text encoded as hexadecimal digits again and again, a dict whose key is a tuple of
tuples of tuples that are all the same one.
"""

from __future__ import annotations

import pickletools
from typing import IO, Any

from snnet.files.text import FileFault

LARGEST_TUPLE = 1_000_000  # entries, those of inner tuples counted each time that they are in it
_ALLOCATING = {"builtins bytearray", "__builtin__ bytearray", "_codecs encode"}
# Codecs from bytes to bytes: only these can be repeated.
_GROWING = {"hex", "base64", "base_64", "uu", "quopri", "quoted_printable", "quotedprintable"}
_PUSHES = {
    "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BININT", "BININT1",
    "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1", "GLOBAL",
}  # fmt: skip
_POPS = {"APPEND": 1, "SETITEM": 2, "REDUCE": 1, "NEWOBJ": 1, "BUILD": 1, "BINPERSID": 0, "PROTO": 0}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def scan_pickle(file: IO[bytes]) -> bool:
    """Read one pickle from ``file``, building nothing; raises :class:`FileFault` where it could do harm.

    It knows the operations that ``torch.load(weights_only=True)`` knows. At any other one the scan ends, as torch does
    there, and returns False. Raises ValueError where the bytes are no pickle.
    """
    stack: list[int] = []  # the entries of each object, where it is a tuple; else 1
    marks: list[int] = []
    memo: dict[int, int] = {}
    encodes, growing = False, False
    try:
        argument: Any
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            if name in _PUSHES:
                stack.append(1)
                if name == "GLOBAL":
                    encodes |= argument == "_codecs encode"
                    if argument in _ALLOCATING and not encodes:
                        raise FileFault(
                            "is refused: it holds a bytearray, which is no tensor and no plain value"
                        )
                elif isinstance(argument, str):
                    growing |= argument.lower().replace("-", "_").removesuffix("_codec") in _GROWING
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MARK":
                marks.append(len(stack))
            elif name in _TUPLES:
                count = _TUPLES[name]
                stack[-count:] = [1 + sum(stack[-count:])]
            elif name in ("TUPLE", "APPENDS", "SETITEMS"):
                mark = marks.pop()
                entries = 1 + sum(stack[mark:])
                del stack[mark:]
                if name == "TUPLE":
                    stack.append(entries)
            elif name in _POPS:
                del stack[len(stack) - _POPS[name] :]
                if name in ("REDUCE", "NEWOBJ", "BINPERSID"):
                    stack[-1] = 1
            else:
                return name == "STOP"
            if stack and stack[-1] > LARGEST_TUPLE:
                raise FileFault(f"is refused: a tuple in it has more than {LARGEST_TUPLE:,} entries")
            if encodes and growing:
                raise FileFault("is refused: it encodes bytes, which are no tensor and no plain value")
    except (IndexError, KeyError) as error:
        raise ValueError("its pickle takes what is not there") from error
    return False
