"""Pictures of every kind that a caller may hold, as RGB pixels: paths, bytes, files, PIL images, arrays, tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import numpy as np

from common.data.decode import BadImage, decode_rgb, orientation, turned
from common.data.pictures import composited, decode_shown, shown
from common.errors import UserError
from common.files import files_below, read_regular


class PilImage(Protocol):
    """A PIL image, without importing PIL."""

    def convert(self, *args: Any, **options: Any) -> Any: ...


class Tensor(Protocol):
    """A tensor, without importing PyTorch."""

    def detach(self) -> Any: ...


ImageLike: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray | IO[bytes] | PilImage | Tensor
)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
KINDS = "a path, bytes, an open binary file, a PIL image, or an array or tensor [h, w], [h, w, 1|3|4] or [1|3|4, h, w]"
LONGEST_ASPECT = 12.0  # width / height beyond which a crop is surely more than one word


def is_image(thing: Any) -> bool:
    """Return whether this is one picture, in contrast to an iterable of pictures. Nothing is read or decoded."""
    if isinstance(thing, (str, os.PathLike, bytes, bytearray, memoryview)):
        return True
    if _is_array(thing):
        return thing.ndim <= 3
    return hasattr(thing, "convert") or hasattr(thing, "read")


def _is_array(thing: Any) -> bool:
    """Whether this is a numpy array or a tensor."""
    return hasattr(thing, "ndim") and hasattr(thing, "dtype") and hasattr(thing, "shape")


def check_kind(image: Any) -> None:
    """Raise `TypeError` for what cannot be one picture, naming what can."""
    if not is_image(image):
        raise TypeError(f"{type(image).__name__} is not a picture; give {KINDS}")
    if _is_array(image):
        shape = tuple(image.shape)
        if image.ndim not in (2, 3) or (image.ndim == 3 and not {shape[0], shape[2]} & {1, 3, 4}):
            raise TypeError(f"an array of shape {list(shape)} is not one picture; give {KINDS}, or a list of them")


def as_array(image: ImageLike, upright: bool = False, published: bool = False) -> np.ndarray:
    """Return a picture of any kind as uint8 RGB [h, w, 3].

    Transparent pictures are laid over a plain ground, greys of more than 8 bits in files are scaled by their own range.
    Arrays of floats in [0, 1] are scaled by 255, other floats are taken as [0, 255]. Arrays with the channels last and
    tensors with the channels first are preferred where a shape can be read both ways.

    Args:
        image: see `ImageLike`. An open file is read from its present position and stays open.
        upright: turn files and bytes as their EXIF orientation says.
        published: decode files and bytes as the papers' loaders do (Pillow's `convert("RGB")`, which drops alpha).

    Raises:
        TypeError: something that is not a picture.
        BadImage: a file that cannot be read or decoded, values that are not finite or out of range.
    """
    check_kind(image)
    picture: Any = image
    if isinstance(picture, (str, os.PathLike)):
        try:
            picture = read_regular(Path(picture))
        except OSError as error:
            raise BadImage(f"{error.strerror or error}") from None
    elif hasattr(picture, "read") and not hasattr(picture, "convert"):
        picture = picture.read()
        if not isinstance(picture, (bytes, bytearray)):
            raise TypeError("the file is open as text; open it with mode 'rb'")
    if isinstance(picture, (bytes, bytearray, memoryview)):
        data = bytes(picture)
        pixels = decode_rgb(data) if published else decode_shown(data)
        return turned(pixels, orientation(data)) if upright else pixels
    if hasattr(picture, "convert"):
        return shown(picture)
    channels_first = hasattr(picture, "detach")
    array = np.asarray(picture.detach().cpu().float() if channels_first and picture.is_floating_point() else
                       picture.detach().cpu() if channels_first else picture)  # fmt: skip
    return _pixels(array, channels_first)


def _pixels(array: np.ndarray, channels_first: bool) -> np.ndarray:
    """A numeric array as uint8 RGB [h, w, 3]."""
    if array.size == 0:
        raise BadImage(f"an empty array of shape {list(array.shape)}")
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
        if first and (channels_first or not last):
            array = array.transpose(1, 2, 0)
    array = _uint8(array)
    if array.ndim == 3 and array.shape[2] == 4:
        return composited(array[..., :3], array[..., 3])
    return np.ascontiguousarray(np.broadcast_to(array.reshape(*array.shape[:2], -1), (*array.shape[:2], 3)))


def _uint8(array: np.ndarray) -> np.ndarray:
    """Values of any numeric type scaled to uint8."""
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return (array // 257).astype(np.uint8)
    if kind not in "iuf":
        raise TypeError(f"an array of type {array.dtype} is not a picture; give uint8 or float values")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadImage("an array with values that are not finite")
    if low < 0 or high > 255:
        raise BadImage(f"values from {low:g} to {high:g}; floats are read in [0, 1] or [0, 255], integers in [0, 255]")
    return np.rint(array * (255.0 if kind == "f" and high <= 1 else 1.0)).astype(np.uint8)


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Return the image files that the arguments name: files, folders (searched for known suffixes, see `files_below`),
    or glob patterns.

    Raises `UserError` for an argument that names nothing.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            some = [
                p for p in files_below(path, lambda name: Path(name).suffix.lower() in IMAGE_SUFFIXES) if p.is_file()
            ]
        elif path.exists():
            some = [path]
        else:
            anchor = Path(path.anchor) if path.is_absolute() else Path()
            some = sorted(anchor.glob(str(path.relative_to(path.anchor)))) if any(c in pattern for c in "*?[") else []
        if not some:
            raise UserError(f"{pattern}: no image is there; give files, a folder or a pattern in quotes")
        found.extend(some)
    return found


def unlike_a_word(width: int, height: int) -> str:
    """Return what is odd about the size of a crop that should hold one horizontal word; "" where nothing is.

    A page or a paragraph is recognised by its size: a crop of a word is wide, or small.
    """
    if width > LONGEST_ASPECT * height:
        return f"{width}x{height} is very wide for one word; cut lines into words first, or use --detect"
    if height > 2 * width and height > 8:
        return f"{width}x{height} is upright; turn it or expect nonsense"
    if height >= 400 and width < 2.5 * height:
        return f"{width}x{height} looks like a whole page or photograph; --detect finds its words"
    return ""
