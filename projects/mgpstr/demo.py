"""Read the images of a folder with MGP-STR, char-str or ACDS-STR and draw what each head looked at.

    python projects/mgpstr/demo.py --Transformer mgp-str --TransformerModel mgp_str_base_patch4_3_32_128 \\
        --model_dir mgp_str_base.pth --demo_imgs demo_imgs/

`attens/<name>_<reading>_char.jpg` next to the images shows what was looked at for each character, as published;
ACDS-STR has no such attention, its picture is the character map. `--sheets` draws all heads, larger and with titles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.data.decode import BadImage
from common.errors import UserError, command
from common.infer.recognizer import Prediction, Recognizer, find_images, pick_device
from common.train.session import check_writable
from projects.mgpstr.flags import parse_reading
from projects.mgpstr.reader import adopt_card, open_reader
from projects.mgpstr.sheets import demo_sheet, published_sheet

LINE = "=" * 76


def lines(path: Path, prediction: Prediction) -> list[str]:
    """What is printed for one image: path, each head's string and score, the fused answer."""
    heads = [(name, prediction.extra[name]) for name in ("char", "bpe", "wp") if name in prediction.extra]
    read = [f"{name}: {reading['text']} {reading['confidence']}" for name, reading in heads]
    winner = f" ({prediction.extra['winner']})" if prediction.extra["winner"] else ""
    return [f"imgs: {path}", *read, f"fused: {prediction.text} {prediction.confidence}{winner}", LINE]


def picture_name(path: Path, text: str, kind: str) -> str:
    """`<name up to the first dot>_<reading>_<kind>`; what no file name can hold becomes an underscore."""
    reading = re.sub(r"[/\\\x00-\x1f]", "_", text)
    return f"{path.name.split('.')[0]}_{reading}_{kind}"


def draw(folder: Path, path: Path, image: np.ndarray, prediction: Prediction, extras: Mapping, sheets: bool) -> None:
    """Write the pictures of one image uint8 [32, 128, 3] into `folder`."""
    character_map = extras["character map"][0] if "character map" in extras else None
    if character_map is None:
        text = prediction.extra["char"]["text"]
        grid = published_sheet(image, prediction.extra["maps"]["char"][: len(text)])
        Image.fromarray(grid).save(folder / picture_name(path, text, "char.jpg"))
    if sheets or character_map is not None:
        kind = "heads.png" if character_map is None else "map.png"
        sheet = demo_sheet(image, prediction, character_map)
        Image.fromarray(sheet).save(folder / picture_name(path, prediction.text, kind))


@command
def main(argv: Sequence[str] | None = None) -> int:
    o = parse_reading(argv, "demo.py")
    if not o.demo_imgs:
        raise UserError("--demo_imgs: not given; name an image or a folder of images")
    checkpoint = Path(o.model_dir)
    if not checkpoint.is_file():
        raise UserError(f"--model_dir: {o.model_dir!r} is no file; name a checkpoint")
    network = adopt_card(o.network, o.given, checkpoint)
    names = {"transformer": network.transformer, "model": network.model}
    reader = open_reader(checkpoint, {**names, **network.build_options}, pick_device(o.device))
    recognizer = Recognizer(reader, amp=o.amp)
    given = Path(o.demo_imgs)
    folder = check_writable((given if given.is_dir() else given.parent) / "attens", "--demo_imgs")
    for path in find_images([o.demo_imgs]):
        if path.parent == folder:
            continue
        try:
            image = recognizer.prepare(path)
        except BadImage as error:
            print(f"imgs: {path}\nskipped: {error}\n{LINE}")
            continue
        batch = torch.from_numpy(image.copy())[None]
        prediction = recognizer.read_batch(batch, attention=True)[0]
        print("\n".join(lines(path, prediction)))
        draw(folder, path, image, prediction, reader.extras(batch.to(reader.device)), o.sheets)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
