"""Pictures from elsewhere: read with 8 bits a channel, or refused unharmed. Needs Pillow alone."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from robustmerge.stage.pictures import PictureError, read_picture


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG without pixels that claims a size, with further chunks before them."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks, (b"IDAT", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
@pytest.mark.parametrize("value, shade", [(0, 0), (255, 0), (30_000, 117), (65_535, 255)])
def test_grey_of_16_bits_becomes_8_bits_by_its_upper_byte(kind: str, value: int, shade: int) -> None:
    picture = read_picture(encode(Image.new("I;16", (3, 2), value), kind))
    assert picture.mode == "L" and picture.getextrema() == (shade, shade)


def test_grey_of_16_bits_whose_white_is_zero_is_no_negative() -> None:
    of_black, of_white = (struct.pack("<HHIHH", 262, 3, 1, number, 0) for number in (1, 0))  # a tag of a TIFF
    file = encode(Image.new("I;16", (4, 2), 30_000), "tiff").replace(of_black, of_white)
    assert read_picture(file).getextrema() == (138, 138)


def test_grey_of_12_bits_is_as_bright_as_its_file_says() -> None:
    bits = [struct.pack("<HHIHH", 258, 3, 1, number, 0) for number in (16, 12)]  # a tag of a TIFF
    file = encode(Image.new("I;16", (4, 2), 0xFFFF), "tiff").replace(*bits)
    assert read_picture(file).getextrema() == (255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_picture_of_8_bits_stays_as_it_is(mode: str) -> None:
    picture = Image.effect_noise((8, 8), 50.0).convert(mode)
    read = read_picture(encode(picture, "png"))
    assert (read.mode, read.tobytes()) == (mode, picture.tobytes())


def _mpo_segment() -> bytes:
    """The segment that makes a JPEG the first of several pictures (MPO)."""
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "MPO", save_all=True, append_images=[Image.new("L", (8, 8))])
    start = file.getvalue().index(b"MPF\0") - 4
    return file.getvalue()[start : start + 2 + int.from_bytes(file.getvalue()[start + 2 : start + 4], "big")]


def test_what_is_no_picture_is_refused_with_its_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    noise = encode(Image.effect_noise((64, 64), 50.0), "png")
    jpeg = encode(Image.new("L", (8, 8)), "jpeg", progressive=True)
    last_scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    rows, tile = struct.pack("<HHII", 278, 4, 1, 4), struct.pack("<HHII", 322, 4, 1, 40_000)  # tags of a TIFF
    contents = {
        "script.png": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
            "no picture of a known format",
        ),
        "cut.png": (noise[: len(noise) // 2], "truncated"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "large.png": (png(9_401, 30), "9401 x 30 pixels; at most 9400 a side"),
        "bomb.png": (png(60_000, 60_000), "bomb"),
        "line.png": (png(8_000, 1), "at most 400 times the other"),
        "text.png": (png(4, 4, (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21)))), "too large"),
        "scans.jpg": (jpeg[:-2] + 50 * last_scan + jpeg[-2:], "scans"),
        "scans.mpo": (jpeg[:2] + _mpo_segment() + jpeg[2:-2] + 50 * last_scan + jpeg[-2:], "scans"),
        "tiles.tif": (encode(Image.new("L", (4, 4)), "tiff").replace(rows, tile), "tiles"),
        "float.tif": (encode(Image.new("F", (4, 4), 0.5), "tiff"), "no agreed range"),
        "integer.tif": (encode(Image.new("I", (4, 4), 7), "tiff"), "no agreed range"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    reasons = {name: reason for name, (_, reason) in contents.items()} | {
        "pipe.png": "is a named pipe",
        "loop.png": "cannot be read",
        "none.png": "does not exist",
        "x" * 300 + ".png": "too long",
    }
    for name, reason in reasons.items():
        with pytest.raises(PictureError, match=reason) as error:
            read_picture(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    for place in (tmp_path, Path("/dev/zero")):
        with pytest.raises(PictureError, match="should be a picture, but is a"):
            read_picture(place)
