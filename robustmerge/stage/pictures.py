"""Reading of pictures from elsewhere: formats that Pillow decodes alone, and sizes that fit into memory."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from robustmerge.stage.files import require_file
from robustmerge.stage.settings import UserError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for EPS, Pillow starts Ghostscript
LONGEST_SIDE = 9_400  # pixels: padded to a square and resized, such a picture takes 1.7 GB
LARGEST_RATIO = 400  # of the sides: one row of pixels, scaled to the height that a model sees, would be millions wide
MOST_SCANS = 40  # of a JPEG: each passes over the whole picture once more, and ten are usual
_TILE = (322, 323)  # TIFF's tags TileWidth and TileLength
_BITS = 258  # TIFF's tag BitsPerSample
_PHOTOMETRIC = 262
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])", re.DOTALL)  # of a segment of a JPEG; its length follows


class PictureError(OSError):
    """Raised for a picture that cannot be read; fails only its own question. errno: of the system's error, if any."""


def read_picture(source: Path | bytes, name: str = "a picture of the corpus") -> Image.Image:
    """Read a picture from a file or from its bytes; grey of 16 bits becomes 8 bits by their upper half.

    name: what messages call one of which the bytes are given.
    Raises PictureError for whatever is no file, none of FORMATS, damaged, or of an excessive size.
    """
    from PIL import Image, UnidentifiedImageError

    name = f"the picture {source}" if isinstance(source, Path) else name
    try:
        file = BytesIO(source) if isinstance(source, bytes) else require_file(source, "a picture")
        with Image.open(file, formats=FORMATS) as picture:
            _check_extent(picture)
            picture.load()
            return _reduce_to_8_bits(picture)
    except MemoryError:
        raise
    except UserError as error:
        raise _as_picture_error(str(error), error.__cause__) from error
    except UnidentifiedImageError as error:
        raise PictureError(f"cannot read {name}: it is no picture of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # damaged files make Pillow raise SyntaxError, ValueError, struct.error and more
        raise _as_picture_error(f"cannot read {name}: {error or type(error).__name__}", error) from error


def _as_picture_error(message: str, cause: BaseException | None) -> PictureError:
    problem = PictureError(message)
    problem.errno = getattr(cause, "errno", None)
    return problem


def _check_extent(picture: Image.Image) -> None:
    """Raises ValueError for a picture that would take gigabytes or minutes; its pixels are not decoded yet."""
    short, long = sorted(picture.size)
    if long > LONGEST_SIDE or long > LARGEST_RATIO * short:
        raise ValueError(
            f"it has {picture.width} x {picture.height} pixels; at most {LONGEST_SIDE} a side are read, and one side "
            f"at most {LARGEST_RATIO} times the other"
        )
    tags = getattr(picture, "tag_v2", {})  # of a TIFF
    if max(tags.get(tag, 0) for tag in _TILE) > LONGEST_SIDE:
        raise ValueError(f"its tiles have a side of more than {LONGEST_SIDE} pixels")
    if picture.format in ("JPEG", "MPO") and (scans := _count_scans(picture)) > MOST_SCANS:
        raise ValueError(f"its JPEG has {scans} scans, and at most {MOST_SCANS} are read")


def _count_scans(picture: Image.Image) -> int:
    """The passes in which a JPEG is stored."""
    file = picture.fp  # type: ignore[attr-defined]
    file.seek(0)
    data, position, scans = file.read(), 0, 0
    while (marker := _MARKER.search(data, position)) and marker[1] != b"\xd9":  # the end of the picture
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _reduce_to_8_bits(picture: Image.Image) -> Image.Image:
    """The picture with at most 8 bits a channel. Pillow alone would clip 16 bits: whatever is not black is white.

    Raises ValueError for grey of 32 bits, which has no range that everybody agrees on, and for L*a*b*, which Pillow
    alone cannot turn into colours.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        from PIL import ImageOps

        tags = getattr(picture, "tag_v2", {})
        bits = tags.get(_BITS, (16,))[0]  # 12 in a TIFF that says so
        grey = picture.convert("I").point(lambda value: value * 2.0 ** (8 - bits)).convert("L")
        return ImageOps.invert(grey) if tags.get(_PHOTOMETRIC) == 0 else grey  # 0: white is zero
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of no agreed range; save it with 8 or 16 bits")
    if picture.mode == "LAB":
        raise ValueError("its colours are L*a*b*; save it as RGB")
    return picture
