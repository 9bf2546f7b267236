# Step 2 of the gpu scale.

# what it reads
lmdb_path = "./scenes/more/lmdb"
scheduler_path = "./model/mid/scheduler"
pretrained_vae = "./model/mid_vae/checkpoint-4000/vae"
pretrained_unet = "./model/mid_step1/checkpoint-10000/unet"
revision = None
non_ema_revision = None

# what it writes
output_dir = "./model/mid_step2"
logging_dir = "logs"
report_to = "tensorboard"
checkpointing_steps = 2000
checkpoints_total_limit = 1
resume_from_checkpoint = "latest"
push_to_hub = False
hub_token = None
hub_model_id = None

# data
seed = 3407
resolution = 128
ttf_size = 64
max_len = 25
dataloader_num_workers = 8

# steps
train_batch_size = 64
num_train_epochs = 100
max_train_steps = 4000
gradient_accumulation_steps = 1
gradient_checkpointing = False
mixed_precision = "bf16"
allow_tf32 = False
use_ema = False
enable_xformers_memory_efficient_attention = False

# optimiser
learning_rate = 0.0001
scale_lr = False
lr_scheduler = "constant"
lr_warmup_steps = 500
use_8bit_adam = False
adam_beta1 = 0.9
adam_beta2 = 0.999
adam_weight_decay = 0.01
adam_epsilon = 1e-08
max_grad_norm = 1.0

# accepted for compatibility, no effect
language = None
select_data_lenth = 100

# ours
exact_crop = True
clean_glyph = True
log_every = 10
