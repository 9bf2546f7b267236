"""Inputs of TextSSR's golden cases, made from the recipes in their meta; nothing here knows a case by name."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor

from projects.textssr.model.unet import TextUNet
from tests.conftest import ROOT
from tests.parity import harness
from tests.parity.recipes import NUMBER

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
IMAGES = re.compile(rf"images\('([^']+)',\s*\(([\d,+i]+)\)((?:,\s*{NUMBER})*)\)")


def kind(path: Path) -> str:
    """What a golden file holds, from its meta."""
    case = harness.load(path)
    keys = case.meta.keys() | case.arrays.keys() if isinstance(case.meta, dict) else set()
    signs = {
        "pipeline": {"draw_glyph"}, "datasets": {"json_loader"}, "step": {"optimizer", "inputs"},
        "inference": {"draws"}, "scheduler": {"alphas_cumprod"}, "unet": {"config_in_channels", "inputs"},
        "vae": {"scaling_factor", "inputs"},
    }  # fmt: skip
    found = next((name for name, sign in signs.items() if sign <= keys), "other")
    if found == "other" and any("by_prefix" in value for value in map(case.meta.get, keys) if isinstance(value, dict)):
        return "full_size"
    return found


def parametrize(metafunc: pytest.Metafunc, fixtures: dict[str, tuple[str, str]]) -> None:
    """Give each fixture of `fixtures` (name -> (kind, file pattern)) every case of its kind."""
    goldens = metafunc.config.getoption("--goldens")
    for fixture, (wanted, pattern) in fixtures.items():
        if fixture in metafunc.fixturenames:
            files = [p for p in harness.case_files(goldens, "textssr", pattern) if not p.name.endswith("manifest.json")]
            paths = [path for path in files if kind(path) == wanted]
            metafunc.parametrize(fixture, paths, ids=lambda path: path.stem, indirect=True, scope="module")


def picture(filler: ModuleType, recipe: str) -> np.ndarray:
    """The first `images('name',(shape)[,low,high])` of a recipe."""
    name, shape, bounds = IMAGES.search(recipe).groups()
    limits = [float(part) for part in bounds.split(",") if part.strip()]
    return filler.images(name, tuple(int(part) for part in shape.split(",")), *limits)


def item(text: str, i: int) -> int:
    """A number of a recipe for item `i`: "16", "4+3i" or "(8+8i)"."""
    first, step = re.fullmatch(r"\(?(\d+)(?:\+(\d+)i)?\)?", text.strip()).groups()
    return int(first) + int(step or 0) * i


def items_of(recipe: str, otherwise: int) -> int:
    """How many items a recipe with `/i` in the name has: "i=0,1" or "i=0..3"."""
    if span := re.search(r"i=0\.\.(\d+)", recipe):
        return int(span.group(1)) + 1
    listed = re.search(r"i=(\d+(?:,\d+)+)", recipe)
    return len(listed.group(1).split(",")) if listed else otherwise


def batch(filler: ModuleType, recipe: str, count: int = 2) -> Tensor:
    """A batch: one recipe for all items, or one with `/i` in the name for each."""
    if IMAGES.search(recipe).group(1).endswith("/i"):
        count = items_of(recipe, count)
        parts = [picture(filler, recipe.replace("/i'", f"/{i}'")) for i in range(count)]
        return torch.from_numpy(np.stack(parts))
    return torch.from_numpy(picture(filler, recipe))


def planes(filler: ModuleType, recipe: str, count: int = 2) -> Tensor:
    """`ones (…,25,64,64); … planes 0..(4+3i-1) = images('…/i',(4+3i,64,64),0,1)`."""
    total, rows, columns = map(int, re.search(r"ones \((?:\d+,)?(\d+),(\d+),(\d+)\)", recipe).groups())
    name, shape, bounds = IMAGES.search(recipe).groups()
    limits = [float(part) for part in bounds.split(",") if part.strip()]
    made = torch.ones(count, total, rows, columns)
    for i in range(count):
        inked, *sides = (item(part, i) for part in shape.split(","))
        made[i, :inked] = torch.from_numpy(filler.images(re.sub(r"/i$", f"/{i}", name), (inked, *sides), *limits))
    return made


def masks(recipe: str, side: int, count: int = 2) -> Tensor:
    """`ones; rows a..b, columns c..e are 0`; each bound is a number or `(a+bi)`."""
    bound = r"(\d+|\(\d+\+\d+i\))"
    bounds = re.search(rf"rows {bound}\.\.{bound}, columns {bound}\.\.{bound}", recipe).groups()
    made = torch.ones(count, 1, side, side)
    for i in range(count):
        top, bottom, left, right = (item(text, i) for text in bounds)
        made[i, :, top : bottom + 1, left : right + 1] = 0
    return made


def normals(recipe: str, name: str) -> Tensor:
    """Standard normal values that belong to `name`, by `RandomState(crc32('prefix/<k>')).standard_normal((shape))`."""
    prefix = re.search(r"crc32\('([^<]+)<k>'\)", recipe).group(1)
    shape = tuple(int(part) for part in re.search(r"standard_normal\(\(([\d,]+)\)\)", recipe).group(1).split(","))
    random = np.random.RandomState(zlib.crc32((prefix + name).encode()))
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))


def posterior_draws(seed: int, shape: tuple[int, ...]) -> list[Tensor]:
    """The two draws that the published call makes of torch's generator before it seeds it again."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(2)]


def shared(goldens: Path, name: str) -> harness.Case:
    """A case that others refer to: of the folder under test, or of the committed ones."""
    path = goldens / "textssr" / f"{name}.npz"
    return harness.load(path if path.is_file() else ROOT / "tests/goldens/textssr" / path.name)


def tiny_unet(goldens: Path, models: str = "") -> TextUNet:
    """The filled UNet that `models`, the text of a case, names: "unet_tiny (…), vae_tiny (…)"."""
    unet = TextUNet(**shared(goldens, named(models, "unet_tiny")).meta["constructor"])
    harness.fill(goldens).fill_module(unet)
    return unet


def scheduler_of(goldens: Path, meta: dict) -> DDPMScheduler:
    """The scheduler of a case: its own settings where it has some, else those of the shared case."""
    return DDPMScheduler(**(meta.get("scheduler") or shared(goldens, "ddpm_sd21").meta["scheduler"]))


def named(models: str, default: str) -> str:
    found = re.search(rf"{default.split('_')[0]}_\w+", models)
    return found.group() if found else default


def tiny_vae(goldens: Path, models: str = "") -> AutoencoderKL:
    vae = AutoencoderKL(**shared(goldens, named(models, "vae_tiny")).meta["constructor"])
    harness.fill(goldens).fill_module(vae)
    return vae.eval()
