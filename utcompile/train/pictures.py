"""Pictures as they are meant to be seen: upright, in eight bits per channel, in grey or in colour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utcompile.errors import UtcError

Source = Path | Callable[[], Image.Image]
FAILURES = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})


def read_picture(source: Source, mode: str) -> Image.Image:
    """The picture in a file, turned upright as its EXIF data say, in `mode` (`RGB` or `L`).

    The first frame of an animation; transparency is dropped. Grey values of 16 bits are scaled to 8, which Pillow's
    own `convert` cuts off at 255.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: as Pillow says; or the values have no known range.
    """
    with opened(source) as image:
        return _eight_bits(ImageOps.exif_transpose(image)).convert(mode)


def size_of(source: Source) -> tuple[int, int]:
    """Width and height of the picture when it is upright, without decoding it."""
    with opened(source) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)


_ORIENTATION, _SIDEWAYS = 0x0112, range(5, 9)  # the EXIF tag, and those of its values that exchange the sides


def check_picture(source: Source) -> None:
    """Decode a picture once, a JPEG at a fraction of its size; raises what `read_picture` raises."""
    with opened(source) as image:
        image.draft("RGB", (32, 32))
        image.load()
        _eight_bits(image)


def reason_of(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def damaged(source: Source, index: int, error: BaseException) -> UtcError:
    """The error for a picture that could not be read after all."""
    return UtcError(
        "the image file cannot be read",
        where=str(source) if isinstance(source, Path) else f"image {index}",
        why=reason_of(error),
        fix="replace it or take it away",
        code="data/damaged",
    )


def opened(source: Source) -> Image.Image:
    """An image that is not decoded yet."""
    found: Image.Image | None = Image.open(source) if isinstance(source, Path) else source()
    if found is None:
        raise ValueError("the cell has no image")
    return found


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'floats' if image.mode == 'F' else 'integers of 32 bits'}, whose range is not known; "
            "save it with 8 or 16 bits"
        )
    return image
