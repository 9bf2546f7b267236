"""SIGA's strings, scoring rule, data set and resizing against the published code's numbers.

Files are distinguished by the keys they hold, so that further files and rows of these kinds are run as they are.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.data.bad import BadSamples
from common.data.decode import resize_bicubic, resize_mask
from common.data.loader import SeededSampler, word_loader
from common.data.masks import Mirrored, StoredMasks
from common.data.words import WordDataset
from common.metrics.papers import siga_scores
from common.text.charset import CHARSET_36, SIGA_36, SIGA_94
from common.text.codecs import GlyphCodec, GoCodec, LabelError
from common.text.normalise import keep_only
from tests.common.lmdbs import encoded
from tests.parity import harness

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
KINDS = {"strings": "rs_characters", "scores": "norm_ED_value", "dataset": "labels_in_order"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens: Path = metafunc.config.getoption("--goldens")
    for kind, key in KINDS.items():
        if kind in metafunc.fixturenames:
            files = [path for path in harness.case_files(goldens, "siga", "*.json") if key in _keys(path)]
            metafunc.parametrize(kind, files, ids=lambda path: path.stem)
    if "resize" in metafunc.fixturenames:
        paths = harness.cases_of(goldens, "siga", "*.npz", lambda case: {"hw", "names"} <= case.meta.keys())
        metafunc.parametrize("resize", paths, ids=lambda path: path.stem)


def _keys(path: Path) -> set[str]:
    content = json.loads(path.read_text())
    return set(content) if isinstance(content, dict) else set()


def test_strings(strings):
    golden = json.loads(strings.read_text())
    glyph, go, cutting = GlyphCodec(), GoCodec(), GoCodec(truncate=True)
    assert golden["rs_characters"][1:] == list(glyph.charset) == list(SIGA_36)
    assert golden["t_characters"] == go.tokens
    if "sensitive_num_class" in golden:
        assert GlyphCodec(SIGA_94).num_classes == golden["sensitive_num_class"]
        assert SIGA_94[36] == golden["sensitive_id_37"]  # id 37; the start id moved off it (spec section 9, 18)
    for row in golden["rows"]:
        label = keep_only(row["raw"], CHARSET_36, lower=True)
        assert label == row["normalised"], row["raw"]
        assert (len(row["raw"]) <= 25) == row["kept_in_training"], row["raw"]
        ids, lengths = glyph.encode([label])
        assert ids[0].tolist() == row["rs_ids"] and lengths[0] == row["rs_length"], row["raw"]
        assert glyph.decode(ids[:, 1:])[0].text == row["rs_roundtrip"], row["raw"]
        if "t_encode_ids" in row:
            assert cutting.encode([label])[0][0].tolist() == row["t_encode_ids"], row["raw"]
        if "t_error" in row:
            with pytest.raises(LabelError):
                go.encode([label])
            continue
        ids, lengths = go.encode([label])
        assert ids[0].tolist() == row["t_ids"] and lengths[0] == row["t_length"], row["raw"]
        assert go.raw_text(ids[:, 1:])[0] == row["t_decode_raw"], row["raw"]
    for row in golden.get("decode_rs", ()):
        assert glyph.decode(np.array([row["ids"]]))[0].text == row["text"]


def test_scores(scores):
    golden = json.loads(scores.read_text())
    rows = golden["rows"]
    accuracy, similarity, words = siga_scores([row["pred"] for row in rows], [row["gt"] for row in rows])
    for word, row in zip(words, rows, strict=True):
        assert word.correct == bool(row["correct"]) and abs(word.similarity - row["ned"]) <= 1e-9, row
    assert abs(accuracy - golden["accuracy"]) <= 1e-9 and abs(similarity - golden["norm_ED_value"]) <= 1e-9


def _noise_lmdbs(golden: dict, case: str, fill, folder: Path) -> tuple[Path, Path]:
    """The recipe in the file: pictures and masks in two LMDBs at mirrored places."""
    from common.data.lmdb import LmdbWriter

    place = Path("label", "Synth", "MJ", "MJ_x")
    # image i = uint8(floor(images('siga/CASE/i',(16,40,3),0,256))) …; mask i = PNG of (channel 0 > 128) …
    name, shape, *limits = re.search(r"images\('([^']+)',\(([\d,]+)\),(\d+),(\d+)\)", golden["images"]).groups()
    shape, limits = tuple(map(int, shape.split(","))), tuple(map(int, limits))
    channel, threshold = map(int, re.search(r"channel (\d+) > (\d+)", golden["images"]).groups())
    unmasked = {row["index"] for row in golden["train"]["rows"] if row["mask_sum"] == 0}
    with LmdbWriter(folder / "training" / place) as words, LmdbWriter(folder / "masks" / place) as masks:
        for number, label in enumerate(golden["labels_in_order"], 1):
            own = name.replace("CASE", case).removesuffix("/i") + f"/{number}"
            pixels = np.floor(np.asarray(fill.images(own, shape, *limits))).astype(np.uint8)
            broken = number == golden.get("undecodable_image_at")
            words.add(b"not an image" if broken else encoded(pixels), label)
            png = encoded((pixels[..., channel] > threshold).astype(np.uint8))
            if number not in unmasked:
                masks.add_value("mask", number - 1, png)
        masks.count = words.count
    return folder / "training" / place, folder / "masks"


def test_dataset(dataset, tmp_path, request):
    """Kept indices and labels as published; the two fixed faults (section 9, 4 and 21) are what differs: a label
    emptied by the filter is dropped unless asked for, an unreadable picture is skipped and listed instead of
    becoming `dummylabel`.
    """
    golden = json.loads(dataset.read_text())
    fill = harness.fill(request.config.getoption("--goldens"))
    path, masks = _noise_lmdbs(golden, dataset.stem, fill, tmp_path)
    broken = golden.get("undecodable_image_at")

    def keep(raw: str) -> str:
        return keep_only(raw, CHARSET_36, lower=True)

    for mode, longest in (("train", 25), ("test", None)):
        rows = golden[mode]["rows"]
        words = WordDataset(
            [path],
            max_length=longest,
            keep=keep,
            drop_empty=False,
            image_size=tuple(golden["train"]["rows"][0]["image_size"][::-1]),
            masks=StoredMasks(Mirrored(masks)),
        )
        assert len(words) == golden[mode]["length"]
        assert [words.location(i)[1] + 1 for i in range(len(words))] == [row["index"] for row in rows]
        readable = [row for row in rows if row["index"] != broken]
        register = BadSamples(len(words), limit=1.0)
        loader = word_loader(words, SeededSampler(len(words), 3, shuffle=False), bad=register)
        assert [label for batch in loader for label in batch.labels] == [row["label"] for row in readable]
        assert [bad.number for bad in register.rows()] == [row["index"] for row in rows if row["index"] == broken]
        for i, row in enumerate(rows):
            if row["index"] != broken:
                assert words.image(i).shape[:2] == tuple(row["image_size"][::-1])
                mask, total = words[i].mask, row.get("mask_sum")
                if total is not None:
                    assert mask.sum() == total
                if total != 0:  # a missing mask is as large as its image; the published one has the model's size
                    assert mask.shape == tuple(row["mask_size"][::-1])
    trained = WordDataset([path], keep=keep)
    assert len(trained) == sum(row["label"] != "" for row in golden["train"]["rows"])


def test_resize(resize, request):
    case = harness.load(resize)
    fill = harness.fill(request.config.getoption("--goldens"))
    height, width = case.meta["hw"]
    image_name, mask_name = case.meta["names"]
    image = np.floor(np.asarray(fill.images(image_name, (height, width, 3), 0, 256))).astype(np.uint8)
    mask = np.asarray(fill.images(mask_name, (height, width), 0, 1)) > 0.5
    for name, told in case.meta["tensors"].items():
        kind, _, size = name.partition("_")
        target = tuple(int(side) for side in size.split("x"))
        pixels = resize_bicubic(image, target) / 255
        made = {
            "rs": lambda pixels=pixels: ((pixels - MEAN) / STD).transpose(2, 0, 1),
            "t": lambda pixels=pixels: pixels.transpose(2, 0, 1),
            "maskI": lambda target=target: resize_mask(mask.astype(np.uint8), target)[None],
            "maskF": lambda target=target: resize_mask(mask.astype(np.float64), target)[None],
        }[kind]()
        assert list(made.shape) == told["shape"], name
        tolerance = 0.0 if kind == "maskI" else 1e-5
        harness.assert_close(made.ravel()[:: told["flat_step"]], case.arrays[name], absolute=tolerance, what=name)
