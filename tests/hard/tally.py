"""What an attack counts: tries and failures of each kind, and the first failures in words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TextIO

KEPT_FAILURES = 200  # different ones of each kind, in words
SHOWN_FAILURES = 12  # the most frequent of them
LONGEST = 240  # characters of one
LONGEST_OUTPUT = 6000  # characters of what was printed, from its end


@dataclass
class Tally:
    """Counts by kind. ``notes`` are counts that are worth a look and are no failures."""

    tries: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    words: dict[str, dict[str, list]] = field(default_factory=dict)  # what went wrong: how often, where first
    told: ClassVar[TextIO | None] = (
        None  # where a failure is told when it happens: a run that is stopped has no table
    )

    def tried(self, kind: str, count: int = 1) -> None:
        self.tries[kind] = self.tries.get(kind, 0) + count

    def failed(self, kind: str, problem: str, where: str, output: str = "") -> None:
        """One more failure: ``problem`` is what went wrong, ``where`` how to have it again, ``output`` all it printed.

        The first of its problem is told at once, with all of it.
        """
        self.failures[kind] = self.failures.get(kind, 0) + 1
        first = self._said(kind, problem.replace("\n", " / ")[:LONGEST], 1, where)
        if first and self.told is not None:
            lines = [f"FAILED {kind}: {problem}", where, *output[-LONGEST_OUTPUT:].splitlines()]
            print("\n  ".join(lines), file=self.told, flush=True)

    def _said(self, kind: str, problem: str, count: int, where: str) -> bool:
        """Whether it is a problem of its own."""
        said = self.words.setdefault(kind, {})
        if problem in said:
            said[problem][0] += count
        elif len(said) < KEPT_FAILURES:
            said[problem] = [count, where]
            return True
        return False

    def noted(self, note: str) -> None:
        self.notes[note] = self.notes.get(note, 0) + 1

    def add(self, other: Tally) -> None:
        for own, others in (
            (self.tries, other.tries),
            (self.failures, other.failures),
            (self.notes, other.notes),
        ):
            for kind, count in others.items():
                own[kind] = own.get(kind, 0) + count
        for kind, said in other.words.items():
            for problem, (count, where) in said.items():
                self._said(kind, problem, count, where)

    def total_failures(self) -> int:
        return sum(self.failures.values())

    def table(self) -> str:
        """One row a kind: what, tries, failures; then the failures in words, then the notes."""
        kinds = [*self.tries, *(kind for kind in self.failures if kind not in self.tries)]
        width = max([len(kind) for kind in kinds] + [5])
        lines = [f"{'what':<{width}}  {'tries':>10}  {'failures':>8}"]
        lines += [
            f"{kind:<{width}}  {self.tries.get(kind, 0):>10,}  {self.failures.get(kind, 0):>8,}"
            for kind in sorted(kinds)
        ]
        lines.append(f"{'all':<{width}}  {sum(self.tries.values()):>10,}  {self.total_failures():>8,}")
        for kind in sorted(self.words):
            often = sorted(self.words[kind].items(), key=lambda item: -item[1][0])[:SHOWN_FAILURES]
            lines += [f"{kind}: {count} x {problem} ({where})" for problem, (count, where) in often]
        lines += [f"note: {note}: {count:,}" for note, count in sorted(self.notes.items())]
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self)), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Tally:
        return Tally(**json.loads(path.read_text(encoding="utf-8")))
