"""Images with transparency on one background, so that colours that nobody sees do not count."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Black: the rotation of the augmentation fills with it, and colours under alpha 0 are mostly black.
BACKGROUND = (0, 0, 0)

# Pillow multiplies PNG's grey of few bits by these, but leaves the value that is marked transparent as stored.
_GREY_SCALES = {"L;2": 85, "L;4": 17}


def on_background(image: Image.Image) -> Image.Image:
    """An image of up to 8 bits a channel as RGB, over :data:`BACKGROUND` where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    _match_transparent_colour(image)
    colours = image.convert("RGBA")
    composed = Image.new("RGB", image.size, BACKGROUND)
    composed.paste(colours.convert("RGB"), mask=colours.getchannel("A"))
    return composed


def transparent_grey(image: Image.Image, grey: np.ndarray) -> np.ndarray | None:
    """Where ``grey``, the pixels of an image of 16 bits, has the value that is marked transparent; None without one."""
    marked = image.info.get("transparency")
    return None if marked is None else grey == marked


def _match_transparent_colour(image: Image.Image) -> None:
    """Bring the one colour that a PNG marks as transparent to the 8 bits of the pixels that Pillow gives."""
    marked = image.info.get("transparency", 0)
    raw = next((str(tile.args) for tile in getattr(image, "tile", ())), "")
    if image.mode == "L" and raw in _GREY_SCALES:
        image.info["transparency"] = marked * _GREY_SCALES[raw]
    elif image.mode == "RGB" and raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in marked)
