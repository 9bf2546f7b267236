"""Encoded image bytes -> uint8 pixels, and the bicubic resize of the papers, both with exactly Pillow's pixels.

JPEGs take a faster road (libjpeg-turbo through simplejpeg); whatever that road refuses is given to Pillow, whose
verdict holds. EXIF orientation is ignored, as the published loaders do; who wants it calls `turned`. Every failure is a
`BadImage`.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from common.errors import UserError
from common.files import read_regular

# Formats that Pillow reads without running another program (no EPS) and that word crops come in.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF")
MAX_PIXELS = 2**25  # 33.5 million, 100 MB as RGB: far above any word crop, far below what fills a machine


class BadImage(ValueError):
    """Bytes that are no readable image, or an image over the pixel cap; the message says which."""


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS, truncated: bool = False) -> np.ndarray:
    """Pixels of an encoded image: uint8 [H, W, 3], RGB, C-contiguous, equal to Pillow's `open().convert("RGB")`.

    The first frame of an animation. More than `max_pixels` is refused before anything is decoded. `truncated=True`
    accepts a file that breaks off (DiG does): what is missing stays as Pillow leaves it. Raises `BadImage` and
    nothing else.
    """
    fast = decode_jpeg(data, max_pixels)
    return fast if fast is not None else np.array(_open_rgb(data, max_pixels, truncated))


def decode_resized(
    data: bytes, size: tuple[int, int], max_pixels: int = MAX_PIXELS, truncated: bool = False
) -> np.ndarray:
    """`resize_bicubic(decode_rgb(data), size)` without the copies between: uint8 [h, w, 3] for `size` = (h, w)."""
    fast = decode_jpeg(data, max_pixels)
    image = Image.fromarray(fast) if fast is not None else _open_rgb(data, max_pixels, truncated)
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def orientation(data: bytes) -> int:
    """The EXIF orientation of an encoded image, 1 (as stored) to 8; 1 where there is none or it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = open_picture(data).getexif().get(0x0112, 1)
    except Exception:  # Pillow raises many types; a picture that is broken is refused by `decode_rgb`
        return 1
    return found if found in range(1, 9) else 1


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels uint8 [H, W, 3] as a viewer shows them, for an EXIF orientation of 1 to 8; contiguous."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)  # 5 mirrors at the diagonal; the others are this and a flip
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.ascontiguousarray(np.flip(image, flips))


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's antialiased bicubic of uint8 [H, W, 3] or [H, W] to `size` = (h, w), aspect ignored; uint8."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BICUBIC))


def resize_keeping_ratio(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic to the height of `size` = (h, w), as wide as the aspect asks for but at most w; uint8 [h, <= w, 3]."""
    height, width = size
    return resize_bicubic(image, (height, min(width, math.ceil(height * image.shape[1] / image.shape[0]))))


def pad_right(image: np.ndarray, width: int) -> np.ndarray:
    """Black columns on the right up to `width`: uint8 [h, <= w, 3] -> [h, w, 3]."""
    return np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A text mask [H, W] resized to `size` = (h, w) by Pillow's bicubic, without thresholding.

    Integer masks (0/1 as stored) go through mode `I` and stay integers (int32); float masks, as a warp leaves them,
    through mode `F` (float32; values overshoot [0, 1] by up to about 0.25). SIGA's losses threshold at > 0.5 (spec
    3.4).
    """
    height, width = size
    mode = np.float32 if np.issubdtype(mask.dtype, np.floating) else np.int32
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=mode))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def decode_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A stored text mask (PNG with the values 0 and 1): uint8 [H, W] of 0/1. Raises `BadImage`."""
    image = open_picture(data, max_pixels)
    return (np.asarray(load(image, "L")) > 0).astype(np.uint8)


def decode_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """RGB pixels uint8 [H, W, 3] of an ordinary grey or YCbCr JPEG; None sends the bytes to Pillow."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        # CMYK and YCCK need Adobe's inversion, which Pillow knows; the cap is judged there too.
        if height * width > max_pixels or colours not in ("YCbCr", "Gray"):
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except Exception:
        return None  # broken, or merely unusual: Pillow decides


def known_kind(data: bytes) -> str:
    """What people often take for a picture that can be read, and what to do about it; "" for other data."""
    if data.startswith(b"%PDF"):
        return ": a PDF; save its pages as pictures first, as `pdftoppm -png` does"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif"):
        return ": HEIC or AVIF; save it as JPEG or PNG first"
    return ": SVG; save it as PNG first" if b"<svg" in data[:1000] else ""


def open_picture(source: bytes | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The one way in which this library opens picture files: header read, pixels not yet; `load` reads them.

    Only `FORMATS` are tried, so that no file can make Pillow run another program, and a path must name a regular file.
    Raises `BadImage` for what is no such picture or has more than `max_pixels` pixels.
    """
    try:
        if isinstance(source, Path):
            source = read_regular(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(source), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise BadImage(f"not an image ({len(source)} bytes){known_kind(source)}") from None
    except Exception as error:
        raise BadImage(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}") from None
    width, height = image.size
    if width * height > max_pixels:
        most = f"{max_pixels / 1e6:.4g} million" if max_pixels >= 1e6 else f"{max_pixels}"
        raise BadImage(f"{width}x{height} pixels, more than {most}; scale it down or cut it first")
    return image


def picture_size(source: bytes | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) from the header, without decoding. Raises `BadImage`."""
    return open_picture(source, max_pixels).size


def load(image: Image.Image, mode: str) -> Image.Image:
    """Read the pixels of an opened picture and convert them. Raises `BadImage`, whatever Pillow raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return image.convert(mode)
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and more
        raise BadImage(f"{type(error).__name__}: {error}") from None


def _open_rgb(data: bytes, max_pixels: int, truncated: bool) -> Image.Image:
    image = open_picture(data, max_pixels)
    if not truncated:
        return load(image, "RGB")
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        return load(image, "RGB")
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
