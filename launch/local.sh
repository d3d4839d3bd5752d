#!/usr/bin/env bash
# Trains on all GPUs of this machine, and sets up .venv first where there is none:
#   bash launch/local.sh [pretrain] CONFIG [key=value ...] [--gpus N]
# Arguments go to `videogn train`, or `videogn pretrain`, as they are. Without a GPU one process
# trains.
set -euo pipefail
command=train
case ${1:-} in
train | pretrain)
  command=$1
  shift
  ;;
esac
from=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ ! -x "$root/.venv/bin/videogn" ]; then
  source "$root/launch/setup.sh" "" # goes to another folder; no extras
  cd "$from"
fi
for word in "$@"; do
  case $word in --g*) exec "$root/.venv/bin/videogn" "$command" "$@" ;; esac
done
# torch counts those that CUDA_VISIBLE_DEVICES leaves.
count=$("$root/.venv/bin/python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$count" -gt 1 ]; then
  exec "$root/.venv/bin/videogn" "$command" --gpus "$count" "$@"
fi
exec "$root/.venv/bin/videogn" "$command" "$@"
