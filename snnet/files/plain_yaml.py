"""YAML of plain values only. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from snnet.files.text import FileFault, read_text, shown

MOST_BYTES = 1 << 16
MOST_DEPTH = 4
_TAG = "tag:yaml.org,2002:"
_SCALARS = tuple(_TAG + name for name in ("null", "bool", "int", "float"))
_TAGS = (None, *_SCALARS, *(_TAG + name for name in ("str", "seq", "map")))


def load_plain_yaml(path: Path) -> Any:
    """The value that a YAML file holds: null, truth values, numbers, text, and lists and mappings of them.

    No dates (they are text), no aliases, no other tags, no key twice; at most 64 KiB and 4 levels. Raises
    :class:`~snnet.files.text.FileFault` for anything else, and OSError.
    """
    text = read_text(path, most_bytes=MOST_BYTES)
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise FileFault(f"is not YAML: {shown(' '.join(str(error).split()), 300)}") from error
    # PyYAML does not catch what Python's own conversions raise, as for an empty number or one of 5,000 digits.
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError) as error:
        raise FileFault(
            f"is not YAML: a value is not of its type ({shown(str(error).splitlines()[0])})"
        ) from error


class _PlainLoader(yaml.SafeLoader):
    """Refuses while it reads, before anything is built: aliases, depth, tags."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _SCALARS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(event, f"an alias (*{shown(event.anchor)}) is not read")
        if event.tag not in _TAGS:
            raise _refusal(event, f"a value of the kind {shown(event.tag)} is not read")
        if self._depth == MOST_DEPTH:
            raise _refusal(event, f"more than {MOST_DEPTH} levels are not read")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _refusal(key, f"the key '{shown(key.value)}' is there twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _refusal(place: Any, what: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, place.start_mark)
