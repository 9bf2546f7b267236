"""The training scripts as a table: how a short run of each is started, and where it leaves its states."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.common import lmdbs
from tests.common.processes import run, torchrun

WORDS = ["ab", "cat", "dog", "10", "sun", "tea", "ice", "map", "x1", "owl"]


def write_words(folder: Path, count: int, unreadable: tuple[int, ...] = ()) -> Path:
    """An LMDB of so many words with their pictures at two sizes; those at `unreadable` (from 0) hold no picture."""
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    return lmdbs.write_words(folder, words, unreadable, size=(32, 128), pairs=True)


@dataclass(frozen=True)
class Script:
    """A training script.

    Attributes:
        module: its dotted name.
        words: (folder of an LMDB to train on, one to validate on, output folder, batch size, steps) -> command line.
            Scripts that count epochs train one for each four steps, which is one of 16 words in batches of 4.
        resume: flags that resume what is in the output folder.
        change: flags that decide the result and differ from the command line.
        published: patterns of the published checkpoints in the folder of the run.
        run: the folder of the run below the output folder.
        states: pattern of its training states.
    """

    module: str
    words: Callable[[Path, Path, Path, int, int], str]
    resume: str
    change: str
    published: tuple[str, ...]
    run: str = "."
    states: str = "training_state*.pth"

    @property
    def file(self) -> str:
        """Path of the script below the repository."""
        return self.module.replace(".", "/") + ".py"

    def command(self, data: Path, validation: Path, out: Path, *more: str, batch: int = 4, steps: int = 4) -> list[str]:
        """Arguments of a short run on the CPU."""
        return [*self.words(data, validation, out, batch, steps).split(), *more]

    def main(self, words: list[str]) -> int:
        """Run in this process; returns the exit status."""
        return importlib.import_module(self.module).main(words)

    def launch(self, words: list[str], processes: int, how: str = "run") -> subprocess.CompletedProcess:
        """Run under torchrun, or with `how="launch"` under the launcher of the papers' time, which passes a rank."""
        return run(*torchrun(processes, how), self.file, *words)


SCRIPTS = {
    "siga": Script(
        "projects.siga.train",
        lambda data, val, out, batch, steps: f"""--model_name TRBA_small --train_data {data} --select_data /
            --output {out} --device cpu --batch_size {batch} --num_iter {steps} --val_interval 2 --workers 0
            --check_data 0 --exp_name run --mask_path= --imgW 64 --batch_max_length 5 --tensorboard= --bad_share 0.2
            --Aug --print_interval 1""",
        "--resume auto", "--lr 0.01 --grad_clip 1 --accumulate 2", ("[0-9].pth",), "saved_models/run",
    ),
    "mgpstr": Script(
        "projects.mgpstr.train_final_dist",
        lambda data, val, out, batch, steps: f"""--Transformer char-str --train_data {data.parent} --valid_data {val}
            --TransformerModel char_str_micro_patch16x8_3_32_128 --select_data {data.name} --batch_ratio 1.0
            --saved_path {out} --device cpu --batch_size {batch} --num_iter {steps} --valInterval 2 --workers 0
            --exp_name run --bad_share 0.2 --isrand_aug --scheduler --checkpoint_interval 4 --print_interval 1""",
        "--resume auto", "--lr 0.01 --grad_clip 1 --rho 0.9 --amp bf16", ("iter_*.pth", "best_accuracy.pth"),
        "run-Seed1111",
    ),
    "dig pre-training": Script(
        "projects.dig.run_mae_pretraining_moco",
        lambda data, val, out, batch, steps: f"""--image_alone_path {data} --mask_ratio 0.7 --batch_size {batch}
            --output_dir {out} --epochs {max(steps // 4, 1)} --warmup_steps 1 --num_view 2 --moco_dim 16
            --moco_mlp_dim 32 --model pretrain_simmim_moco_ori_vit_micro_patch8_32x128
            --patchnet_name no_patchtrans --encoder_type vit
            --num_workers 0 --device cpu --bad_share 0.2 --state_steps 2""",
        "--auto_resume", "--lr 0.01", ("checkpoint-*.pth",),
    ),
    "dig fine-tuning": Script(
        "projects.dig.run_class_finetuning",
        lambda data, val, out, batch, steps: f"""--model simmim_vit_micro_patch8_32x128 --data_path {data}
            --eval_data_path {val} --output_dir {out} --batch_size {batch} --data_set image_lmdb --nb_classes 97
            --max_len 25 --epochs {max(steps // 4, 1)} --warmup_epochs 0 --lr 1e-4 --num_samples 1
            --decoder_name micro_tf_decoder --smoothing 0. --drop 0.1 --drop_path 0.1 --use_abi_aug --num_view 2
            --model_ema --num_workers 0 --device cpu --bad_share 0.2 --state_steps 2""",
        "--auto_resume", "--drop 0.3", ("checkpoint-*.pth",),
    ),
    "ssm pre-training": Script(
        "projects.ssm.pretrain.sim_pretrain",
        lambda data, val, out, batch, steps: f"""--data_path {data} --output_dir {out} --log_dir {out}/log
            --demo_dir {out}/vis --batch_size {batch} --epochs {max(steps // 4, 1)} --warmup_epochs 0 --lr 1e-3
            --model ssm_micro_patch16x8 --direction aug_pool --feat_start_epoch 0 --num_workers 0 --device cpu
            --bad_share 0.2 --state_steps 2""",
        "--auto_resume", "--lr 0.01", ("checkpoint-*.pth",),
    ),
    "ssm pixel task": Script(
        "projects.ssm.pretrain.main_pixel",
        lambda data, val, out, batch, steps: f"""--pixel_type SR --data_path {data} --eval_data_path {val}
            --output_dir {out} --log_dir {out}/log --demo_dir {out}/vis --batch_size {batch}
            --epochs {max(steps // 4, 1)} --warmup_epochs 0 --lr 1e-3 --num_workers 0
            --model pixel_vit_micro_patch16x8 --device cpu --bad_share 0.2 --state_steps 2""",
        "--auto_resume", "--lr 0.01", ("checkpoint-*.pth", "best/*.pth"),
    ),
}  # fmt: skip
