#!/usr/bin/env python
"""Read images with a recogniser: ./read.py CHECKPOINT --images A.jpg B.jpg [name:type=value …]"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from projects.ssm.finetune.flags import parse_read


@command
def main(argv: Sequence[str] | None = None) -> None:
    checkpoint, files, device_name, words = parse_read(argv)
    # torch, which --help does without
    from common.infer.recognizer import Recognizer
    from projects.ssm.finetune.files import open_model, parse_model_args, to_device
    from projects.ssm.finetune.reader import SSMReader

    arguments = parse_model_args(words)
    print(f"Additional keyword arguments: {arguments}")
    device = to_device(device_name)
    model, used = open_model(checkpoint, arguments)
    recognizer = Recognizer(SSMReader(model.to(device).eval(), used["charset_train"], tuple(used["img_size"]), device))
    for file, prediction in zip(files, recognizer(files)):
        if prediction.error:
            raise UserError(f"--images: {file}: {prediction.error}")
        print(f"{file}: {prediction.text}")


if __name__ == "__main__":
    sys.exit(main())
