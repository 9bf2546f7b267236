# Step 1 of the painter that ships, which had as many updates in two runs (see the README): scratch weights of
# make_base.py --size small, 64 pixels. On a processor with bfloat16 instructions, mixed_precision="bf16" takes a third
# off the time of a step.

base = "tiny_step1_cfg.py"
scheduler_path = "./model/small/scheduler"
pretrained_vae = "./model/small_vae/checkpoint-800/vae"
pretrained_unet = "./model/small/unet"
output_dir = "./model/small_step1"
cache_latents = True
condition_dropout = 0.1
region_loss_weight = 6
use_ema = True
max_train_steps = 10000
lr_warmup_steps = 150
