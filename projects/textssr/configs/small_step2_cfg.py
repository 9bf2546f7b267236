# Step 2 of the cpu recipe: continues from the painter that ships, on other scenes.

base = "small_step1_cfg.py"
lmdb_path = "./scenes/more/lmdb"
scheduler_path = "shipped"
pretrained_vae = "shipped"
pretrained_unet = "shipped"
output_dir = "./model/small_step2"
use_ema = False
max_train_steps = 600
learning_rate = 0.0002
