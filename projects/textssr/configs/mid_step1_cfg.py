# Step 1 of the gpu scale.

base = "tiny_step1_cfg.py"
scheduler_path = "./model/mid/scheduler"
pretrained_vae = "./model/mid_vae/checkpoint-4000/vae"
pretrained_unet = "./model/mid/unet"
output_dir = "./model/mid_step1"
checkpointing_steps = 2000
resolution = 128
dataloader_num_workers = 8
train_batch_size = 64
max_train_steps = 10000
mixed_precision = "bf16"
learning_rate = 0.0002
