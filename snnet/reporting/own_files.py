"""Which files a command has written, and which are the reader's own."""

from __future__ import annotations

import io
import stat
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from snnet.errors import UserError

# Each stands near the beginning of the files of its command.
REPORT_MARK, SEARCH_MARK = (f"written by python -m snnet.{command}" for command in ("report", "search"))


def is_own(path: Path, mark: str) -> bool:
    """Whether the file ``path`` has the mark. A link, though to a file that has it, is someone else's."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    with open(path, "rb") as file:
        return mark.encode() in file.read(1024)


def check_own(path: Path, mark: str, way_out: str) -> None:
    """Raise :class:`~snnet.errors.UserError` where ``path`` exists, but has not the mark."""
    try:
        if is_own(path, mark):
            return
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    raise UserError(f"{path} is in the way: it was not {mark}; move it, or name {way_out}")


def png_file(picture: Image.Image, mark: str) -> bytes:
    """A picture as the content of a file that has the mark."""
    file, info = io.BytesIO(), PngInfo()
    info.add_text("Software", mark)
    picture.save(file, "PNG", optimize=True, pnginfo=info)
    return file.getvalue()
