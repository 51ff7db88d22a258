"""The report as one HTML page: nothing is loaded, nothing is run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from snnet.config import GROUPS, OPTIONS, config_from, flatten
from snnet.reporting.chart import Chart, draw, epochs
from snnet.reporting.drawing import to_svg
from snnet.reporting.elements import duration, note, percent, style, table
from snnet.reporting.pictures import Lists, caption, data_uri, describe, place, role
from snnet.reporting.ranked import RankedList, Retrieval, Shown
from snnet.reporting.run import Run
from snnet.runlog import RANKS
from snnet.timing import total_by_part

RANK_NAMES = {"rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mAP": "mAP", "mINP": "mINP"}


@dataclass
class Contents:
    """What a report shows.

    ``missing`` says in a sentence each what could not be shown, and why.
    """

    run: Run
    charts: Sequence[Chart] = ()
    retrieval: Retrieval | None = None
    ranked: Lists | None = None
    failures: Lists | None = None
    labels: Lists | None = None
    missing: dict[str, str] = field(default_factory=dict)


def page(contents: Contents) -> str:
    """The whole page."""
    sections = {
        "results": ("Results", _results(contents)),
        "training": ("Training", _training(contents)),
        "labels": ("Pseudo labels", _labels(contents)),
        "ranked": ("Ranked lists", _ranked(contents)),
        "failures": ("Hardest failures", _failures(contents)),
        "time": ("Time", _time(contents)),
        "configuration": ("Configuration", _configuration(contents.run)),
        "environment": ("Environment", _environment(contents.run)),
    }
    shown = {name: section for name, section in sections.items() if section[1]}
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in shown.items())
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{text}</section>'
        for name, (title, text) in shown.items()
    )
    title = escape(contents.run.folder.resolve().name)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}: training run</title><style>{style()}</style></head>"
        f'<body><header><p class="muted">Training run</p><h1>{title}</h1>{_summary(contents.run)}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f"<main>{body}</main>{_footer(contents)}</body></html>\n"
    )


def _footer(contents: Contents) -> str:
    if contents.ranked is None and contents.labels is None:
        return ""
    return (
        "<footer><p>The images may show real people: handle this page as the dataset's licence and the law "
        "demand.</p></footer>"
    )


def _summary(run: Run) -> str:
    config = run.config
    done, planned = len(run.records), config.training.epochs
    state = f"{epochs(planned)}, finished" if run.finished else f"{done} of {epochs(planned)} done"
    line = (
        f"{config.data.dataset} · {config.model.arch} · {config.data.height} × {config.data.width} pixels · "
        f"{state} · seed {config.runtime.seed}"
    )
    figures = []
    latest = run.after or _latest_ranks(run)
    for name in ("rank1", "mAP"):
        if latest:
            before = f"{percent(run.before[name])} before training" if run.before else ""
            figures.append((RANK_NAMES[name], percent(latest[name]), before))
    for name, words in (("label_precision", "label precision"), ("label_recall", "label recall")):
        value = run.last(name)
        if value is not None:
            figures.append((words, percent(value), "of the last epoch"))
    if run.records:
        total = sum(record["seconds"] for record in run.records)
        figures.append(("training time", duration(total), f"{total / done:.1f} s an epoch"))
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in figures
    )
    return f'<p class="muted">{escape(line)}</p><dl class="figures">{tiles}</dl>'


def _latest_ranks(run: Run) -> dict[str, float]:
    return next(({n: r[n] for n in RANKS} for r in reversed(run.records) if "mAP" in r), {})


def _results(contents: Contents) -> str:
    run = contents.run
    rows = [["before training", *_ranks(run.before)]] if run.before else []
    rows += [[f"after {epochs(int(r['epoch']) + 1)}", *_ranks(r)] for r in run.records if "mAP" in r]
    if run.reranked:
        rows.append(["the last, re-ranked (k-reciprocal)", *_ranks(run.reranked)])
    if not rows:
        return note("Nothing was evaluated: " + _why_no_ranks(run))
    known = run.after or run.before
    about = "Percent."
    if known:
        about = f"Percent; {known['queries']:,} queries, mAP by the {known['average_precision']} definition."
        if known["queries_without_match"]:
            about += (
                f" {known['queries_without_match']:,} more have no match in the gallery and do not count."
            )
    ranks = table(about, ["", *RANK_NAMES.values()], rows)
    return f'<div class="beside">{ranks}{_cameras(contents.retrieval)}</div>'


def _why_no_ranks(run: Run) -> str:
    if run.config.data.dataset == "folder":
        return "a folder of crops has no queries and no identities."
    return "the run has not come to its first evaluation." if not run.finished else "no ranks were recorded."


def _cameras(retrieval: Retrieval | None) -> str:
    if retrieval is None or len(retrieval.cameras) < 2:
        return ""
    rows = [
        [f"camera {camera}", f"{queries:,}", percent(rank1, ""), percent(precision, "")]
        for camera, queries, rank1, precision in retrieval.cameras
    ]
    about = "The checkpoint by the camera of the query; rank-1 and mAP in percent."
    return table(about, ["", "queries", "rank-1", "mAP"], rows)


def _training(contents: Contents) -> str:
    if not contents.run.records:
        return note("No epoch is done yet.")
    return _charts(contents, "training") or note("One epoch is done: curves begin with the second.")


def _charts(contents: Contents, section: str) -> str:
    found = "".join(_chart(chart) for chart in contents.charts if chart.section == section)
    return f'<div class="charts">{found}</div>' if found else ""


def _chart(chart: Chart) -> str:
    head, rows = chart.table()
    return (
        f'<figure id="{chart.name}"><h3>{escape(chart.title)}</h3>{to_svg(draw(chart), chart.name)}'
        f"<figcaption>{escape(chart.about)}</figcaption><details><summary>Numbers</summary>"
        f"{table(chart.title, head, rows)}</details></figure>"
    )


def _ranked(contents: Contents) -> str:
    if contents.ranked is None or contents.retrieval is None:
        return _missing(contents, "ranked")
    wrong = contents.retrieval.failed
    about = (
        f"Of {contents.retrieval.counted:,} queries with a match the first rank is right for "
        f"{contents.retrieval.counted - wrong:,}. "
    )
    return f"<p>{about}{escape(contents.ranked.about)}</p>{_lists(contents.ranked)}"


def _failures(contents: Contents) -> str:
    if contents.retrieval is None:
        return ""
    if contents.failures is None:
        return "<p>None: every query with a match has a right image at its first rank.</p>"
    return f"<p>{escape(contents.failures.about)}</p>{_lists(contents.failures)}"


def _labels(contents: Contents) -> str:
    charts = _charts(contents, "labels")
    if contents.labels is None:
        return charts + _missing(contents, "labels")
    return f"{charts}<p>{escape(contents.labels.about)}</p>{_lists(contents.labels)}"


def _missing(contents: Contents, name: str) -> str:
    return note(contents.missing[name]) if name in contents.missing else ""


def _lists(lists: Lists) -> str:
    items = "".join(f"<li>{_list(lists, row)}</li>" for row in lists.lists)
    return f'<ul class="lists">{items}</ul>'


def _list(lists: Lists, row: RankedList) -> str:
    where = place(lists.firsts, row.image)
    words = [f"{lists.first_word} {row.image + 1:,}", where]
    if row.average_precision is not None:
        words.append(f"average precision {percent(row.average_precision)}")
    if row.first_match is not None:
        words.append(f"first right image at rank {row.first_match.rank:,}")
    title = " · ".join(filter(None, words))
    alt = ", ".join(filter(None, [lists.first_word, where]))
    images = [
        f'<li class="first"><img alt="{escape(alt)}" src="{data_uri(lists.firsts, row.image)}">'
        f"<span>{escape(lists.first_word)}</span></li>"
    ]
    images += [_image(lists, shown, "") for shown in row.shown]
    if row.first_match is not None:
        images.append(_image(lists, row.first_match, "missed"))
    return f'<p>{escape(title)}</p><ol class="row">{"".join(images)}</ol>'


def _image(lists: Lists, shown: Shown, kind: str) -> str:
    classes = " ".join(filter(None, [kind, role(shown), "labelled" if shown.labelled else ""]))
    mark = "" if shown.right is None else f'<b aria-hidden="true">{"✓" if shown.right else "✗"}</b> '
    words = f"rank {shown.rank:,}" if kind else caption(lists.others, shown)
    return (
        f'<li class="{classes}"><img alt="{escape(describe(lists.others, shown))}" '
        f'title="{escape(os.path.basename(lists.others.images.paths[shown.image]))}" '
        f'src="{data_uri(lists.others, shown.image)}">'
        f"<span>{mark}{escape(words)}</span></li>"
    )


def _time(contents: Contents) -> str:
    records = contents.run.records
    parts = total_by_part(records)
    if not parts:
        return ""
    total = sum(parts.values())
    rows = [
        [name, f"{seconds:,.1f}", f"{seconds / len(records):,.2f}", f"{100 * seconds / total:.1f}"]
        for name, seconds in [*parts.items(), ("together", total)]
    ]
    own = sum(parts.get(name, 0.0) for name in ("labels+loss", "update"))
    about = (
        f"Labels, loss and memory update are {100 * own / total:.1f} % of the training steps. Data: waiting for a "
        "batch; backbone: forward, backward and optimiser; update: exemplar memory and similarity cache."
    )
    shares = table("The training steps of all epochs.", ["", "s", "s an epoch", "% of them"], rows)
    return f'<p>{about}</p><div class="beside">{_charts(contents, "time")}{shares}</div>'


def _configuration(run: Run) -> str:
    values = flatten(run.config)
    defaults = flatten(config_from({}))
    changed = [name for name, value in values.items() if value != defaults[name]]
    parts = [_options("What differs from the defaults.", changed, values)]
    rest = "".join(
        _options(group, [name for name, option in OPTIONS.items() if option.group == group], values)
        for group in GROUPS
    )
    parts.append(f"<details><summary>All {len(values)} options</summary>{rest}</details>")
    return "".join(parts)


def _options(about: str, names: Sequence[str], values: dict[str, object]) -> str:
    rows = [
        [
            f"<code>{OPTIONS[name].flag}</code>",
            f"<code>{escape(_shown(values[name]))}</code>",
            escape(OPTIONS[name].help),
        ]
        for name in names
    ]
    return table(about, ["option", "value", "meaning"], rows, html=True)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _environment(run: Run) -> str:
    if not run.starts:
        return note("It was not recorded (environment.json is missing).")
    text = []
    for start in run.starts:
        known = {name: value for name, value in start.items() if isinstance(value, (str, int, float))}
        first = known.pop("first_epoch")
        rows = [[name.replace("_", " "), str(value)] for name, value in known.items()]
        if isinstance(versions := start.get("versions"), dict):
            rows.append(["versions", ", ".join(f"{name} {value}" for name, value in versions.items())])
        if isinstance(backends := start.get("backends"), dict):
            rows += [
                [f"served by {backend}", ", ".join(name for name, one in backends.items() if one == backend)]
                for backend in dict.fromkeys(backends.values())
            ]
        text.append(table(f"Where the epochs from {first} on were trained.", ["", "value"], rows))
    return "".join(text)


def _ranks(record: dict[str, float]) -> list[str]:
    return [percent(record[name], "") for name in RANKS]
