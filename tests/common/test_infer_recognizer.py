"""Files, bytes, arrays and broken images through a reader; cards; the read command; the registry."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from common import cli, registry
from common.errors import UserError
from common.files import read_regular
from common.infer.read import sheet_names
from common.infer.recognizer import Recognizer, as_array, find_images, open_recognizer, pick_device
from tests.common import toy
from tests.common.lmdbs import noise


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.install(monkeypatch)
    return toy.save_toy(tmp_path / "toy.pth")


@pytest.fixture
def recognizer(checkpoint: Path) -> Recognizer:
    return open_recognizer(checkpoint, "toy/brightness", "cpu", batch_size=2)


def test_reads_every_kind_of_image(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(toy.crop("b"))
    picture = Image.open(io.BytesIO(toy.crop("c")))
    grey = np.full((9, 20), 10, np.uint8)
    found = recognizer(
        [toy.crop("a"), tmp_path / "b.png", str(tmp_path / "b.png"), picture, grey, picture.convert("RGBA")]
    )
    assert [p.text for p in found] == list("abbcac")
    assert all(0.5 < p.confidence <= 1 and len(p.char_confidences) == 1 for p in found)
    assert recognizer.reader.batches == [2, 2, 2]


def test_a_broken_image_is_counted_and_keeps_its_place(recognizer: Recognizer, tmp_path: Path) -> None:
    found = recognizer([b"no image", toy.crop("a"), tmp_path / "absent.png", np.full((4, 4, 3), -1.0), toy.crop("c")])
    assert [p.text for p in found] == ["", "a", "", "", "c"]
    assert [bool(p.error) for p in found] == [True, False, True, True, False]
    assert len(recognizer.bad) == 3


def test_without_images_nothing_is_read(recognizer: Recognizer) -> None:
    assert recognizer([]) == [] and recognizer.reader.batches == []


def test_the_card_names_model_and_options(checkpoint: Path) -> None:
    checkpoint.with_name("toy.pth.json").write_text(
        json.dumps({"model": "toy/Brightness", "options": {"sharpness": 3.0}})
    )
    assert open_recognizer(checkpoint).reader.model.sharpness == 3.0
    assert open_recognizer(checkpoint, options={"sharpness": 4.0}).reader.model.sharpness == 4.0


@pytest.mark.parametrize("card, model, words", [
    (None, None, "--model"), ("{broken", None, "no readable metadata"), ("[1]", None, "JSON object"),
    (None, "toy/Bright", "toy/Brightness"),
])  # fmt: skip
def test_unclear_checkpoints_are_refused_in_words(
    checkpoint: Path, card: str | None, model: str | None, words: str
) -> None:
    if card is not None:
        checkpoint.with_name("toy.pth.json").write_text(card)
    with pytest.raises(UserError, match=words):
        open_recognizer(checkpoint, model)


def test_absent_things_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_recognizer(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="no image is there"):
        find_images([str(tmp_path / "*.png")])
    with pytest.raises(UserError, match="is no device"):
        pick_device("gpu7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda") == torch.device("cuda:0")
    with pytest.raises(UserError, match="GPU 7 was asked for and there are 2; use cuda:0 to cuda:1"):
        pick_device("cuda:7")


def test_find_images_takes_files_folders_and_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("x.png", "y.JPG", "notes.txt"):
        (folder / name).write_bytes(toy.crop("a"))
    assert [p.name for p in find_images([str(folder)])] == ["x.png", "y.JPG"]
    assert [p.name for p in find_images([str(folder / "*.png"), str(folder / "notes.txt")])] == ["x.png", "notes.txt"]


def test_read_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, wide, bad = tmp_path / "good.png", tmp_path / "wide.png", tmp_path / "bad.png"
    good.write_bytes(toy.crop("a"))
    wide.write_bytes(toy.crop("b", (400, 10)))
    bad.write_bytes(b"\x89PNG nothing")
    files = [
        "read",
        str(good),
        str(wide),
        str(bad),
        "--checkpoint",
        str(checkpoint),
        "--model",
        "toy/Brightness",
        "--device",
        "cpu",
    ]
    assert cli.main([*files, "--attention", str(tmp_path / "maps")]) == 1
    out, err = capsys.readouterr()
    assert [line.split("\t")[:2] for line in out.splitlines()] == [[str(good), "a"], [str(wide), "b"]]
    assert "very wide" in err and "bad.png: skipped" in err and "1 of 3" in err
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["good.png_attention.png", "wide.png_attention.png"]
    sheet = tmp_path / "sheet.png"
    assert cli.main([*files[:2], *files[4:], "--json", "--sheet", str(sheet)]) == 0
    assert np.asarray(Image.open(sheet)).shape == (118, 224, 3)
    assert json.loads(capsys.readouterr().out)["text"] == "a"


@pytest.mark.parametrize(
    "words, told",
    [
        (["--sheet", "x.png"], "--sheet: x.png is one of the pictures to read"),
        (["--sheet", "../here/x.png"], "is one of the pictures to read"),
        (["--detect", "--draw", "./x.png"], "--draw: x.png is one of the pictures to read"),
        (["--sheet", "y.jpg"], "--sheet: y.jpg: a PNG is written"),
    ],
)
def test_no_picture_that_is_read_is_overwritten(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("x.png").write_bytes(toy.crop("a"))
    assert cli.main(["read", "x.png", *words]) == 2
    assert told in capsys.readouterr().err and Path("x.png").read_bytes() == toy.crop("a")
    assert [path.name for path in Path().iterdir()] == ["x.png"]


def test_a_folder_in_place_of_a_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_regular(tmp_path)


def test_sheets_of_equal_names_stay_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/1.jpg", "b/1.jpg", "b/1.png", "b/1.jpg")]
    names = [path.as_posix() for path in sheet_names(paths)]
    assert names == [f"{name}_attention.png" for name in ("a/1.jpg", "b/1.jpg", "b/1.png", "b/1.jpg-2")]
    above = sheet_names([Path("1.jpg"), Path("../../x/1.jpg")])
    assert all(".." not in path.parts for path in above) and len(set(above)) == 2


def test_a_reader_without_maps_says_so_once(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy.BrightnessReader, "decode", lambda self, outputs, attention: decode(self, outputs))
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(toy.crop(name))
    words = ["read", str(tmp_path), "--checkpoint", str(checkpoint), "--model", "toy/Brightness", "--device", "cpu"]
    assert cli.main([*words, "--attention", str(tmp_path / "maps")]) == 0
    assert capsys.readouterr().err.count("warning: --attention") == 1 and not (tmp_path / "maps").exists()


decode = toy.BrightnessReader.decode


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_when_asked(orientation: int, recognizer: Recognizer) -> None:
    picture = Image.fromarray(noise(3, 5, 7))
    exif, stream = picture.getexif(), io.BytesIO()
    exif[0x0112] = orientation
    picture.save(stream, "PNG", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(stream)))
    assert np.array_equal(as_array(stream.getvalue(), upright=True), shown)
    assert np.array_equal(as_array(stream.getvalue()), np.asarray(picture))
    recognizer.upright = True
    assert np.array_equal(recognizer.prepare(stream.getvalue()), recognizer.fit(shown))


def test_a_mistyped_option_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"toy/Brightness has no option 'sharpnes'.*; it takes sharpness"):
        open_recognizer(checkpoint, "toy/Brightness", "cpu", {"sharpnes": 3})

    def selective(path: Path, options: dict, device: torch.device) -> toy.BrightnessReader:
        return toy.open_toy(path, {name: options[name] for name in ("sharpness",) if name in options}, device)

    monkeypatch.setattr(registry, "rows", lambda: (dataclasses.replace(toy.ROW, open=selective),))
    assert open_recognizer(checkpoint, "toy/Brightness", "cpu", {"sharpness": 3}).reader.model.sharpness == 3
    with pytest.raises(UserError, match=r"no option 'sharpnes'.*; it takes sharpness"):
        open_recognizer(checkpoint, "toy/Brightness", "cpu", {"sharpnes": 3})
    monkeypatch.setattr(registry, "rows", lambda: (dataclasses.replace(toy.ROW, build=build_any),))
    with pytest.raises(UserError, match=r"no option 'sharpnes'.*; see .*build_any for those"):
        open_recognizer(checkpoint, "toy/Brightness", "cpu", {"sharpnes": 3})


def build_any(**options: object) -> toy.Brightness:
    return toy.Brightness(**options)


def test_memory_of_the_gpu_is_one_line(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(recognizer.reader, "read", full)
    with pytest.raises(UserError, match="lower --batch-size"):
        recognizer([toy.crop("a")])


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    script = "import sys; from common.errors import command\n@command\ndef main():\n for i in range(99999): print(i)\n"
    line = f"{sys.executable} -c '{script}sys.exit(main())' | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "141"] and not done.stderr


def test_names_that_are_no_utf8_are_printed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    script = "import sys; from common import cli; cli.main([]); print(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("caf\\udce9\n")


def test_at_least_one_thread_decodes(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="--workers: 0 must be at least 1"):
        open_recognizer(checkpoint, "toy/Brightness", "cpu", workers=0)


def test_models_that_are_not_there(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    assert cli.main(["models", "bright"]) == 0
    assert cli.main(["models", "nosuch"]) == 2 and "no name contains 'nosuch'" in capsys.readouterr().err


def test_command_errors_are_one_line_and_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(toy.crop("a"))
    assert cli.main(["read", str(tmp_path / "a.png"), "--checkpoint", str(tmp_path / "no.pth")]) == 2
    assert capsys.readouterr().err.startswith("error: --checkpoint:")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(name.split()[0] in text for name in cli.COMMANDS)


def test_project_names_are_checked() -> None:
    with pytest.raises(UserError, match="no project is called 'nobody'"):
        registry.project_module("nobody", "report")
