"""The report as one HTML page: nothing is loaded, nothing is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from snnet.config.options import GROUPS, OPTIONS, config_from, flatten, members
from snnet.files.own_files import REPORT_MARK
from snnet.reporting.colors import DARK, LIGHT
from snnet.reporting.curves import Chart, epochs
from snnet.reporting.list_rows import Row
from snnet.reporting.ranked import RankedGallery
from snnet.reporting.run import Run
from snnet.system.terminal import printable
from snnet.training.runlog import RANKS
from snnet.training.timing import total_by_part

RANK_NAMES = {"rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mAP": "mAP", "mINP": "mINP"}


@dataclass
class Contents:
    """What a report shows."""

    run: Run
    charts: dict[str, Chart] = field(default_factory=dict)  # by name
    svg: dict[str, str] = field(default_factory=dict)  # each of them as an SVG element
    checkpoint_epochs: int = 0  # done when it was written; images are ranked and labelled by it
    retrieval: RankedGallery | None = None
    lists: dict[str, list[Row]] = field(default_factory=dict)  # ranked_lists, failures and pseudo_labels
    identities_known: bool = False  # those of the training images
    missing: dict[str, str] = field(default_factory=dict)  # of ranked and labels: why it is not shown


def page(contents: Contents) -> str:
    """The whole page."""
    run = contents.run
    done, planned = len(run.records), epochs(run.config.training.epochs)
    text = _template().render(
        vars(contents) | _results(contents) | _time(run) | _configuration(run),
        config=run.config,
        title=run.folder.resolve().name,
        checkpoint=f"checkpoint after {epochs(contents.checkpoint_epochs)}",
        state=f"{planned}, finished" if run.finished else f"{done} of {planned} done",
        figures=_figures(run),
        starts=[_start(start) for start in run.starts],
        light=LIGHT,
        dark=DARK,
        mark=REPORT_MARK,
    )
    return text.lstrip()


@lru_cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html")


def visible(value: object) -> object:
    """Text whose characters that would not be seen, as of control and of direction, are written as escapes."""
    return value if isinstance(value, Markup) else printable(value)


def percent(fraction: float) -> str:
    """A fraction in percent."""
    return f"{100 * fraction:.1f}"


def duration(seconds: float) -> str:
    """A time in its largest two units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _figures(run: Run) -> list[tuple[str, str, str]]:
    """The numbers at the head of the page: name, value, remark."""
    found = []
    ranks = run.latest(*RANKS)
    for name in ("rank1", "mAP") if ranks else ():
        before = f", {percent(run.before[name])} % before training" if run.before else ""
        found.append((RANK_NAMES[name], f"{percent(ranks[name])} %", _after(ranks) + before))
    for name, words in (("label_precision", "label precision"), ("label_recall", "label recall")):
        if record := run.latest(name):
            found.append((words, f"{percent(record[name])} %", _after(record)))
    if run.records:
        total = sum(record["seconds"] for record in run.records)
        found.append(("training time", duration(total), f"{total / len(run.records):.1f} s an epoch"))
    return found


def _after(record: dict[str, float]) -> str:
    """When the metrics of an epoch were measured, in words."""
    return f"after {epochs(int(record['epoch']) + 1)}"


def _results(contents: Contents) -> dict[str, Any]:
    """The tables of ranks, and by camera."""
    run, known = contents.run, contents.run.before
    named = {"before training": known}
    named |= {_after(record): record for record in run.records if "mAP" in record}
    named["the last, re-ranked (k-reciprocal)"] = run.reranked
    about = "Percent."
    if known:
        about = f"Percent; {known['queries']:,} queries, mAP by the {known['average_precision']} definition."
        if run.config.output.single_gallery_shot:
            about += " CMC is of galleries with one image an identity."
        if unmatched := known["queries_without_match"]:
            about += f" {unmatched:,} more have no match in the gallery and do not count."
    cameras = contents.retrieval.cameras if contents.retrieval else ()
    return {
        "rank_names": list(RANK_NAMES.values()),
        "ranks_about": about,
        "ranks": [
            [name, *(percent(one[rank]) if rank in one else "" for rank in RANKS)]
            for name, one in named.items()
            if one
        ],
        "cameras": [
            [f"camera {camera}", f"{queries:,}", percent(rank1), percent(precision)]
            for camera, queries, rank1, precision in cameras
        ],
    }


def _time(run: Run) -> dict[str, Any]:
    """The table of the training steps' seconds, and the share of what is not the backbone's."""
    parts = total_by_part(run.records)
    together = sum(parts.values())
    total = together or 1.0  # nothing took any time
    own = sum(parts.get(name, 0.0) for name in ("labels+loss", "update"))
    rows = {**parts, "together": together} if parts else {}
    times = [
        [name, f"{s:,.1f}", f"{s / len(run.records):,.2f}", percent(s / total)] for name, s in rows.items()
    ]
    return {"own_share": percent(own / total), "times": times}


def _configuration(run: Run) -> dict[str, Any]:
    """All options in their groups, and those that differ from the defaults: flag, value, meaning."""
    values = flatten(run.config)
    defaults = flatten(config_from({}))
    rows = {name: [o.flag, o.text(values[name]), o.help] for name, o in OPTIONS.items()}
    return {
        "changed": [rows[name] for name, value in values.items() if value != defaults[name]],
        "options": {group: [rows[name] for name in members(group)] for group in GROUPS},
    }


def _start(start: dict[str, Any]) -> tuple[int, list[list[str]]]:
    """The first epoch that was trained there, and names with what they are; other kinds of values are passed over."""

    def plain(values: Any) -> dict[str, str]:
        found = values.items() if isinstance(values, dict) else ()
        return {name: str(value) for name, value in found if isinstance(value, (str, int, float))}

    rows = [[name.replace("_", " "), value] for name, value in plain(start).items() if name != "first_epoch"]
    if versions := plain(start.get("versions")):
        rows.append(["versions", ", ".join(f"{name} {value}" for name, value in versions.items())])
    backends = plain(start.get("backends"))
    for backend in dict.fromkeys(backends.values()):
        rows.append([f"served by {backend}", ", ".join(n for n, one in backends.items() if one == backend)])
    return start["first_epoch"], rows
