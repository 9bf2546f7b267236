"""Join mask LMDBs that were left in numbered folders (`…/MJ_train/0`, `…/MJ_train/1`, …) into their parent folder.

    python projects/siga/mask_create/merge.py --mask_path data/Mask

That is the form in which the published mask tool leaves them. `generate_mask.py` here joins its own parts, so this is
needed only for masks made elsewhere. Nothing is joined where a parent folder holds anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from common.flags import Parser
from projects.siga.mask_create.shards import join

LMDB_FILES = ("data.mdb", "lock.mdb")


def numbered(root: Path) -> dict[Path, list[Path]]:
    """Folders that have LMDBs in sub-folders whose names are numbers, with those sub-folders in order.

    Hidden folders are what a stopped run has left.
    """
    found: dict[Path, list[Path]] = {}
    for file in root.rglob("data.mdb"):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if file.parent.name.isdigit() and not hidden:
            found.setdefault(file.parent.parent, []).append(file.parent)
    return {parent: sorted(shards, key=lambda shard: int(shard.name)) for parent, shards in sorted(found.items())}


def refuse_others(parent: Path, shards: list[Path]) -> None:
    """Raise UserError if `parent`, which is replaced as a whole, holds more than its numbered LMDBs and its own."""
    strange = [path for path in sorted(parent.rglob("*")) if path not in shards and path.name not in LMDB_FILES]
    if strange:
        raise UserError(
            f"{parent}: {strange[0].relative_to(parent)} is no part of the masks and would be deleted; "
            "move it elsewhere, or name a folder further down with --mask_path"
        )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Join what is there; the numbered folders are replaced by the whole."""
    parser = Parser(prog="merge.py", description=__doc__)
    parser.add_argument("--mask_path", type=Path, required=True, help="root of the mask LMDBs")
    options = parser.parse_args(argv)
    groups = numbered(options.mask_path)
    if not groups:
        raise UserError(
            f"{options.mask_path}: --mask_path: no numbered folders with a data.mdb below it: nothing to merge"
        )
    for parent, shards in groups.items():
        refuse_others(parent, shards)
    for parent, shards in tqdm(groups.items(), unit="set", disable=None):
        print(f"{parent}: {join(shards, parent, overwrite=True)} masks from {len(shards)} folders")
    return 0


if __name__ == "__main__":
    sys.exit(main())
