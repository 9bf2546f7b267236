# Step 2 of the tiny runs (smoke, cpu): continues from step 1 on other scenes.

base = "tiny_step1_cfg.py"
lmdb_path = "./scenes/more/lmdb"
pretrained_unet = "./model/tiny_step1/checkpoint-2000/unet"
output_dir = "./model/tiny_step2"
max_train_steps = 800
learning_rate = 0.0003
