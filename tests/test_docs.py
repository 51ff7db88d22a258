"""What the documentation shows runs, is current, and is there."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import snnet_kernels
from snnet.config.commands import EvaluateCommand
from snnet.config.resolve import resolve
from snnet_kernels import compat, distributed, reference
from snnet_kernels.compat import cluster_contrast, hybrid

ROOT = Path(__file__).parents[1]
API = (ROOT / "docs" / "api.md").read_text("utf-8")
LAYOUT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROGRAMS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in (ROOT / "docs" / "kernels.md", ROOT / "docs" / "using-the-ops.md")
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_block_runs_by_itself(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for optional in ("scipy", "sklearn"):
        if optional in program:
            pytest.importorskip(optional)
    monkeypatch.chdir(tmp_path)  # some write files
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exec(compile(program, "block", "exec"), {"__name__": "__main__"})
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    # Each ends by showing what it computed; agreements are NaN in the warm-up only.
    assert re.search(r"\d", printed) and "nan" not in printed.splitlines()[-1]


def test_every_training_loop_renews_lists_once_an_epoch() -> None:
    loops = 0
    for page in (*PAGES, *(ROOT / "examples").glob("*.py")):
        for loop in re.findall(r"^for epoch in .*\n(?:(?: .*)?\n)+", page.read_text("utf-8"), re.M):
            if "head.momentum = " in loop:
                loops += 1
                assert re.search(r"^    head\.memory\.renew_lists_\(\)", loop, re.M), page.name
    assert loops == 4


def test_there_are_programs() -> None:
    assert len(PROGRAMS) >= 10


def test_the_api_reference_is_current() -> None:
    script = [sys.executable, ROOT / "scripts" / "api_reference.py", "--check"]
    checked = subprocess.run(script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_api_reference_has_every_public_name_and_every_name_that_it_refers_to() -> None:
    public = []
    for module in (snnet_kernels, compat, cluster_contrast, hybrid, distributed):
        own = [
            name
            for name, thing in vars(module).items()
            if getattr(thing, "__module__", "") == module.__name__ and not name.startswith("_")
        ]
        public += [name for name in getattr(module, "__all__", own) if callable(getattr(module, name))]
    assert [name for name in public if f"\n### {name}\n" not in API] == [] and len(public) >= 30
    methods = re.findall(r"^#### (\w+): `(\w+)", API, re.M)
    described = {*re.findall(r"^### (\w+)$", API, re.M), *map(".".join, methods)}
    referred = re.findall(r"\bsee\s+`([\w.]+)", API, re.I)
    assert [name for name in referred if name not in described] == [] and len(referred) >= 15


def test_entries_of_the_api_reference_show_no_markup_and_end_their_first_paragraph_with_the_module() -> None:
    assert re.findall(r":\w+:`.*", API) == []
    cut = re.findall(r"\(`snnet[\w.]+`\)\n(?!\n).*", API)
    assert cut == [] and API.count("(`snnet_kernels.compat.hybrid`)\n\n") == 2


def test_the_reference_has_every_operation() -> None:
    operations = snnet_kernels.backend_info().operations
    missing = [name for name in operations if not inspect.isfunction(getattr(reference, name, None))]
    named = re.findall(r"`(\w+)`", API.partition(" lists, such as ")[2].partition(", as functions")[0])
    assert missing == [] and len(named) == 3 and {*named} <= {*operations}


def test_links_lead_to_files_and_sections_that_are_there() -> None:
    broken, links = [], 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            if "://" in target:
                continue
            links += 1
            file, _, section = target.partition("#")
            found = page.parent / file if file else page
            if not found.exists() or (section and section not in _anchors(found)):
                broken.append(f"{page.name}: {target}")
    assert broken == [] and links > 50


def test_the_project_layout_names_every_source() -> None:
    words = {*re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", LAYOUT)))}
    sources = [*ROOT.glob("snnet*/**/*.py"), *ROOT.glob("build_backend/*.py")]
    missing = [source.relative_to(ROOT) for source in sources if source.stem not in words]
    assert missing == [] and len(sources) > 150


def test_the_project_layout_names_the_headers_of_each_family_of_kernels() -> None:
    cpu, families = ROOT / "csrc" / "cpu", 0
    for stem, files in re.findall(r"^\| `(\w+)` \| [^|]+ \| (same[^|]*) \|", LAYOUT, re.M):
        families += 1
        read, waiting = set[str](), [f"{stem}.cpp"]
        while waiting:
            included = re.findall(r'^#include "(\w+\.h)"', (cpu / waiting.pop()).read_text("utf-8"), re.M)
            waiting += {*included} - read
            read |= {*included}
        read -= {
            f"{stem}.h",
            "checks.h",
            "neighbor_lists.h",
            "prefetch.h",
            "products.h",
            "vector.h",
        }  # of all
        own = {name if not (cpu / name).with_suffix(".cpp").exists() else name[:-2] for name in read}
        assert own <= {*re.findall(r"`([\w.]+)`", files)}, stem
    assert families == 15


def test_the_direct_transfer_ranks_with_the_features_of_its_table() -> None:
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    command = re.search(r"python -m snnet\.evaluate (.*?)\n```", page, re.S)
    table = page[page.index("this command: the layer alone") :]
    assert command is not None and "before its batch normalisation:" in page[: command.start()]
    words = command[1].replace("\\\n", " ").split()

    def ranked(*flags: str) -> str:
        asked = EvaluateCommand.parse([*words, *flags])
        model = resolve(asked.preset, asked.given).model
        return f"{model.embedding} {model.retrieval_feature}"

    rows = [re.findall(r"`(--[\w-]+ [\w-]+)`", row) for row in table.splitlines()[:3]]
    assert [ranked(*" ".join(flags).split()) for flags in rows] == ["fc before", "fc after", "fc-relu after"]


def test_the_bytes_of_a_step_are_the_sum_of_its_collectives_and_those_held_of_the_memories() -> None:
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    rows = re.findall(
        r"^\| ([\d,]+) \| (\d+) \| (\d+) \| (\d+) \| (\S+) MB \| (\d+) MB \| (\S+ [MG]B) \|", page, re.M
    )
    lists, w, y, ratio = 256, 32, 10, 0.01
    for row in rows:
        n, d, size, b = (int(word.replace(",", "")) for word in row[:4])
        batch, keys = size * b, ratio * n / size + 4 * (ratio * n) ** 0.5 + 8
        to_all = (192 + (4 * d + 8) * b) + (4 * w + 16) * b + (w + 4) * batch + 4 * y * b + 32 * b + 8 * batch
        to_all += (4 * d + 8) * b + (192 + (4 * d + 4 * lists + 8) * b) + 4 * batch
        sent = (to_all * (size - 1) + 9 * keys * (batch - b)) / 1e6
        assert row[4] == (f"{sent:.1f}" if sent < 10 else f"{sent:.0f}")
        labels = 150 * n + 30 * y * n
        held = (4 * n * d + 8 * n * lists + labels) / size + 16 * n
        assert row[5] == f"{held / 1e6:.0f}"
        alone = 4 * n * d + 12 * n * lists + labels
        assert row[6] == (f"{alone / 1e9:.3g} GB" if alone > 1e9 else f"{alone / 1e6:.0f} MB")
    assert "| about 150 n, and 30 for each positive label |" in page
    assert len(rows) == 4


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the usual code hosts."""
    anchors: set[str] = set()
    counts: dict[str, int] = {}
    for title in re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M):
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        anchors.add(f"{anchor}-{counts[anchor]}" if anchor in counts else anchor)
        counts[anchor] = counts.get(anchor, 0) + 1
    return anchors
