"""Join mask LMDBs that were left in numbered folders (`…/MJ_train/0`, `…/MJ_train/1`, …) into their parent folder.

    python projects/siga/mask_create/merge.py --mask_path data/Mask

That is the form in which the published mask tool leaves them. `generate_mask.py` here joins its own parts, so this is
needed only for masks made elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from common.errors import UserError, command
from projects.siga.mask_create.shards import join


def numbered(root: Path) -> dict[Path, list[Path]]:
    """Folders that have LMDBs in sub-folders whose names are numbers, with those sub-folders in order."""
    found: dict[Path, list[Path]] = {}
    for file in root.rglob("data.mdb"):
        if file.parent.name.isdigit():
            found.setdefault(file.parent.parent, []).append(file.parent)
    return {parent: sorted(shards, key=lambda shard: int(shard.name)) for parent, shards in sorted(found.items())}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Join what is there; the numbered folders are replaced by the whole."""
    parser = argparse.ArgumentParser(
        prog="merge.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mask_path", type=Path, required=True, help="root of the mask LMDBs")
    options = parser.parse_args(argv)
    groups = numbered(options.mask_path)
    if not groups:
        raise UserError(
            f"{options.mask_path}: --mask_path: no numbered folders with a data.mdb below it: nothing to merge"
        )
    for parent, shards in tqdm(groups.items(), unit="set", disable=None):
        print(f"{parent}: {join(shards, parent, overwrite=True)} masks from {len(shards)} folders")
    return 0


if __name__ == "__main__":
    sys.exit(main())
