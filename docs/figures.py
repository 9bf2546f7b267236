"""Draw the architecture figures of the papers' pages: `python docs/figures.py` writes docs/images/*.svg.

A figure is a grid of boxes, each with its column, row and lines of text, and arrows between them. Dashed boxes exist
only in training.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 62, 46, 26, 12


class Box(NamedTuple):
    """A box of a figure; `training`: only there while training."""

    column: float
    row: float
    text: str
    training: bool = False


class Figure(NamedTuple):
    """Boxes by name, arrows between them, and what the figure shows."""

    title: str
    boxes: dict[str, Box]
    arrows: str  # "a>b b>c"


FIGURES = {
    "siga": Figure(
        "SIGA: attention of a plain decoder and a text mask make labels for glyph attention",
        {
            "image": Box(0, 1, "word crop|32x128"),
            "backbone": Box(1, 1, "backbone|ResNet, SVTR or ViT"),
            "decoder": Box(2, 0, "first decoder|text, columns α_t"),
            "mask": Box(1, 2, "k-means text mask|of the grey levels", True),
            "segment": Box(2, 2, "segmentation head|text mask M"),
            "labels": Box(3, 0, "glyph pseudo-labels|α_t times mask", True),
            "glyph": Box(3, 1, "glyph attention S|27 channels"),
            "fuse": Box(4, 1, "glyph features gated|with a second decoder"),
            "text": Box(5, 1, "last decoder|the text"),
        },
        "image>backbone image>mask backbone>decoder backbone>segment mask>segment decoder>labels "
        "segment>glyph labels>glyph glyph>fuse fuse>text",
    ),
    "mgpstr": Figure(
        "MGP-STR: one encoder, three granularities; ACDS-STR guides its attention by character boxes",
        {
            "image": Box(0, 1, "word crop|32x128"),
            "vit": Box(1, 1, "ViT|256 patches of 4x4"),
            "char": Box(2, 0, "A3, characters|27 tokens"),
            "bpe": Box(2, 1, "A3, BPE|27 tokens"),
            "wp": Box(2, 2, "A3, WordPiece|27 tokens"),
            "charhead": Box(3, 0, "linear|38 classes"),
            "bpehead": Box(3, 1, "linear|50,257 classes"),
            "wphead": Box(3, 2, "linear|30,522 classes"),
            "fuse": Box(4, 1, "the surest of three|product up to the end"),
            "boxes": Box(1, 2, "ACDS-STR: core areas|from character boxes", True),
        },
        "image>vit vit>char vit>bpe vit>wp char>charhead bpe>bpehead wp>wphead charhead>fuse bpehead>fuse wphead>fuse "
        "boxes>vit",
    ),
    "dig": Figure(
        "DiG: reading (contrast of windows) and writing (masked pixels) train one encoder; a decoder is fine-tuned",
        {
            "hidden": Box(0, 0, "view 1|70 % of patches hidden", True),
            "other": Box(0, 2, "view 2|augmented", True),
            "encoder": Box(1, 0, "ViT encoder|256 tokens"),
            "momentum": Box(1, 2, "momentum encoder|moving average", True),
            "pixels": Box(2, 0, "writing: linear head|hidden pixels", True),
            "windows": Box(2, 1, "four windows|projector, predictor", True),
            "keys": Box(2, 2, "four windows|projector", True),
            "loss": Box(3, 1.5, "reading: each window|finds itself among all", True),
            "decoder": Box(2, -1, "Transformer decoder|the text"),
        },
        "hidden>encoder other>momentum encoder>pixels encoder>windows momentum>keys windows>loss keys>loss "
        "encoder>decoder",
    ),
    "ssm": Figure(
        "SSM: two crops are taken apart again after they were laid over each other; then a text decoder is fine-tuned",
        {
            "x": Box(0, 0, "crop x"),
            "y": Box(0, 1, "y: x flipped or|turned by 180°", True),
            "mix": Box(1, 0.5, "(x + y) / 2", True),
            "encoder": Box(2, 0.5, "ViT encoder"),
            "decoder": Box(3, 0, "light decoder|prompts of direction", True),
            "images": Box(4, 0, "x and y again|pixel loss", True),
            "momentum": Box(3, 1, "momentum network|another superimposition", True),
            "contrast": Box(4, 1, "contrast of windows|discriminative loss", True),
            "text": Box(3, 2, "text decoder|fine-tuning"),
        },
        "x>mix y>mix mix>encoder encoder>decoder decoder>images momentum>contrast decoder>contrast encoder>text",
    ),
    "textssr": Figure(
        "TextSSR: a latent diffusion model repaints one region of a scene with another word",
        {
            "scene": Box(0, 0, "crop of a scene|256x256"),
            "erased": Box(1, 0, "region erased|and its mask"),
            "glyph": Box(0, 1, "whole word, warped|into the region"),
            "planes": Box(0, 2, "one plane for each|character, grey: place"),
            "vae": Box(2, 0.5, "VAE encoder|latents, fine-tuned"),
            "unet": Box(3, 1, "UNet (SD 2.1)|no text prompt"),
            "noise": Box(2, 2, "noise|DDIM or DDPM steps"),
            "out": Box(4, 1, "VAE decoder|the painted word"),
            "judge": Box(5, 1, "a reader keeps|what it reads right"),
        },
        "scene>erased erased>vae glyph>vae vae>unet planes>unet noise>unet unet>out out>judge",
    ),
}


def svg(figure: Figure) -> str:
    """The figure as SVG that follows the page's colours."""
    top = min(box.row for box in figure.boxes.values())
    places = {
        name: (MARGIN + box.column * (WIDTH + GAP_X), MARGIN + (box.row - top) * (HEIGHT + GAP_Y))
        for name, box in figure.boxes.items()
    }
    width = max(x for x, _ in places.values()) + WIDTH + MARGIN
    height = max(y for _, y in places.values()) + HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-size="13" '
        f'font-family="sans-serif"><title>{escape(figure.title)}</title><rect width="100%" height="100%" '
        'fill="#fff"/><defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#5c6470"/></marker></defs>'
    ]
    for arrow in figure.arrows.split():
        (x1, y1), (x2, y2) = (places[name] for name in arrow.split(">"))
        across = x2 != x1
        start = (x1 + WIDTH, y1 + HEIGHT / 2) if x2 > x1 else (x1 + WIDTH / 2, y1 if y2 < y1 else y1 + HEIGHT)
        end = (x2, y2 + HEIGHT / 2) if across else (x2 + WIDTH / 2, y2 + HEIGHT if y2 < y1 else y2)
        bend = (end[0] - start[0]) / 2 if across else 0
        parts.append(
            f'<path d="M{start[0]:.0f} {start[1]:.0f}C{start[0] + bend:.0f} {start[1]:.0f} {end[0] - bend:.0f} '
            f'{end[1]:.0f} {end[0]:.0f} {end[1]:.0f}" fill="none" stroke="#5c6470" stroke-width="1.4" '
            'marker-end="url(#a)"/>'
        )
    for name, box in figure.boxes.items():
        x, y = places[name]
        style = 'fill="#f6f8fa" stroke-dasharray="5 4"' if box.training else 'fill="#e8f0fa"'
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="8" stroke="#2563a8" {style}/>'
        )
        lines = box.text.split("|")
        for number, line in enumerate(lines):
            line_y = y + HEIGHT / 2 + 5 + 17 * (number - (len(lines) - 1) / 2)
            weight = ' font-weight="600"' if number == 0 else ""
            parts.append(
                f'<text x="{x + WIDTH / 2:.0f}" y="{line_y:.0f}" text-anchor="middle" fill="#1f2328"{weight}>'
                f"{escape(line)}</text>"
            )
    return "".join(parts) + "</svg>\n"


if __name__ == "__main__":
    for key, drawn in FIGURES.items():
        (Path(__file__).parent / "images" / f"{key}.svg").write_text(svg(drawn), "utf-8")
