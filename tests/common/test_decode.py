"""Decoding and resizing: Pillow's pixels, one kind of error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from common.data.decode import BadImage, decode_mask, decode_resized, decode_rgb, resize_bicubic, resize_mask
from tests.common.lmdbs import encoded, noise


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pictures() -> dict[str, bytes]:
    """One file of every kind that word crops come in."""
    rgb = Image.fromarray(noise(1, 34, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(noise(2, 34, 100)[..., 0]))
    deep = Image.fromarray(noise(3, 34, 100)[..., 0].astype(np.uint16) * 257)
    kinds = {f"jpeg_q{q}_s{s}": saved(rgb, "JPEG", quality=q, subsampling=s) for q in (10, 75, 95) for s in (0, 1, 2)}
    kinds |= {
        "jpeg_progressive": saved(rgb, "JPEG", progressive=True),
        "jpeg_grey": saved(rgb.convert("L"), "JPEG"),
        "jpeg_cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "jpeg_exif_turned": saved(rgb, "JPEG", exif=exif),
        "jpeg_rgb_kept": saved(rgb, "JPEG", keep_rgb=True),
        "jpeg_tail": saved(rgb, "JPEG") + b"\0" * 100,
        "jpeg_1x1": saved(rgb.crop((0, 0, 1, 1)), "JPEG"),
        "jpeg_odd": saved(rgb.crop((0, 0, 17, 3)), "JPEG"),
        "png_rgb": saved(rgb, "PNG"),
        "png_rgba": saved(alpha, "PNG"),
        "png_la": saved(alpha.convert("LA"), "PNG"),
        "png_palette": saved(rgb.convert("P"), "PNG"),
        "png_palette_clear": saved(rgb.convert("P"), "PNG", transparency=3),
        "png_1bit": saved(rgb.convert("1"), "PNG"),
        "png_16bit": saved(deep, "PNG"),
        "png_exif": saved(rgb, "PNG", exif=exif),
        "webp": saved(rgb, "WEBP", quality=80),
        "webp_lossless_alpha": saved(alpha, "WEBP", lossless=True),
        "gif": saved(rgb, "GIF"),
        "gif_animated": saved(rgb, "GIF", save_all=True, append_images=[Image.fromarray(noise(9, 34, 100))]),
        "bmp": saved(rgb, "BMP"),
        "ppm": saved(rgb, "PPM"),
        "tiff": saved(rgb, "TIFF"),
    }
    return kinds


@pytest.mark.parametrize("name", pictures())
def test_same_pixels_as_pillow(name):
    data = pictures()[name]
    expected = by_pillow(data)
    image = decode_rgb(data)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)
    for height, width in ((32, 128), (48, 160), (7, 3)):
        resized = np.asarray(Image.fromarray(expected).resize((width, height), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(decode_resized(data, (height, width)), resized)
        np.testing.assert_array_equal(resize_bicubic(image, (height, width)), resized)


def bad_inputs() -> dict[str, bytes]:
    jpeg, png = pictures()["jpeg_q75_s2"], pictures()["png_rgb"]
    return {
        "empty": b"",
        "text": b"hello, this is no picture",
        "jpeg_half": jpeg[: len(jpeg) // 2],
        "jpeg_head": jpeg[:2],
        "png_half": png[: len(png) // 2],
        "png_head": png[:8],
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_every_failure_is_bad_image(name):
    for decode in (decode_rgb, lambda data: decode_resized(data, (32, 128)), decode_mask):
        with pytest.raises(BadImage):
            decode(bad_inputs()[name])


@pytest.mark.parametrize(
    "data, told",
    [
        (b"%PDF-1.7\n", "a PDF; save its pages"),
        (b"\0\0\0 ftypheic\0\0", "HEIC or AVIF; save it as JPEG"),
        (b'<?xml version="1.0"?><svg/>', "SVG; save it as PNG"),
        (b"hello", r"\(5 bytes\)$"),
    ],
)
def test_what_is_often_taken_for_a_picture_is_named(data: bytes, told: str) -> None:
    with pytest.raises(BadImage, match=told):
        decode_rgb(data)


def test_bombs_are_refused_before_decoding():
    bomb = saved(Image.new("1", (20000, 20000)), "PNG")
    assert len(bomb) < 1 << 20
    with pytest.raises(BadImage, match=r"more than|bomb"):
        decode_rgb(bomb)
    wide = encoded(noise(0, 4, 3000), "JPEG")
    assert decode_rgb(wide).shape == (4, 3000, 3)
    with pytest.raises(BadImage, match="more than 11999; scale it down"):
        decode_rgb(wide, max_pixels=11_999)


def test_truncated_files_on_request():
    data = pictures()["jpeg_q75_s2"]
    half = data[: len(data) * 2 // 3]
    image = decode_rgb(half, truncated=True)
    assert image.shape == (34, 100, 3)
    with pytest.raises(BadImage):
        decode_rgb(half)


def test_masks():
    mask = (noise(5)[..., 0] > 128).astype(np.uint8)
    np.testing.assert_array_equal(decode_mask(encoded(mask)), mask)
    assert resize_mask(mask, (32, 128)).dtype == np.int32
    assert resize_mask(mask.astype(float), (32, 128)).dtype == np.float32
    same = resize_bicubic(noise(5), (16, 40))
    np.testing.assert_array_equal(same, noise(5))
