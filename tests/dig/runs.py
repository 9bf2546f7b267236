"""A corpus of a few words and the shortest DiG commands on it."""

from __future__ import annotations

from pathlib import Path

from tests.common.lmdbs import write_corpus as write_folders

WORDS = ["ab", "Cat", "d0g", "10", "sun!", "tea", "ice", "map", "x1", "owl"]


def write_corpus(root: Path) -> Path:
    """training/{MJ,ST} of 10 and 6 words, validation and two evaluation sets of 7 and 5."""
    sizes = {"training/MJ": 10, "training/ST": 6, "validation": 7, "test/first": 7, "test/second": 5}
    return write_folders(root, WORDS, sizes)


def pretrain(corpus: Path, out: Path, *more: object) -> list[str]:
    """README's first command, of our smallest model: 4 steps an epoch."""
    words = f"""--image_alone_path {corpus}/training/MJ {corpus}/training/ST --mask_ratio 0.7 --batch_size 4 --opt adamw
        --output_dir {out} --epochs 2 --warmup_steps 2 --max_len 25 --num_view 2 --moco_dim 16 --moco_mlp_dim 32
        --moco_m 0.99 --moco_m_cos --moco_t 0.2 --num_windows 4 --contrast_warmup_steps 0 --contrast_start_epoch 0
        --loss_weight_pixel 1. --loss_weight_contrast 0.1 --only_mim_on_ori_img --weight_decay 0.1 --opt_betas 0.9 0.999
        --model pretrain_simmim_moco_ori_vit_micro_patch8_32x128 --patchnet_name no_patchtrans --encoder_type vit
        --num_workers 0 --device cpu"""
    return [*words.split(), *map(str, more)]


def finetune(corpus: Path, out: Path, *more: object) -> list[str]:
    """README's second command, of our smallest model: 4 steps an epoch."""
    words = f"""--model simmim_vit_micro_patch8_32x128 --data_path {corpus}/training/MJ {corpus}/training/ST
        --eval_data_path {corpus}/validation --output_dir {out} --batch_size 4 --opt adamw --opt_betas 0.9 0.999
        --weight_decay 0.05 --data_set image_lmdb --nb_classes 97 --smoothing 0. --max_len 25 --epochs 2
        --warmup_epochs 1 --drop 0.1 --attn_drop_rate 0.1 --drop_path 0.1 --dist_eval --lr 1e-4 --num_samples 1
        --fixed_encoder_layers 0 --decoder_name micro_tf_decoder --use_abi_aug --num_view 2 --num_workers 0
        --device cpu"""
    return [*words.split(), *map(str, more)]
