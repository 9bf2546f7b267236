"""The font faces of the corpus: where they are, which split they belong to, which characters they lack."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageFont

from common.data.synth.options import BUNDLED
from common.errors import UserError

# Families of the fontpkg-* packages (SIL OFL 1.1 or Apache-2.0) by kind; a star keeps a family for evaluation.
_FAMILIES = {
    "sans": "roboto montserrat *poppins josefin_sans oswald anton *archivo_black bebas_neue teko russo_one",
    "serif": "merriweather playfair_display eb_garamond libre_baskerville *pt_serif source_serif_4 cinzel "
    "*abril_fatface",
    "slab": "arvo *bitter roboto_slab zilla_slab alfa_slab_one",
    "hand": "caveat indie_flower *kalam permanent_marker shadows_into_light zeyada",
    "script": "dancing_script great_vibes lobster lobster_two *oleo_script pacifico satisfy yellowtail",
    "display": "black_ops_one bungee fredoka *lilita_one luckiest_guy orbitron press_start_2p *righteous titan_one",
    "mono": "fira_code inconsolata roboto_mono *space_mono",
}
# Serif faces among the families that are not bundled and whose names do not say so.
_SERIFS = (
    "amiri andada_pro bodoni_moda cardo cormorant cormorant_garamond crimson_pro crimson_text domine frank_ruhl_libre "
    "fraunces gravitas_one literata lora marcellus newsreader spectral vollkorn"
)
_KIND_WEIGHT = {
    "sans": 1.0,
    "serif": 0.8,
    "slab": 0.5,
    "display": 0.45,
    "mono": 0.15,
    "hand": 0.5,
    "script": 0.6,
    "other": 1.0,
}
_SMALL = "abdeghnqrt"  # letters whose two cases differ in shape
_TOO_THIN = ("Thin", "ExtraLight", "Hairline")
_DEJAVU = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")  # they come with matplotlib
ALL = "all"  # in place of a font: every installed fontpkg-* family
_SUFFIXES = {".ttf", ".otf", ".ttc"}


@dataclass(frozen=True)
class Face:
    """One way to draw letters: a font file, and for a variable font its axis values in the file's order."""

    family: str
    kind: str
    path: str
    axes: tuple[float, ...] | None
    held_out: bool  # used for evaluation only
    missing: str = ""  # characters of the asked charset that it cannot draw
    capitals_only: bool = False  # draws lower-case letters as capitals

    def open(self, size: int) -> ImageFont.FreeTypeFont:
        """The face at `size` pixels per em."""
        # The basic layout engine: the same on every machine, whether or not a shaping library is installed.
        font = ImageFont.truetype(self.path, size, layout_engine=ImageFont.Layout.BASIC)
        if self.axes:
            font.set_variation_by_axes(list(self.axes))
        return font

    def suits(self, text: str) -> bool:
        """Whether the face can draw `text` so that its label is right and a sign painter would have done it."""
        if not set(self.missing).isdisjoint(text) or (self.capitals_only and text != text.upper()):
            return False  # small capitals would contradict a label in lower case
        # Joined scripts are not set in capitals: nobody could read them.
        return self.kind != "script" or sum(map(str.isupper, text)) < 2

    @property
    def name(self) -> str:
        """File stem, with the weight of a variable face."""
        stem = Path(self.path).stem.partition("[")[0]
        return stem if not self.axes else f"{stem}:{'/'.join(f'{a:g}' for a in self.axes)}"


@functools.lru_cache(maxsize=8)
def find_faces(fonts: tuple[str, ...], characters: str) -> tuple[Face, ...]:
    """All faces of `fonts` (family names, font files or folders; empty: every bundled family), checked for coverage.

    Faces that lack more than a tenth of `characters` are skipped. Raises `UserError` if a name is not found, a file
    is no font, a character is in no face of training or of evaluation, or there are fewer than two families.
    """
    files = _bundled() if not fonts else _chosen(fonts)
    files = list(dict.fromkeys(files))
    held_out = {family for family, _, _, held in files if held}
    families = sorted({family for family, *_ in files})
    if len(families) < 2:
        raise UserError("--fonts: give at least two families: evaluation draws with fonts that training has not seen")
    if not held_out or len(held_out) == len(families):
        held_out = set(families[::5])
    faces = []
    for family, kind, path, _ in files:
        for face in _faces_of(family, kind, path, family in held_out):
            checked = _check(face, characters)
            if len(checked.missing) <= len(characters) // 10:
                faces.append(checked)
    for held in (False, True):
        drawable: set[str] = set()
        for face in faces:
            if face.held_out == held:
                drawable |= set(characters) - set(face.missing)
        lost = "".join(sorted(set(characters) - drawable))
        if lost:
            which = "evaluation" if held else "training"
            raise UserError(f"--fonts: no {which} font can draw {lost!r}: add a font that can, or shorten --charset")
    return tuple(faces)


def coverage_report(faces: Sequence[Face]) -> list[str]:
    """One line per face that lacks characters."""
    return [f"{face.name}: no glyph for {face.missing}" for face in faces if face.missing]


def _bundled() -> list[tuple[str, str, Path, bool]]:
    files = []
    for kind, names in _FAMILIES.items():
        for name in names.split():
            found = _package_fonts(name.lstrip("*"))
            files += [(name.lstrip("*"), kind, path, name.startswith("*")) for path in found]
    if not files:
        raise UserError("fonts: no fontpkg-* package is installed: run `make setup`, or give --fonts FOLDER")
    return files


