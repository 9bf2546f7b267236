"""Hashes of the training states of short runs, recorded with the loop that `common/train/loop.py` replaced.

python -m tests.ssm.states            # run all of them and store their hashes for this machine
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from common.train.checkpoint import load
from projects.ssm.finetune.run import run as finetune
from projects.ssm.pretrain.main_pixel import main as pixel
from projects.ssm.pretrain.sim_pretrain import main as pretrain
from tests.common.compare import digest
from tests.common.lmdbs import encoded, noise, write_words
from tests.common.processes import run, torchrun
from tests.ssm.runs import configuration, write_corpus
from tests.ssm.runs import finetune as finetune_words
from tests.ssm.runs import pretrain as pretrain_words

FILE = Path(__file__).with_suffix(".json")
CASES = {
    "pretrain": ("pretrain", ["--isrand_aug", "--augs_num", 2], 1),
    "pretrain, accumulated": ("pretrain", ["--accum_iter", 2, "--dense_loss", "--direction", "Hybrid"], 1),
    "pretrain, two processes": ("pretrain", ["--batch_size", 2], 2),
    "SR": ("SR", [], 1),
    "Seg": ("Seg", ["--accum_iter", 2, "--batch_size", 1], 1),
}
"""Name -> script, flags, processes. Every run stops after 4, 6 and 8 steps; states are hashed after 4 and 8."""
CLASS = "model._target_=projects.ssm.model"
FINETUNE = {
    "TransOCR": (["data.augment=true", "+trainer.accumulate_grad_batches=2", "trainer.max_epochs=4", "swa=true"], 1),
    "PARSeq": ([f"{CLASS}.parseq.PARSeq", "model.weight_decay=0.05", "+trainer.gradient_clip_algorithm=value"], 1),
    "CRNN, averaged": ([f"{CLASS}.crnn.CRNN", "+model.hidden_size=16", "trainer.max_epochs=4", "swa=true"], 1),
    "ABINet": ([f"{CLASS}.abinet_reader.ABINet", "+model.v_num_layers=1", "+model.l_num_layers=1", "+model.d_inner=64",
                "+model.l_lr=1e-2"], 1),
    "TransOCR, two processes": (["model.batch_size=2", "trainer.devices=2", "data.augment=true"], 2),
}  # fmt: skip
"""Fine-tuning under Lightning: name -> overrides, processes. Recorded before its code was taken apart by model."""


def key() -> str:
    """What the bits depend on in addition to the code."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread"


def pixel_words(folder: Path, out: Path, kind: str) -> list[str]:
    """Flags of a pixel task on 6 pairs, which are written first."""
    if not (folder / "train").is_dir():
        for part in ("train", "val"):
            write_words(folder / f"sr-{part}", ["word"] * 6, size=(32, 128), pairs=True)
            for name in ("image", "mask"):
                (folder / part / name).mkdir(parents=True)
            for i in range(3):
                mask = np.repeat((noise(i)[..., :1] > 128) * np.uint8(255), 3, axis=2)
                (folder / part / "image" / f"{i}.jpg").write_bytes(encoded(noise(i), "JPEG"))
                (folder / part / "mask" / f"{i}_mask.jpg").write_bytes(encoded(mask, "JPEG"))
    data = f"{folder}/sr-train --eval_data_path {folder}/sr-val" if kind == "SR" else f"{folder}"
    return f"""--pixel_type {kind} --data_path {data} --output_dir {out} --log_dir {out}/log --demo_dir {out}/vis
        --lr 1e-3 --batch_size 2 --epochs 4 --warmup_epochs 1 --num_workers 0 --model pixel_vit_micro_patch16x8
        --device cpu""".split()


def hashes(case: str, folder: Path) -> dict[str, dict[str, str]]:
    """The hashes of a case by step: weights, optimizer, generators, meters' sums."""
    kind, more, processes = CASES[case]
    out, found = folder / "out", {}
    if kind == "pretrain":
        words = [*pretrain_words(write_corpus(folder / "corpus"), out), "--epochs", 4]
    else:
        words = pixel_words(folder, out, kind)
    torch.set_num_threads(1)
    for steps in (4, 6, 8):
        line = [*map(str, words), *map(str, more), "--auto_resume", "--max_steps", str(steps)]
        if processes > 1:
            done = run(*torchrun(processes), "projects/ssm/pretrain/sim_pretrain.py", *line)
            assert done.returncode == 0, done.stderr
        else:
            assert (pretrain if kind == "pretrain" else pixel)(line) == 0
        content = load(out / "training_state.pth")
        assert content["step"] == steps
        if steps != 6:
            found[str(steps)] = {
                "model": digest(content["model"]), "optimizer": digest(content["optimizer"]["state"]),
                "generators": digest(content["rng"]), "scaler": digest(content["parts"]["scaler"]),
            }  # fmt: skip
    return found


def finetune_hashes(case: str, folder: Path) -> dict[str, str]:
    """The hashes of what a fine-tuning leaves: its last state, the averaged weights, file names, figures."""
    more, processes = FINETUNE[case]
    corpus, out = write_corpus(folder / "corpus"), folder / "out"
    torch.set_num_threads(1)
    if processes > 1:
        words = finetune_words(corpus, *more, f"hydra.run.dir={out}")
        done = run(*torchrun(processes), "projects/ssm/finetune/train.py", *words)
        assert done.returncode == 0, done.stderr
    else:
        finetune(configuration(corpus, *more), out)
    content = load(out / "checkpoints" / "last.ckpt")
    average = out / "checkpoints" / "swa.ckpt"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        for name in ("time", "images_per_second"):
            row.pop(name, None)
    return {
        "model": digest(content["state_dict"]), "optimizer": digest(content["optimizer_states"]),
        "schedule": digest(content["lr_schedulers"]), "generators": digest(content["generators"]),
        "settings": digest([content["hyper_parameters"], content["settings"]]),
        "average": digest(load(average)["state_dict"]) if average.is_file() else "",
        "files": digest(sorted(path.name for path in (out / "checkpoints").iterdir())), "figures": digest(rows),
    }  # fmt: skip


def record() -> None:
    """Store the hashes of all cases under this machine's key."""
    stored = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    for case in sys.argv[1:] or [*CASES, *FINETUNE]:
        with tempfile.TemporaryDirectory() as folder:
            found = finetune_hashes(case, Path(folder)) if case in FINETUNE else hashes(case, Path(folder))
            stored.setdefault(key(), {})[case] = found
        FILE.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record()
