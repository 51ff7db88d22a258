"""Which files a report has written, and which are the reader's own."""

from __future__ import annotations

import io
import stat
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from snnet.errors import UserError

MARK = "written by python -m snnet.report"  # stands near the beginning of every file of a report


def check_own(path: Path) -> None:
    """Raise :class:`~snnet.errors.UserError` where ``path`` exists, but was not written by a report."""
    try:
        if stat.S_ISREG(path.lstat().st_mode):  # a link, though to a file of a report, is someone else's
            with open(path, "rb") as file:
                if MARK.encode() in file.read(1024):
                    return
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    raise UserError(
        f"{path} is in the way: no report wrote it; move it, or name another folder with --output"
    )


def png_file(picture: Image.Image) -> bytes:
    """A picture as the content of a file of a report."""
    file, info = io.BytesIO(), PngInfo()
    info.add_text("Software", MARK)
    picture.save(file, "PNG", optimize=True, pnginfo=info)
    return file.getvalue()
