# The VAE of the tiny runs (smoke, cpu): scratch weights of make_base.py, 64 pixels.

base = "train_vae_cfg.py"
lmdb_path = "./scenes/train/lmdb"
pretrained_model_name_or_path = "./model/tiny"
output_dir = "./model/tiny_vae"
checkpointing_steps = 250
checkpoints_total_limit = 1
resolution = 64
dataloader_num_workers = 0
train_batch_size = 8
max_train_steps = 1200
gradient_accumulation_steps = 1
learning_rate = 0.002
lr_scheduler = "cosine"
lr_warmup_steps = 50
exact_crop = True
fit_scaling_factor = True
log_every = 10
