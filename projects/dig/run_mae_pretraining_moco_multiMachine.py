#!/usr/bin/env python
"""Pre-training on several machines by the published flags: `--world_size` nodes, this one being `--rank`.

    python projects/dig/run_mae_pretraining_moco_multiMachine.py --world_size 2 --rank 0 \
        --init_method tcp://FIRST:23456 --image_alone_path LMDB__LMDB …

It starts one process for each GPU of the node (one on a CPU) through torchrun; the published script of this name could
not run. Under SLURM or by hand, torchrun with `run_mae_pretraining_moco.py` does the same, see the README.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from common.errors import UserError, command
from projects.dig.flags_pretrain import DESCRIPTION, NODES, TABLE

SCRIPT = Path(__file__).with_name("run_mae_pretraining_moco.py")
OWN = ("--init_method", "--rank", "--dataset_dir", "--remote_folders", "--world_size", "--image_alone_path")


def launcher_words(argv: Sequence[str]) -> list[str]:
    """The torchrun arguments, the script and its flags. Raises `UserError` for an address without a port."""
    values, _ = TABLE.parse(argv, Path(__file__).name, DESCRIPTION, variant=NODES)
    method, rank, nodes = values["init_method"], values["rank"], values["world_size"]
    try:
        where = urlsplit(method)
        whole = where.scheme == "tcp" and where.hostname and where.port
    except ValueError:  # a port that is no number
        whole = False
    if not whole:
        raise UserError(f"--init_method: {method} is not tcp://HOST:PORT")
    if not 0 <= rank < nodes:
        raise UserError(f"--rank: {rank} must be 0 to {nodes - 1}, one less than --world_size")
    head = [
        f"--nnodes={nodes}",
        f"--node_rank={rank}",
        f"--nproc_per_node={max(torch.cuda.device_count(), 1)}",
        f"--master_addr={where.hostname}",
        f"--master_port={where.port}",
        str(SCRIPT),
    ]
    paths = folders(values["image_alone_path"], values["dataset_dir"], values["remote_folders"])
    return [*head, *passed_on(argv), "--image_alone_path", *paths]


def passed_on(argv: Sequence[str]) -> list[str]:
    """The flags that the training script takes too, as they were given."""
    kept, skipping = [], False
    for word in argv:
        if word.startswith("--"):
            skipping = word.split("=")[0] in OWN
        if not skipping:
            kept.append(word)
    return kept


def folders(given: Sequence[str], parent: str, names: str) -> list[str]:
    """LMDB folders: those `given`, split at two underscores, else `names` split the same way, in `parent`."""
    if given:
        return [part for text in given for part in text.split("__") if part]
    if not parent:
        raise UserError("--image_alone_path: it is needed, or --dataset_dir with --remote_folders")
    return [str(Path(parent) / name) for name in names.split("__")]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, translate, hand over to torchrun."""
    argv = list(sys.argv[1:] if argv is None else argv)
    words = launcher_words(argv)
    print("torchrun", *words, flush=True)
    from torch.distributed.run import main as torchrun  # not before --help and the refusals are done

    torchrun(words)


if __name__ == "__main__":
    sys.exit(main())
