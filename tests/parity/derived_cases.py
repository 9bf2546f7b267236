"""Derived cases of the parity runner: small models, and a value for every field that a case may have.

`CASES` maps a name to (stored tensors, meta, changes): each change is a place in the meta and another value for it.
What follows `#` in a place only tells two changes of one text apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.parity import textssr_recipes


def blank(*names: str) -> dict[str, np.ndarray]:
    """Stored tensors by name; what they hold is not looked at before the comparison."""
    return {name: np.zeros(1) for name in names}


def swapped(old: str, new: str) -> Callable[[str], str]:
    """Another text in a recipe."""

    def swap(text: str) -> str:
        assert old in text, f"{old!r} is not in {text!r}"
        return text.replace(old, new)

    return swap


SIGA_LOSSES = dict.fromkeys(("loss1D_task", "predmask_loss", "Correct_loss", "loss_low", "loss_middle"), 0.0)
SIGA = {
    "model_name": "TRBA_small",
    "image": ["derived/siga/image", [3, 3, 32, 96], -0.5, 1.0],
    "labels": ["glyph", "siga2023", "x"],
    "batch_max_length": 8,
    "mask_recipe": {"period": 10, "duty": 4, "shift": [1, 5]},
    "scaled_after_fill": {"model_two.generator.generator.weight": 6.0},
    "tps_after_fill": "localization_fc2.weight x0.3, bias = initial fiducials",
    "bn": {"tf": "train"},
    "tensors": {},
    "losses_iter7": SIGA_LOSSES,
    "coefficient_iter7": 0.4,
    "grad_norms_iter7": {"model_two.pw.weight": 0.0},
}
MGPSTR = {
    "model": "char_str_micro_patch16x8_3_32_128",
    "num_tokens": 38,
    "batch_max_length": 12,
    "input": "images('derived/mgpstr', (3, 3, 32, 128), 0.2, 0.9)",
    "encoder_slice": "[:, ::4, ::3]",
    "labels": ["other", "word5", "a"],
    "loss": {"char": 0.0},
    "grad_norms": {"mgp_str.cls_token": 0.0},
    "optimizer": "Adadelta lr 0.6 rho 0.9 eps 1e-6, clip 0.5",
    "after_two_adadelta_steps": {"char": 0.0},
    "param_l2_after_step": {"mgp_str.blocks.0.attn.qkv.weight": 0.0},
}
DIG_PRETRAINING = {
    "model": "pretrain_simmim_moco_ori_vit_micro_patch8_32x128",
    "kwargs": {
        "dim": 24,
        "mlp_dim": 40,
        "T": 0.35,
        "num_windows": 3,
        "patchnet_name": "regular",
        "drop_path_rate": 0.1,
    },
    "moco_m": 0.93,
    "only_mim_on_ori_img": False,
    "normlize_target": True,
    "mask_recipe": "np.random.seed(19); RandomMaskingGenerator((4,16),0.55,num_view=2) called 3 times; masks stacked",
    "image": "fill.images('derived/dig/image',(3,3,32,128),-0.9,0.8)",
    "aug_image": "fill.images('derived/dig/aug',(3,3,32,128))",
    "loss_weight_pixel": 0.7,
    "loss_weight_contrast": 0.3,
    "losses": {},
    "momentum_param_l2_after_forward": {"momentum_encoder.blocks.0.attn.qkv.weight": 0.0},
}
DIG_ARGUMENTS = {
    "model": "simmim_vit_micro_patch8_32x128", "decoder_name": "micro_tf_decoder", "nb_classes": 97, "max_len": 7,
    "text_cond_vis": False, "use_1d_attdec": False, "drop": 0.1, "attn_drop_rate": 0.1, "drop_path": 0.1,
}  # fmt: skip
DIG_RECOGNITION = {
    "args": DIG_ARGUMENTS,
    "recipe": "its bias[94] += eos_bias",
    "cls_scale": 2.5,
    "eos_bias": 1.5,
    "emb_scale": 6.0,
    "image": "fill.images('derived/dig/word',(3,3,32,128))",
    "words": ["Word", "b-2!", "z"],
    "loss_ce": 0.0,
    "loss_label_smoothing_0p3_intended": 0.0,
}
SSM_PRETRAINING = {
    "model": "ssm_micro_patch16x8",
    "img_size": [32, 96],
    "patch_size": [16, 8],
    "norm_pix_loss": True,
    "inputs": "x=images('derived/ssm/student',(3,3,32,96),0.1,0.9); t=images('derived/ssm/teacher',same,0,1); y,ty=…",
    "pos": [0, 0, 0],
    "neg": [3, 1, 2],
    "mm": 0.9,
    "alpha": 0.6,
    "temperature": 0.4,
    "eval": {"loss": 0.0},
    "train": {"loss": 0.0},
    "ema_norm": {"mm_blocks.0.attn.qkv.weight": 0.0},
    "stats": {},
}
SSM_RECOGNITION = {
    "cls": "TransOCR",
    "arguments": {
        "img_size": [32, 128], "patch_size": [8, 8], "max_label_length": 9, "charset_train": "0123456789abcdef",
        "enc_embed_dim": 64, "enc_num_heads": 2, "enc_depth": 1, "dec_embed_dim": 64, "dec_num_heads": 2,
        "dec_depth": 1, "dropout": 0.0,
    },
    "inputs": "images('derived/ssm/words',(3,3,8,32)), every value repeated 4 times along height and width",
    "gains": {"pos_queries": 50.0, "encoder.pos_embed": 90.0},
    "eos_bias": {"added_to": "head.bias[3]", "value": 1.25},
    "stats": {},
    "train_loss": 0.0,
    "train_labels": ["bed", "0f", "c"],
}  # fmt: skip
UNET = {
    "sample_size": 8, "block_out_channels": [32, 64], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 128, "attention_head_dim": [2, 4], "norm_num_groups": 8, "use_linear_projection": True,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False, "num_train_timesteps": 500,
    "prediction_type": "v_prediction", "steps_offset": 1,
}  # fmt: skip
TEXTSSR_STEP = {
    "models": "unet_derived (constructor here, fill_module), vae_tiny (shared)",
    "scheduler": SCHEDULER,
    "calls": ["eps_pixel", "noise", "eps_masked", "eps_glyph"],
    "inputs": {
        "image": "images('derived/textssr/image/i',(3,64,64)), i=0,1",
        "mask": "ones; rows (8+4i)..39, columns (8+2i)..47 are 0",
        "glyph": "images('derived/textssr/glyph/i',(3,64,64),0.1,0.9), i=0..1",
        "ttf": "ones (25,64,64); planes 0..(2+1i-1) = images('derived/textssr/ttf/i',(2+1i,64,64),0.2,0.7)",
        "eps": "RandomState(crc32('derived/textssr/<k>')).standard_normal((2,4,8,8)) as float32",
        "timesteps": [3, 250],
    },
    "optimizer": {"lr": 3e-4, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.2},
    "max_grad_norm": 0.3,
    "after_step_sum_and_l2": {"conv_in.weight": [0.0, 0.0], "ttf_net.blocks.0.attn.qkv.weight": [0.0, 0.0]},
}
TEXTSSR_INFERENCE = {
    "models": TEXTSSR_STEP["models"],
    "scheduler": SCHEDULER,
    "steps": 3,
    "rng": "torch.manual_seed(5) before the call",
    "draws": ["posterior", "posterior", "init", "step", "step", "step"],
    "inputs": {
        "image": "images('derived/textssr/image',(1,3,64,64))",
        "mask": "ones, zero at rows 8..39, columns 16..47",
        "glyph": "images('derived/textssr/glyph',(1,3,64,64),0,1)",
        "ttf": "ones (1,25,64,64); item i planes 0..(3-1) = images('derived/textssr/ttf/i',(3,64,64),0,1)",
    },
}

CASES = {
    "siga": (
        blank("eval/share_logits", "eval/rectified_mask", "tf/share_logits", "tf/seg_logits"),
        SIGA,
        {
            "image/0": "derived/siga/other",
            "image/2": -1.0,
            "labels/0": "glyphs",
            "mask_recipe/period": 9,
            "mask_recipe/duty": 5,
            "mask_recipe/shift": [1, 4],
            "scaled_after_fill/model_two.generator.generator.weight": 3.0,
            "tps_after_fill": swapped("x0.3", "x0.2"),
            "bn": "eval",
            "coefficient_iter7": 0.5,
        },
    ),
    "mgpstr": (
        {"char_logits": np.zeros(1), "char_attn": np.zeros(1)},
        MGPSTR,
        {
            "batch_max_length": 11,
            "input": swapped("0.9", "0.8"),
            "labels/1": "word",
            "optimizer": swapped("lr 0.6", "lr 0.5"),
            "optimizer#rho": swapped("rho 0.9", "rho 0.8"),
            "optimizer#eps": swapped("1e-6", "1e-4"),
            "optimizer#clip": swapped("clip 0.5", "clip 0.4"),
            "clip_grad": 0.3,
        },
    ),
    "dig pre-training": (
        blank("vis_out0"),
        DIG_PRETRAINING,
        {
            "kwargs/T": 0.3,
            "kwargs/num_windows": 4,
            "kwargs/patchnet_name": "no_patchtrans",
            "kwargs/dim": 32,
            "kwargs/mlp_dim": 48,
            "moco_m": 0.95,
            "only_mim_on_ori_img": True,
            "normlize_target": False,
            "mask_recipe": swapped("seed(19)", "seed(18)"),
            "mask_recipe#ratio": swapped("0.55", "0.65"),
            "image": swapped("-0.9", "-0.8"),
            "aug_image": swapped("/aug", "/other"),
            "loss_weight_pixel": 0.8,
            "loss_weight_contrast": 0.2,
            "mode": "eval",
        },
    ),
    "dig recognition": (
        blank("eval_probs"),
        DIG_RECOGNITION,
        {
            "args/max_len": 6,
            "args/decoder_name": "small_tf_decoder",
            "args/text_cond_vis": True,
            "recipe": swapped("[94]", "[10]"),
            "cls_scale": 2.0,
            "eos_bias": 1.0,
            "emb_scale": 5.0,
            "image": swapped("/word", "/other"),
            "words/0": "word",
        },
    ),
    "ssm pre-training": (
        blank("eval_latent"),
        SSM_PRETRAINING,
        {
            "norm_pix_loss": False,
            "inputs": swapped("0.1,0.9", "0.1,0.8"),
            "inputs#teacher": swapped("/teacher", "/other"),
            "neg/0": 2,
            "mm": 0.8,
            "alpha": 0.5,
            "temperature": 0.3,
        },
    ),
    "ssm recognition": (
        blank("logits", "logits_max_length_4", "memory", "eos_logits"),
        SSM_RECOGNITION,
        {
            "arguments/max_label_length": 8,
            "arguments/charset_train": "0123456789abcdef-",
            "inputs": swapped("/words", "/other"),
            "gains/pos_queries": 40.0,
            "eos_bias/added_to": "head.bias[2]",
            "eos_bias/value": 1.0,
            "train_labels/0": "bad",
        },
    ),
    "textssr step": (
        blank("target"),
        TEXTSSR_STEP,
        {
            "models": swapped("unet_derived", "unet_other"),
            "scheduler/prediction_type": "epsilon",
            "inputs/mask": swapped("39", "35"),
            "inputs/glyph": swapped("0.1", "0.2"),
            "inputs/ttf": swapped("0.7", "0.6"),
            "inputs/eps": swapped("derived", "other"),
            "inputs/timesteps/1": 240,
            "optimizer/lr": 1e-4,
            "optimizer/weight_decay": 0.1,
            "max_grad_norm": 0.2,
        },
    ),
    "textssr inference": (
        {
            "init": textssr_recipes.normals("crc32('derived/<k>') standard_normal((1,4,8,8))", "init").numpy(),
            "step_noise": np.zeros((4, 1, 4, 8, 8), np.float32),
        },
        TEXTSSR_INFERENCE,
        {
            "rng": swapped("(5)", "(6)"),
            "scheduler/num_train_timesteps": 400,
            "inputs/mask": swapped("16..47", "16..40"),
            "inputs/ttf": swapped("(3,64", "(4,64"),
            "steps": 2,
        },
    ),
}
