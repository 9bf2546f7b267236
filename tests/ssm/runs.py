"""A corpus of a few words and the shortest SSM commands on it."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir

from projects.ssm.finetune.config import CONFIGS, settle
from projects.ssm.finetune.flags import Options
from tests.common.lmdbs import write_corpus as write_folders

WORDS = ["ab", "cat", "d0g", "10", "sun", "tea", "ice", "map", "x1", "owl"]
MICRO = {
    "enc_embed_dim": 32, "enc_num_heads": 2, "enc_depth": 1, "dec_embed_dim": 32, "dec_num_heads": 2, "dec_depth": 1,
    "patch_size": [16, 8], "batch_size": 4, "dropout": 0.1,
}  # fmt: skip


def write_corpus(root: Path) -> Path:
    """training/{MJ,ST} of 10 and 6 words, validation, and two evaluation sets."""
    sizes = {"training/MJ": 10, "training/ST": 6, "validation": 5, "evaluation/IIIT5k": 6, "evaluation/SVT": 4}
    return write_folders(root, WORDS, sizes)


def pretrain(corpus: Path, out: Path, *more: object) -> list[str]:
    """The published flags with our smallest model: 4 steps an epoch."""
    words = f"""--data_path {corpus}/training --output_dir {out} --log_dir {out}/log --demo_dir {out}/vis --batch_size 4
        --epochs 2 --warmup_epochs 1 --lr 1e-3 --mode single --model ssm_micro_patch16x8 --mm 0.995 --mmschedule cosine
        --direction aug_pool --num_workers 0 --feat_start_epoch 0 --device cpu"""
    return [*words.split(), *map(str, more)]


def finetune(corpus: Path, *overrides: str) -> list[str]:
    """Overrides of train.py for a very small TransOCR: 4 steps an epoch."""
    sizes = [f"model.{name}={value}".replace(" ", "") for name, value in MICRO.items()]
    fixed = ["+experiment=cpu-micro", f"data.root_dir={corpus}", "data.num_workers=0", "trainer.accelerator=cpu"]
    fixed += ["trainer.max_epochs=2", "trainer.val_check_interval=2", "+trainer.enable_model_summary=false"]
    return [*fixed, *sizes, *overrides]


def configuration(corpus: Path, *overrides: str) -> Options:
    """The options of the same."""
    with initialize_config_dir(str(CONFIGS), version_base="1.2"):
        return settle(compose("main", finetune(corpus, *overrides)))
