#!/usr/bin/env python
"""Fine-tune a recogniser (SSM's copy of PARSeq's command line).

cd projects/ssm/finetune && ./train.py +experiment=mdr-dec6-union data.root_dir=DATA
./train.py +experiment=mdr-dec6-union model.encoder_pretrained=true model.encoder_checkpoint=FILE data.augment=true
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from common.errors import command
from projects.ssm.finetune.config import CONFIGS, quietly, settle, start


@hydra.main(config_path=str(CONFIGS), config_name="main", version_base="1.2")
@quietly
def task(config: DictConfig) -> None:
    """What Hydra starts, once for each configuration."""
    from projects.ssm.finetune.run import run  # torch and Lightning, which --help does not need

    out = Path(HydraConfig.get().runtime.output_dir)
    run(settle(config), out)


@command
def main(argv: Sequence[str] | None = None) -> None:
    start(task, argv)


if __name__ == "__main__":
    sys.exit(main())
