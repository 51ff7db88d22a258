"""The package itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import snnet
import snnet_kernels


def test_version():
    assert snnet.__version__ == snnet_kernels.__version__
    with pytest.raises(AttributeError, match="no attribute 'verison'"):
        _ = snnet.verison


def test_imports_leave_out_what_takes_long():
    program = (
        "import sys, snnet, snnet.config.commands; print('torch' in sys.modules);"
        "import snnet.train, snnet.evaluate, snnet.extract, snnet.label, snnet.search, snnet.export, snnet.report;"
        "print({'torch._dynamo', 'torchvision', 'matplotlib'} & {*sys.modules})"  # each as long as torch
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nset()\n"


LEVELS = (
    *(
        {"errors"},
        {"checks"},
        {"system"},
        {"files"},
        {"config"},
        {"synthetic"},
        {"data", "models"},
        {"runtime"},
    ),
    *({"training"}, {"retrieval"}, {"reporting"}),
    {"train", "evaluate", "extract", "label", "search", "export", "report", "__main__"},
)


def test_imports_point_one_way():
    """A room of the package, or a module at its top, imports itself and those before it; no command another one."""
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    package = Path(snnet.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        room = path.relative_to(package).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                part = module.split(".")[1] if module.startswith("snnet.") else room
                if part != room and level[part] >= level[room]:
                    found.append((path.name, module))
    assert found == []
