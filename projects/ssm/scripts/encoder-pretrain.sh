#!/usr/bin/env bash
# SSM's published pre-training.
#   bash projects/ssm/scripts/encoder-pretrain.sh DATA OUT [PROCESSES] [further flags of sim_pretrain.py]
# DATA, OUT and PROCESSES may stand in the environment instead (DATA_PATH, OUTPUT_PATH, NPROC). Without a number of
# processes: one for each CUDA card, one where there is none. The last of two equal flags counts.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
own="$here/../../.venv/bin/python"  # of `make setup`, where no environment is active
if [[ -z "${PYTHON:-}${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" && -x "$own" ]]; then python="$own"; fi
# a second folder only counts as such when it is no flag
data="${DATA_PATH:-}"; out="${OUTPUT_PATH:-}"; processes="${NPROC:-}"
if [[ $# -gt 0 && "$1" != -* ]]; then data="$1"; shift; fi
if [[ $# -gt 0 && "$1" != -* ]]; then out="$1"; shift; fi
if [[ $# -gt 0 && "$1" =~ ^[0-9]+$ ]]; then processes="$1"; shift; fi
if [[ -z "$data" || -z "$out" ]]; then
  echo "usage: bash scripts/encoder-pretrain.sh DATA OUT [PROCESSES] [flags]   (or DATA_PATH, OUTPUT_PATH, NPROC)" >&2
  exit 2
fi
if [[ -z "$processes" ]]; then
  processes="$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')"
fi
published=(--lr 5e-4 --batch_size 144 --mode single --model flipae_sim_vit_small_str --epochs 20 --warmup_epochs 1
  --mm 0.995 --mmschedule cosine --direction aug_pool --num_workers 10 --output_dir "$out" --log_dir "$out/log"
  --demo_dir "$out/vis" --data_path "$data")
if [[ "$processes" == 1 ]]; then
  exec "$python" "$here/pretrain/sim_pretrain.py" "${published[@]}" "$@"
fi
exec "$python" -m torch.distributed.run --nproc_per_node="$processes" --nnodes=1 --master_port "${MASTER_PORT:-29060}" \
  "$here/pretrain/sim_pretrain.py" "${published[@]}" "$@"
