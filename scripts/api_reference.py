"""Writes ``docs/api.md`` from the signatures and docstrings of the public names. Reads source, imports nothing.

``python scripts/api_reference.py`` writes the page; ``--check`` exits with 1 where it is not current.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"

# Sections of the page: title, a line about it, and modules with names; no names: all of __all__.
SECTIONS: list[tuple[str, str, list[tuple[str, list[str]]]]] = [
    (
        "snnet_kernels",
        "The operations, and modules made of them: `import snnet_kernels as sk`. `sk.reference` has the "
        "operations that `sk.backend_info()` lists, such as `mplp_from_lists`, `update_memory_lists_` and "
        "`symmetric_lists`, as functions in plain PyTorch; they check nothing, and their arguments are not those of "
        "the functions below. `SNNET_BACKEND=reference` runs the functions below in plain PyTorch.",
        [("snnet_kernels", [])],
    ),
    (
        "snnet_kernels.compat",
        "Classes and functions of public code, for trainers written for it: the MMCL authors', cluster-contrast's, "
        "SpCL's and DCMIP's.",
        [
            ("snnet_kernels.compat", ["MPLP", "MMCL", "Memory"]),
            (
                "snnet_kernels.compat.cluster_contrast",
                ["compute_jaccard_distance", "ClusterMemory"],
            ),
            ("snnet_kernels.compat.hybrid", ["HybridMemory", "ClusterMemory"]),
        ],
    ),
    (
        "snnet_kernels.distributed",
        "Memories and heads of several processes, which the argument `process_group` makes, and pieces of their state. "
        "A piece is the `state_dict()` of a head with a `process_group`; pieces are given in order of the ranks.",
        [("snnet_kernels.distributed", [])],
    ),
    (
        "snnet_kernels.testing",
        "Inputs to try the operations on.",
        [("snnet_kernels.testing", ["clustered_features"])],
    ),
    (
        "snnet",
        "Parts of the trainer that are of use by themselves, each with the module to import it from.",
        [
            ("snnet.data.datasets", ["build_dataset"]),
            ("snnet.data.image_set", ["ImageSet", "ReIDDataset"]),
            ("snnet.data.decoding", ["decode_images", "DecodedImages"]),
            ("snnet.data.loading", ["training_loader", "extraction_loader", "TrainingLoader"]),
            ("snnet.models.embedding", ["build_model", "ReIDModel"]),
            ("snnet.retrieval.trained", ["load_trained_model", "TrainedModel"]),
            ("snnet.retrieval.features", ["module_features"]),
            ("snnet.retrieval.rank_metrics", ["rank_metrics", "RankMetrics", "score_queries", "QueryScores"]),
            ("snnet.retrieval.reranking", ["rerank"]),
            ("snnet.retrieval.query_expansion", ["expand_queries"]),
            ("snnet.retrieval.verification", ["true_positive_rates"]),
            ("snnet.retrieval.feature_files", ["load_features", "save_features", "FeatureSet"]),
            ("snnet.retrieval.sparse_labels", ["predict_sparse_labels", "save_labels", "load_labels"]),
            ("snnet.retrieval.sparse_labels", ["SparseLabels", "SparseMatrix"]),
            ("snnet.errors", ["UserError"]),
        ],
    ),
]

Definition = ast.FunctionDef | ast.ClassDef


def page() -> str:
    """The whole page."""
    contents, body = [], []
    anchors: Counter[str] = Counter()
    for title, about, modules in SECTIONS:
        found = [(module, node) for module, names in modules for node in definitions(module, names)]
        links = []
        for _, node in found:
            anchor = node.name.lower()
            links.append(f"[{node.name}](#{anchor}{f'-{anchors[anchor]}' if anchors[anchor] else ''})")
            anchors[anchor] += 1
        contents.append(f"- `{title}`: {', '.join(links)}")
        body += ["", f"## `{title}`", "", about]
        for module, node in found:
            body += ["", *entry(node, f" (`{module}`)" if module != title else "")]
    lines = [
        "# API reference",
        "",
        "Made from the docstrings by `make docs`; a test fails where this page is not current. Shapes stand in "
        "brackets: `n` images, `d` feature dimensions, a batch of `B`.",
        "",
        *contents,
        *body,
    ]
    return "\n".join(lines) + "\n"


def definitions(module: str, names: list[str]) -> list[Definition]:
    """The definitions of public names, functions before classes; names of modules and constants are passed over."""
    found = [node for name in names or public_names(module) if (node := find(module, name)) is not None]
    return sorted(found, key=lambda node: isinstance(node, ast.ClassDef))


def public_names(module: str) -> list[str]:
    """What ``__all__`` of a package lists, in its order."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    raise SystemExit(f"{module} has no __all__")


