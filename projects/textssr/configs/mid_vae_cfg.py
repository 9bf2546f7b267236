# The VAE of the gpu scale: scratch weights of make_base.py --size mid, 128 pixels.

# what it reads
lmdb_path = "./scenes/train/lmdb"
pretrained_model_name_or_path = "./model/mid"
revision = None
non_ema_revision = None

# what it writes
output_dir = "./model/mid_vae"
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
dataloader_num_workers = 8

# steps
train_batch_size = 64
num_train_epochs = 100
max_train_steps = 4000
gradient_accumulation_steps = 1
gradient_checkpointing = False
mixed_precision = "bf16"
allow_tf32 = False
enable_xformers_memory_efficient_attention = False
local_rank = -1

# optimiser
learning_rate = 0.0005
scale_lr = False
lr_scheduler = "constant"
lr_warmup_steps = 500
use_8bit_adam = False
adam_beta1 = 0.9
adam_beta2 = 0.999
adam_weight_decay = 0.01
adam_epsilon = 1e-08
max_grad_norm = 1.0

# ours
exact_crop = True
log_every = 10
