# Step 1 of the tiny runs (smoke, cpu): scratch weights of make_base.py, 64 pixels.

base = "train_diff_step1_cfg.py"
lmdb_path = "./scenes/train/lmdb"
scheduler_path = "./model/tiny/scheduler"
pretrained_vae = "./model/tiny_vae/checkpoint-1200/vae"
pretrained_unet = "./model/tiny/unet"
output_dir = "./model/tiny_step1"
checkpointing_steps = 250
checkpoints_total_limit = 1
resolution = 64
dataloader_num_workers = 0
train_batch_size = 16
max_train_steps = 2000
gradient_accumulation_steps = 1
learning_rate = 0.001
lr_scheduler = "cosine"
lr_warmup_steps = 50
exact_crop = True
clean_glyph = True
tight_glyph = True
log_every = 10