def find(module: str, name: str) -> Definition | None:
    """Where a public name is defined, or imported for type checkers; None for a module or a constant."""
    body = tree(module).body
    for node in [*body, *(inner for one in body if isinstance(one, ast.If) for inner in one.body)]:
        if isinstance(node, Definition) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            if node.module is None:
                return None
            return find(f"{module}.{node.module}" if node.level else node.module, name)
    return None


@functools.cache
def tree(module: str) -> ast.Module:
    """The parsed source of a module, whose lines each node has as ``source``."""
    path = ROOT.joinpath(*module.split("."))
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    parsed = ast.parse(text)
    for node in ast.walk(parsed):
        node.source = text.splitlines()  # type: ignore[attr-defined]
    return parsed


def entry(node: Definition, origin: str) -> list[str]:
    """Heading, signature and text of a definition; for a class its public methods too."""
    heading = [f"### {node.name}", ""]
    if isinstance(node, ast.FunctionDef):
        return [*heading, *code(node), "", *prose(node, origin)]
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not is_setter(m)]
    constructor = next((m for m in methods if m.name == "__init__"), None)
    fields = [
        line
        for m in node.body
        if isinstance(m, ast.AnnAssign)
        for line in m.source[m.lineno - 1 : m.end_lineno]
    ]
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    lines = heading
    if constructor is not None and constructor.args.vararg is None:
        lines += [*code(constructor, node.name), ""]
    elif fields and (node.decorator_list or bases == "NamedTuple"):
        lines += ["```python", f"class {node.name}:", *fields, "```", ""]
    else:  # made with the arguments of its base
        lines += ["```python", f"class {node.name}({bases})", "```", ""]
    lines += prose(node, origin)
    for method in methods:
        if not method.name.startswith("_") and ast.get_docstring(method):
            is_property = any("property" in ast.unparse(d) for d in method.decorator_list)
            shown = f"`{method.name}`" if is_property else f"`{method.name}()`"
            lines += ["", f"#### {node.name}: {shown}", ""]
            lines += [] if is_property else [*code(method), ""]
            lines += prose(method)
    return lines


def is_setter(node: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list)


def code(node: ast.FunctionDef, name: str | None = None) -> list[str]:
    """The signature as the source has it, comments too, without ``self``; ``name``: of the class it constructs."""
    text = textwrap.dedent("\n".join(node.source[node.lineno - 1 : node.body[0].lineno - 1])).rstrip(": \n")
    text = re.sub(r"\b(self|cls)(, |,\n    |(?=\)))", "", text, count=1)
    if name is not None:
        text = text.replace("def __init__", f"class {name}", 1).removesuffix(" -> None")
    return ["```python", *text.splitlines(), "```"]


def prose(node: Definition, origin: str = "") -> list[str]:
    """The docstring as Markdown."""
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    text = re.sub(r":(\w+):`~?\.?([\w.]+)`", shown_name, text).replace("``", "`")
    lines: list[str] = []
    listing = False  # inside a section of arguments, errors or attributes
    for line in text.splitlines():
        title = re.fullmatch(r"(Args|Returns|Raises|Attributes):", line)
        item = re.match(r"    (\w[\w, ]*): (.*)", line)
        if title:
            listing = True
            lines += [f"**{title[1].replace('Args', 'Arguments')}**", ""]
        elif listing and item:
            names = ", ".join(f"`{name.strip()}`" for name in item[1].split(","))
            lines.append(f"- {names}: {item[2]}")
        elif listing and line.startswith("    "):
            lines.append(line[6:] if line.startswith(8 * " ") else line[4:])
        else:
            listing = listing and line == ""
            lines.append(re.sub("::$", ":", line))
    lines = lines or [""]
    lines[[*lines, ""].index("") - 1] += origin  # at the end of the first paragraph
    return lines


def shown_name(role: re.Match[str]) -> str:
    """The last part of a name; of a module the whole, and a method with its class if that is given."""
    kind, name = role.groups()
    if kind == "mod":
        return f"`{name}`"
    kept = 2 if kind in ("meth", "attr") else 1
    return f"`{'.'.join(name.split('.')[-kept:])}`"


def main() -> None:
    made = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(made, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made:
        raise SystemExit(f"{PAGE.relative_to(ROOT)} is not current: run make docs")


if __name__ == "__main__":
    main()
