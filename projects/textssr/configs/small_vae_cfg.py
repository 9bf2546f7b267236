# The VAE of the painter that ships: scratch weights of make_base.py --size small, 64 pixels.

base = "tiny_vae_cfg.py"
pretrained_model_name_or_path = "./model/small"
output_dir = "./model/small_vae"
train_batch_size = 16
max_train_steps = 800
