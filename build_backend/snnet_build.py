"""PEP 517 backend: setuptools, with the torch of the target environment where it can be seen.

Under build isolation pip gives the build an environment of its own, yet ``sysconfig`` still names the
environment that is installed into. A torch found there is built against and nothing is downloaded; where
none is (an empty environment, uv, ``python -m build``) the build requires one. Either is safe: the libraries
use the stable ABI and load in torch 2.10 and later.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import sys
import sysconfig
import zipfile

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

TORCH = "torch>=2.10"
NEEDED = "snnet_kernels/__init__.py"


def target_site_packages() -> str | None:
    """The site-packages that hold a recent enough torch, or None."""
    for name in ("purelib", "platlib"):
        folder = sysconfig.get_path(name)
        version_file = pathlib.Path(folder, "torch", "version.py")
        if not version_file.is_file():  # a folder may be left of a torch that is gone
            continue
        scope: dict[str, object] = {}
        exec(version_file.read_text(), scope)  # a few assignments; importing torch here would take seconds
        version = str(scope["__version__"]).split("+")[0].split(".")
        if (int(version[0]), int(version[1])) >= (2, 10):
            return folder
    return None


def _add_target() -> None:
    folder = target_site_packages()
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)  # last: the build's own requirements come first


def get_requires_for_build_wheel(config_settings=None):
    _add_target()
    torch = [] if target_site_packages() else [TORCH]
    return build_meta.get_requires_for_build_wheel(config_settings) + torch


def get_requires_for_build_editable(config_settings=None):
    _add_target()
    torch = [] if target_site_packages() else [TORCH]
    return build_meta.get_requires_for_build_editable(config_settings) + torch


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    _add_target()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    _add_target()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


@contextlib.contextmanager
def _alone():
    """One build of a checkout at a time, where files can be locked: all use its folder ``build``."""
    folder = pathlib.Path("build")
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _add_target()
    with _alone():
        # setuptools packs all that lies there: also what an earlier build left and this one has no more.
        for left in pathlib.Path("build").glob("lib*"):
            shutil.rmtree(left)
        wheel = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    with zipfile.ZipFile(pathlib.Path(wheel_directory, wheel)) as archive:
        if NEEDED not in archive.namelist():
            raise SystemExit(f"{wheel} has no {NEEDED}: the folder build was changed meanwhile; build again")
    return wheel


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _add_target()
    with _alone():
        return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
