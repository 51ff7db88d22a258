"""What pages are made of: the style sheet, tables, notes, numbers in words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from snnet.reporting.drawing import DARK, LIGHT


def style() -> str:
    """The style sheet, with the colours of light and dark screens."""

    def variables(colors: dict[str, str]) -> str:
        return "".join(f"--{name}:{color};" for name, color in colors.items())

    # Paper is white, whatever the screen is.
    return (
        f":root{{{variables(LIGHT)}}}"
        f"@media screen and (prefers-color-scheme: dark){{:root{{{variables(DARK)}}}}}\n"
        + files("snnet.reporting").joinpath("page.css").read_text(encoding="utf-8")
    )


def table(about: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, html: bool = False) -> str:
    """A table whose first column names the rows; columns of numbers stand to the right."""
    numbers = [
        all(_is_number(row[column]) for row in rows) and any(row[column] for row in rows)
        for column in range(len(head))
    ]
    kinds = [' class="number"' if number and place else "" for place, number in enumerate(numbers)]
    cells = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' if name else f"<td{kind}></td>"
        for name, kind in zip(head, kinds, strict=True)
    )
    lines = []
    for row in rows:
        first, *others = row if html else map(escape, row)
        values = "".join(f"<td{kind}>{value}</td>" for value, kind in zip(others, kinds[1:], strict=True))
        lines.append(f'<tr><th scope="row">{first}</th>{values}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(about)}"><table>'
        f"<caption>{escape(about)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _is_number(text: str) -> bool:
    return not text or text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()


def note(text: str) -> str:
    """A sentence about what is not there."""
    return f'<p class="note">{escape(text)}</p>'


def percent(fraction: float, unit: str = " %") -> str:
    """A fraction in percent."""
    return f"{100 * fraction:.1f}{unit}"


def duration(seconds: float) -> str:
    """A time in its largest two units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
