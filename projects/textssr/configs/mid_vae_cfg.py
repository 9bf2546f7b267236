# The VAE of the gpu scale: scratch weights of make_base.py --size mid, 128 pixels.

base = "tiny_vae_cfg.py"
pretrained_model_name_or_path = "./model/mid"
output_dir = "./model/mid_vae"
checkpointing_steps = 2000
resolution = 128
dataloader_num_workers = 8
train_batch_size = 64
max_train_steps = 4000
mixed_precision = "bf16"
learning_rate = 0.0005