def _installed() -> list[tuple[str, str, Path, bool]]:
    """The bundled families and those of every other fontpkg-* package (extra `fonts`); of these every fifth is for
    evaluation."""
    files = _bundled()
    known = {family for family, *_ in files}
    names = {distribution.metadata["Name"] or "" for distribution in metadata.distributions()}
    found = sorted(
        name.lower().removeprefix("fontpkg-").replace("-", "_") for name in names if "fontpkg-" in name.lower()
    )
    others = [family for family in found if family not in known]
    for place, family in enumerate(others):
        files += [(family, _kind_of(family), path, place % 5 == 0) for path in _package_fonts(family)]
    return files


def _kind_of(family: str) -> str:
    """The kind of a family that is not bundled, by its name."""
    if "mono" in family or "code" in family:
        return "mono"
    if "slab" in family or family in ("sanchez", "arvo"):
        return "slab"
    return "serif" if "serif" in family or family in _SERIFS.split() else "sans"


def _package_fonts(name: str) -> list[Path]:
    if name == "dejavu_sans":  # TextSSR draws its glyph conditions with it
        return [Path(matplotlib.get_data_path(), "fonts", "ttf", file) for file in _DEJAVU]
    spec = importlib.util.find_spec(f"fontpkg_{name}")
    if spec is None or not spec.submodule_search_locations:
        return []
    return sorted(Path(spec.submodule_search_locations[0], "files").glob("*.ttf"))


def _chosen(fonts: tuple[str, ...]) -> list[tuple[str, str, Path, bool]]:
    kinds = {name.lstrip("*"): (kind, name[0] == "*") for kind, names in _FAMILIES.items() for name in names.split()}
    files = []
    for font in fonts:
        path, key = Path(font), font.lower().replace(" ", "_").replace("-", "_")
        if font == BUNDLED:
            files += _bundled()
        elif font == ALL:
            files += _installed()
        elif path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in _SUFFIXES]
            files += [(p.stem.partition("[")[0].partition("-")[0].lower(), "other", p, False) for p in found]
        elif path.suffix.lower() in _SUFFIXES and path.is_file():
            files.append((path.stem.partition("[")[0].partition("-")[0].lower(), "other", path, False))
        elif found := _package_fonts(key):
            kind, held = kinds.get(key, (_kind_of(key), False))
            files += [(key, kind, p, held) for p in found]
        else:
            raise UserError(f"--fonts {font}: neither all, an installed family, a font file nor a folder with fonts")
    return files


def _faces_of(family: str, kind: str, path: Path, held_out: bool) -> list[Face]:
    if any(thin in path.stem for thin in _TOO_THIN):
        return []
    try:
        font = ImageFont.truetype(str(path), 20, layout_engine=ImageFont.Layout.BASIC)
        axes = font.get_variation_axes()
    except NotImplementedError:  # Pillow without FreeType's variations
        axes = []
    except OSError as error:
        if "variation" not in str(error) and "argument" not in str(error):
            raise UserError(f"{path}: cannot be opened as a font ({error}): remove it from --fonts") from error
        axes = []
    if not axes:
        return [Face(family, kind, str(path), None, held_out)]
    names = [axis["name"].decode() if isinstance(axis["name"], bytes) else str(axis["name"]) for axis in axes]
    weights = [400.0, 700.0, 900.0] if "Weight" in names else [None]
    chosen = []
    for weight in weights:
        values = [float(axis["default"]) for axis in axes]
        if weight is not None:
            axis = axes[names.index("Weight")]
            if not axis["minimum"] <= weight <= axis["maximum"]:
                continue
            values[names.index("Weight")] = weight
        chosen.append(Face(family, kind, str(path), tuple(values), held_out))
    return chosen


def _check(face: Face, characters: str) -> Face:
    font = face.open(32)
    blank = coverage(font, "\U0010ffff")[0]
    pictures = {c: coverage(font, c)[0] for c in dict.fromkeys(characters + _SMALL + _SMALL.upper())}
    missing = "".join(c for c in characters if pictures[c].size == 0 or np.array_equal(pictures[c], blank))
    alike = sum(_alike(pictures[c], pictures[c.upper()]) for c in _SMALL)
    return Face(face.family, face.kind, face.path, face.axes, face.held_out, missing, alike >= 5)


def coverage(font: ImageFont.FreeTypeFont, character: str) -> tuple[np.ndarray, int, int]:
    """A glyph as uint8 [h, w] coverage, and the offset x, y of its corner from the pen on the baseline."""
    mask, (left, top) = font.getmask2(character, mode="L", anchor="ls")
    width, height = mask.size
    if not width or not height:
        return np.zeros((0, 0), np.uint8), left, top
    # `bytes(mask)` and `np.asarray(mask)` go pixel by pixel.
    data = Image.Image()._new(mask).tobytes()
    return np.frombuffer(data, np.uint8).reshape(height, width), left, top


def _alike(small: np.ndarray, capital: np.ndarray) -> bool:
    """Whether two glyphs are the same shape at different sizes (small capitals)."""
    if small.size == 0 or capital.size == 0:
        return False
    a, b = (cv2.resize(p, (24, 24), interpolation=cv2.INTER_AREA).astype(np.float32).ravel() for p in (small, capital))
    return bool(np.corrcoef(a, b)[0, 1] > 0.8)


def face_weights(faces: Sequence[Face], script_share: float) -> np.ndarray:
    """Probability of each face: kinds by fixed weights, families of a kind alike, faces of a family alike."""
    families = {(face.kind, face.family) for face in faces}
    weights = []
    for face in faces:
        kind_weight = _KIND_WEIGHT[face.kind] * (script_share if face.kind in ("hand", "script") else 1.0)
        in_kind = sum(kind == face.kind for kind, _ in families)
        in_family = sum(other.family == face.family for other in faces)
        weights.append(kind_weight / in_kind / in_family)
    total = np.array(weights)
    return total / total.sum()
