#!/usr/bin/env bash
# Accuracy by clips per GPU, BN beside GN, on what fits a desk: the sweeps behind
# benchmarks/batch_sweep_*.md, with every command. Started again, it goes on where it was.
#   bash benchmarks/batch_sweep.sh OUT [FOOTAGE]
# OUT gets everything. FOOTAGE has train/ and val/ with a folder of videos for each of six classes
# (UT-Interaction); without it that sweep is left out. An activated environment, scikit-learn for
# the digits, and about an hour and a half on two CPU cores; JOBS at a time (2 unless set).
set -euo pipefail
out=${1:?name a folder for the results}
footage=${2:-}
jobs=${JOBS:-2}
here=$(cd "$(dirname "$0")/.." && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$here"

# What 2D networks are pre-trained on, and the motion set: made, the same on every machine.
python - "$out/made" <<'PY'
import sys
from pathlib import Path

from videogn.data.synthetic import render_motion_dataset

render_motion_dataset(Path(sys.argv[1]), {"train": 480, "val": 48, "test": 96}, seed=0)
PY

for norm in bn gn; do
  run=$out/textures_$norm groups=
  if [ "$norm" = gn ]; then groups="--num-groups 8"; fi
  videogn pretrain configs/sweep/r50_2d.yaml model.norm=$norm out="$run" \
    data.train="$out/made/appearance_train.txt" data.val="$out/made/appearance_val.txt"
  for classes in 4 6; do
    # shellcheck disable=SC2086 - several words
    videogn inflate "$run" -o "$out/weights/i3d_${norm}_$classes.safetensors" \
      --norm $norm --width 16 $groups --classes $classes
  done
done

# sweep FOLDER WORDS…: cells are shared among jobs; the last to end writes the whole table.
sweep() {
  local to=$1
  shift
  local words=(videogn reproduce "$@" --out "$to" --gpus 1)
  if [ "$jobs" -gt 1 ]; then
    "${words[@]}" --only "${first:-bn}" >"$to.first.log" 2>&1 &
    "${words[@]}" --only "${second:-gn}"
    wait $!
  fi
  "${words[@]}"
}

mkdir -p "$out"
swept=(batch-sweep --configs sweep/i3d_bn sweep/i3d_gn --batches 8,4,2,1 --seeds 0,1,2)
if [ -n "$footage" ]; then
  for split in train val; do
    if [ ! -f "$out/footage/$split/list.txt" ]; then
      videogn data prepare "$footage/$split" --out "$out/footage/$split" --short-side 80 --gop 8
    fi
    videogn data index "$out/footage/$split/list.txt"
  done
  sweep "$out/footage_sweep" "${swept[@]}" --data "$out/footage" \
    "model.weights=$out/weights/i3d_{norm}_6.safetensors"
fi
for split in train val test; do videogn data index "$out/made/motion_$split.txt"; done
sweep "$out/motion_sweep" "${swept[@]}" model.num_classes=4 clip.num_frames=8 \
  clip.frame_stride=2 clip.short_side_min=56 clip.short_side_max=64 clip.crop_size=56 clip.flip_probability=0 \
  train.epochs=5 train.warmup_iterations=60 \
  data.train="$out/made/motion_train.txt" data.val="$out/made/motion_val.txt" \
  data.test="$out/made/motion_test.txt" \
  "model.weights=$out/weights/i3d_{norm}_4.safetensors"

if [ ! -d "$out/digits" ]; then python benchmarks/digits.py "$out/digits"; fi
first=r50_bn second=r50_gn
sweep "$out/digits_table2" table2 --data "$out/digits" model.width=32 model.num_classes=10 \
  clip.augmentation=scale clip.short_side_min=36 clip.short_side_max=40 clip.crop_size=32 \
  clip.flip_probability=0 train.color_jitter=0 train.lighting=0 \
  train.epochs=8
