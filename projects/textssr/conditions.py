"""What a UNet was trained with, next to its weights in `conditions.json`: painting takes its defaults from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_text
from projects.textssr.fonts import default_font

NAME = "conditions.json"
SHIPPED = Path(__file__).resolve().parent / "weights"
"""The painter that ships: `unet`, `vae` and `scheduler` (`projects/textssr/shipped.py`)."""
SETTLED = ("resolution", "ttf_size", "max_len", "exact_crop", "clean_glyph", "tight_glyph")
"""Keys that are also attributes of configurations and flags."""
SAMPLING = ("steps", "sampler", "guidance")
"""Flags whose defaults the key `sampling` of the conditions gives; any other value is allowed."""


def write(folder: Path, conditions: Mapping[str, Any]) -> None:
    """Write the file into a UNet folder."""
    write_text(folder / NAME, json.dumps(dict(conditions), indent=1) + "\n")


def font_facts(path: str | Path) -> dict[str, str]:
    """Name and SHA-256 of a font file."""
    return {"name": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def read(folder: Path) -> dict[str, Any]:
    """The conditions of a UNet folder; {} where it has none, as published ones. Raises UserError for a damaged file."""
    path = folder / NAME
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable ({error}): copy the folder again, or remove the file") from None
    return found


def settled(values: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    """The options (by the flags' names) that the UNet at `values["unet"]` was trained with, for flags not in `given`.

    Raises UserError for a flag that contradicts them, and for another font.
    """
    unet, kept = values["unet"], {}
    conditions = read(unet)
    for name in SETTLED:
        if name not in conditions:
            continue
        if name in given and values[name] != conditions[name]:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} {values[name]}: {unet} was trained with {conditions[name]} ({NAME}); remove the flag"
            )
        kept[name] = conditions[name]
    check_font(conditions, unet, values["font"])
    return kept | {name: value for name, value in sampling(conditions).items() if name not in given}


def sampling(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The way of sampling that suits a UNet, where its conditions tell one: steps, sampler, guidance."""
    found = conditions.get("sampling", {})
    return {name: found[name] for name in SAMPLING if name in found}


def check_font(conditions: Mapping[str, Any], unet: Path, font: Path | None) -> None:
    """Raise UserError where `font`, or without one the default font, is not the one of the UNet's training."""
    trained = conditions.get("font")
    if not trained:
        return
    try:
        same = font_facts(font or default_font())["sha256"] == trained["sha256"]
    except OSError as error:
        raise UserError(f"--font {font}: cannot be read ({error.strerror}): give a .ttf or .otf file") from None
    if not same:
        fix = "remove the flag" if font else f"give it with --font (without: {default_font().name})"
        raise UserError(f"--font {font or 'not given'}: {unet} was trained with {trained['name']} ({NAME}); {fix}")


def check_vae(conditions: Mapping[str, Any], unet: Path, vae: Path, scaling_factor: float) -> None:
    """Raise UserError where the VAE is not the one whose latents the UNet knows."""
    trained = conditions.get("scaling_factor")
    if trained is not None and abs(trained - scaling_factor) > 1e-6 * abs(trained):
        raise UserError(
            f"--vae {vae}: its scaling factor is {scaling_factor:g}, {unet} was trained with {trained:g} ({NAME}): "
            "give the VAE of its training"
        )
