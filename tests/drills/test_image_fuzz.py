"""Drill 10: mutated pictures. Never a crash, one kind of error, the same pixels by the fast road and by Pillow."""

from __future__ import annotations

import io
import resource

import numpy as np
import pytest

from common.data import decode
from common.data.decode import BadImage
from tests.common.lmdbs import encoded, noise
from tests.common.test_decode import pictures

COUNT = 10_000


def by_pillow(data: bytes) -> np.ndarray | None:
    try:
        return np.asarray(decode._open_rgb(data, decode.MAX_PIXELS, truncated=False))
    except BadImage:
        return None


def by_us(data: bytes) -> np.ndarray | None:
    try:
        return decode.decode_rgb(data)
    except BadImage:
        return None


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, cut, repeat, insert, swap in another file's bytes, or set bytes to the values parsers fear."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        at = int(rng.integers(0, len(out)))
        if rng.random() < 0.5:
            at = min(at, int(rng.integers(0, 64)))  # headers are where it hurts
        kind = int(rng.integers(0, 6))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.choice([0, 1, 127, 128, 254, 255]))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = out[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            del out[at : at + int(rng.integers(1, 16))]
        else:
            out[at : at + 8] = rng.bytes(8)
    return bytes(out)


def test_mutated_pictures():
    rng, seeds = np.random.default_rng(20), list(pictures().values())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"read": 0, "refused": 0}
    for number in range(COUNT):
        data = mutated(seeds[number % len(seeds)], rng)
        ours, theirs = by_us(data), by_pillow(data)
        assert (ours is None) == (theirs is None), f"mutation {number}: one road reads it, the other does not"
        if ours is not None:
            assert ours.dtype == np.uint8 and np.array_equal(ours, theirs), f"mutation {number}: other pixels"
        outcomes["read" if ours is not None else "refused"] += 1
    assert min(outcomes.values()) > COUNT // 20, outcomes
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    assert grown < 1200, f"{grown:.0f} MB"


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_extreme_shapes(shape, kind):
    data = encoded(noise(1, *shape), kind)
    image = decode.decode_resized(data, (32, 128))
    assert image.shape == (32, 128, 3)
    assert decode.decode_rgb(data).shape == (*shape, 3)


def test_claimed_sizes_are_not_believed():
    """Headers that promise gigapixels are refused without the memory for them."""
    jpeg, png = bytearray(encoded(noise(0), "JPEG")), bytearray(encoded(noise(0), "PNG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = b"\xff\xff\xff\xff"
    png[16:24] = (60000).to_bytes(4, "big") * 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (bytes(jpeg), bytes(png)):
        with pytest.raises(BadImage):
            decode.decode_rgb(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_png_text_bomb():
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("a", "x" * (80 << 20), zip=True)
    stream = io.BytesIO()
    Image.fromarray(noise(0)).save(stream, "PNG", pnginfo=info)
    with pytest.raises(BadImage):
        decode.decode_rgb(stream.getvalue())
