# Step 2 of the gpu scale.

base = "mid_step1_cfg.py"
lmdb_path = "./scenes/more/lmdb"
pretrained_unet = "./model/mid_step1/checkpoint-10000/unet"
output_dir = "./model/mid_step2"
max_train_steps = 4000
learning_rate = 0.0001
