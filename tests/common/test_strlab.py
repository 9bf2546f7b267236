"""The Python interface: one picture or many of every kind, streams, async, devices; shipped readers by name."""

from __future__ import annotations

import asyncio
import doctest
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import strlab
from common import cli, errors
from common.data.pictures import decode_shown
from common.infer import shipped
from common.infer.images import as_array, unlike_a_word
from common.infer.recognizer import Recognizer
from common.metrics import intervals
from tests.common import toy

ACCURACY = [{"set": "IIIT5k-val", "protocol": "36", "words": 400, "accuracy": 75.0}]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped readers that holds two toys, `bright` and the default `dim`."""
    toy.install(monkeypatch)
    folder = tmp_path / "weights"
    facts = {"model": "toy/Brightness", "data": "rendered words", "licence": "Apache-2.0", "accuracy": ACCURACY}
    shipped.write(folder / "bright.safetensors", toy.Brightness().state_dict(), {**facts, "options": {"sharpness": 9}})
    shipped.write(folder / "dim.safetensors", toy.Brightness().state_dict(), {**facts, "options": {}, "default": True})
    monkeypatch.setattr(shipped, "folders", lambda: [folder])
    shipped.announce.cache_clear()
    return folder


@pytest.fixture
def reader(shelf: Path) -> Recognizer:
    return strlab.load(device="cpu", batch_size=4)


def kinds(folder: Path) -> dict[str, object]:
    """The same grey picture (letter b) in every form that is taken."""
    data = toy.crop("b")
    path = folder / "b.png"
    path.write_bytes(data)
    picture = Image.open(io.BytesIO(data))
    pixels = np.asarray(picture)
    return {
        "str": str(path), "path": path, "bytes": data, "bytearray": bytearray(data), "view": memoryview(data),
        "file": io.BytesIO(data), "open": path.open("rb"), "pil": picture, "rgba": picture.convert("RGBA"),
        "palette": picture.convert("P"), "hwc": pixels, "chw": pixels.transpose(2, 0, 1), "grey": pixels[:, :, 0],
        "grey1": pixels[:, :, :1], "float01": pixels / 255, "float32": pixels.astype(np.float32), "uint16":
        pixels.astype(np.uint16) * 257, "int64": pixels.astype(np.int64), "tensor": torch.from_numpy(pixels.copy()),
        "tensor chw": torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255,
        "half": torch.from_numpy(pixels.copy()).permute(2, 0, 1).half() / 255,
    }  # fmt: skip


def test_one_picture_of_any_kind_gives_one_prediction(reader: Recognizer, tmp_path: Path) -> None:
    for name, image in kinds(tmp_path).items():
        found = reader(image)
        assert isinstance(found, strlab.Prediction), name
        assert (found.text, found.error) == ("b", None), name


def test_several_pictures_give_a_list(reader: Recognizer, tmp_path: Path) -> None:
    images = kinds(tmp_path)
    assert [p.text for p in reader(images.values())] == ["b"] * len(images)
    stack = np.stack([np.full((12, 30, 3), toy.COLOURS[letter], np.uint8) for letter in "abcab"])
    assert [p.text for p in reader(stack)] == list("abcab") == [p.text for p in reader(torch.from_numpy(stack))]
    assert reader([]) == []
    assert [p.text for p in reader.stream(iter([toy.crop("a"), toy.crop("c")]))] == ["a", "c"]
    assert [p.text for p in reader.stream(str(tmp_path / "b.png"))] == ["b"]
    reader.reader.batches.clear()
    assert len(reader(np.zeros((40, 140, 3), np.uint8)).text) == 1 and reader.reader.batches == [1]


@pytest.mark.parametrize("thing", [3, None, 2.5, {"a": 1}, object(), [3], [None], np.zeros(5), np.zeros((5, 6, 7)),
                                   np.array(["a"]), np.zeros((4, 4), complex), io.StringIO("x")],
                         ids=lambda thing: type(thing).__name__)  # fmt: skip
def test_what_is_no_picture_is_a_type_error(reader: Recognizer, thing: object) -> None:
    with pytest.raises(TypeError):
        reader(thing)


def test_what_cannot_be_read(reader: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "absent.png")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match=r"not a regular file|directory"):
            reader(path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    assert reader(tmp_path / "broken.png").error and reader.bad[-1][0].endswith("broken.png")
    assert "not finite" in reader(np.full((4, 4), np.nan)).error
    assert "values from" in reader(np.full((4, 4), 300.0)).error


def test_async_device_warmup_and_repr(reader: Recognizer) -> None:
    async def several() -> list:
        return await asyncio.gather(*(reader.aread(toy.crop(letter)) for letter in "abc"))

    assert [p.text for p in asyncio.run(several())] == ["a", "b", "c"]
    assert reader.to("cpu") is reader and reader.warmup() is reader
    assert reader.reader.batches[-2:] == [1, 4]
    assert repr(reader) == "Recognizer(toy/Brightness, 8x16, 3 characters, cpu, fp32, batch_size=4)"
    with pytest.raises(strlab.UserError, match="is no device"):
        reader.to("gpu7")


def test_transparent_and_deep_pictures_keep_their_text() -> None:
    ink = np.zeros((6, 12), np.uint8)
    ink[2:4, 3:9] = 255
    for colour, ground in ((0, 255), (255, 0)):
        rgba = np.dstack([np.full((6, 12, 3), colour, np.uint8), ink])
        buffer = io.BytesIO()
        Image.fromarray(rgba, "RGBA").save(buffer, "PNG")
        for pixels in (decode_shown(buffer.getvalue()), as_array(rgba), as_array(Image.fromarray(rgba, "RGBA"))):
            assert pixels[0, 0, 0] == ground and pixels[2, 5, 0] == colour
        assert np.ptp(as_array(buffer.getvalue(), published=True)) == 0  # what the papers' loaders see
    deep = ink.astype(np.uint16) * 200
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG")
    assert decode_shown(buffer.getvalue())[2, 5, 0] == 255 and np.ptp(as_array(deep)) > 100


def test_a_page_is_not_a_word() -> None:
    assert "whole page" in unlike_a_word(900, 1200) and "whole page" in unlike_a_word(1600, 900)
    assert not unlike_a_word(100, 32) and not unlike_a_word(1200, 400) and not unlike_a_word(20, 30)


def test_a_shipped_reader_is_chosen_by_name(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert strlab.load(device="cpu").source == shelf / "dim.safetensors"
    assert strlab.load("bright", device="cpu").reader.model.sharpness == 9
    assert strlab.load("TOY/brightness", device="cpu", sharpness=3).reader.model.sharpness == 3
    assert strlab.load(shelf / "bright.safetensors", device="cpu").reader.model.sharpness == 9
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["dim", "bright"]  # each once, though dim was opened twice
    with pytest.raises(strlab.UserError, match="no shipped reader is called 'brigth'; there are: bright"):
        strlab.load("brigth")


def test_shipped_weights_are_fp16_and_checked(shelf: Path) -> None:
    from safetensors.torch import load_file

    path = shelf / "big.safetensors"
    wide = torch.nn.Linear(128, 64)
    wide.weight.data[0, 0] = 1.5
    state = {**wide.state_dict(), "steps": torch.tensor(7), "huge": torch.full((5000,), 1e9)}
    one = shipped.write(path, state, {"model": "toy/Brightness", "options": {}})
    stored = load_file(path)
    assert stored["weight"].dtype == torch.float16 and stored["weight"][0, 0] == 1.5
    assert stored["bias"].dtype == stored["huge"].dtype == torch.float32 and stored["steps"].dtype == torch.int64
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == shipped.sha256(path)
    one.check()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(strlab.UserError, match="damaged"):
        shipped.find("big").check()


def test_commands_use_the_shipped_reader(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a\nb.png").write_bytes(toy.crop("a"))
    assert cli.main(["read", str(tmp_path), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.split("\t")[1] == "a" and "a\\nb.png" in out and out.count("\n") == 1
    first = err.splitlines()[0]
    assert first == "reader: dim reads 75 % of 400 test words (more: strlab models)" and len(first) < 80
    assert cli.main(["read", str(tmp_path), "--weights", "bright", "--checkpoint", "x"]) == 2
    assert cli.main(["read", str(tmp_path), "--weights", "nothing"]) == 2
    capsys.readouterr()
    assert cli.main(["models"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80, text
    for part in ("dim (toy/Brightness, 0.0 MiB", "IIIT5k-val 75.0 % (70.5 to 79.0, 400 words)", "licence Apache-2.0"):
        assert part in text
    assert shipped.find("dim").metadata["sha256"] in text
    assert [one["name"] for one in strlab.models()] == ["dim", "bright", "toy/Brightness"]
    monkeypatch.setattr(shipped, "folders", list)
    assert cli.main(["read", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(
        "error: no trained reader ships with this installation; give --checkpoint"
    )
    assert cli.main(["models"]) == 0 and "No trained reader ships" in capsys.readouterr().out


def test_the_list_of_models_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    wide = [line for line in capsys.readouterr().out.splitlines() if len(line) > 80]
    assert not wide, wide


def test_onnx_runtime_reads_the_same(shelf: Path) -> None:
    pytest.importorskip("onnxruntime")
    from common.infer.export import export
    from common.infer.onnx_reader import OnnxReader, compress

    graph = export(strlab.load(device="cpu"))
    (shelf / "dim.onnx").write_bytes(compress(graph))
    fast = strlab.load(device="cpu")
    assert isinstance(fast.reader, OnnxReader) and [p.text for p in fast(map(toy.crop, "abc"))] == ["a", "b", "c"]
    assert fast(toy.crop("a"), attention=True).attention is not None
    assert not isinstance(strlab.load(device="cpu", engine="torch").reader, OnnxReader)
    assert not isinstance(strlab.load(device="cpu", sharpness=2.0).reader, OnnxReader)  # another model than the file's
    with pytest.raises(strlab.UserError, match="--engine onnx: it needs onnxruntime"):
        strlab.load("bright", device="cpu", engine="onnx")


def test_a_compressed_graph_is_half_as_large_and_computes_the_same() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from common.infer.onnx_reader import compress

    linear = torch.nn.Linear(256, 128)
    linear.weight.data = linear.weight.data.half().float()
    buffer, x = io.BytesIO(), torch.randn(3, 256)
    torch.onnx.export(linear, (x,), buffer, input_names=["x"], opset_version=18, dynamo=False)
    small = compress(buffer.getvalue())
    assert len(small) < 0.6 * len(buffer.getvalue())
    found = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[0]
    assert np.abs(found - linear(x).detach().numpy()).max() < 1e-5


def test_metadata_of_another_kind_is_named(shelf: Path) -> None:
    for text in ("{", "[]", '{"options": {}}'):
        (shelf / "dim.json").write_text(text)
        with pytest.raises(strlab.UserError, match=r"dim\.json: no readable metadata"):
            shipped.all_shipped()


def test_export_overwrites_only_its_own_files(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    out = tmp_path / "letter.onnx"
    out.write_text("a letter")
    words = ["export", "--device", "cpu", "--out", str(out)]
    assert cli.main(words) == 2 and "was not written by `strlab export`" in capsys.readouterr().err
    assert out.read_text() == "a letter"
    assert cli.main([*words, "--force"]) == 0 and cli.main(words) == 0


def test_a_wrong_model_is_told_what_the_metadata_names(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from common import registry

    def other(path: Path, options: dict, device: torch.device) -> None:
        raise strlab.UserError(f"{path}: 3 tensors do not fit")

    rows = (toy.ROW, dataclasses.replace(toy.ROW, name="toy/Other", open=other))
    monkeypatch.setattr(registry, "rows", lambda: rows)
    with pytest.raises(strlab.UserError, match=r"do not fit \(dim.json says that it holds toy/Brightness, not toy/Oth"):
        strlab.load(shelf / "dim.safetensors", model="toy/Other")


@pytest.mark.parametrize("module", [strlab, intervals, errors], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: object) -> None:
    done = doctest.testmod(module)
    assert done.attempted and not done.failed


def test_importing_is_cheap() -> None:
    script = "import sys, strlab; print('torch' in sys.modules, strlab.__version__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"


def test_wilson() -> None:
    assert intervals.wilson(0, 0) == (0.0, 1.0) and intervals.wilson(0, 5)[0] == 0 and intervals.wilson(5, 5)[1] == 1
    low, high = intervals.wilson(263, 300)
    for end in (low, high):  # where the score test is just at its limit
        assert abs(263 / 300 - end) / (end * (1 - end) / 300) ** 0.5 == pytest.approx(intervals.Z_95)
    with pytest.raises(ValueError):
        intervals.wilson(6, 5)
