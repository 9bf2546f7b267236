#!/usr/bin/env python
"""Read images with a recogniser: ./read.py CHECKPOINT --images A.jpg B.jpg [name:type=value …]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from common.flags import new_parser


def parser() -> argparse.ArgumentParser:
    """The published flags; further words are `name:type=value`."""
    parser = new_parser("read.py", "Read images with a recogniser.")
    parser.add_argument("checkpoint", help="a checkpoint file, or pretrained=FILE")
    parser.add_argument("--images", nargs="+", help="image files")
    parser.add_argument("--device", default="cuda", help="cuda, cpu or auto")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Open, read, print `<file>: <text>`."""
    from common.infer.recognizer import Recognizer
    from projects.ssm.finetune.files import open_model, parse_model_args, to_device
    from projects.ssm.finetune.reader import SSMReader

    options, words = parser().parse_known_args(argv)
    given = options.images or []
    # model arguments behind --images are no files; the published parser takes them for such
    words += [word for word in given if "=" in word and not Path(word).exists()]
    options.images = [word for word in given if word not in words]
    if not options.images:
        raise UserError("--images: it is needed: one or more image files")
    arguments = parse_model_args(words)
    print(f"Additional keyword arguments: {arguments}")
    device = to_device(options.device)
    model, used = open_model(options.checkpoint, arguments)
    recognizer = Recognizer(SSMReader(model.to(device).eval(), used["charset_train"], tuple(used["img_size"]), device))
    for file, prediction in zip(options.images, recognizer(options.images)):
        if prediction.error:
            raise UserError(f"--images: {file}: {prediction.error}")
        print(f"{file}: {prediction.text}")


if __name__ == "__main__":
    sys.exit(main())
