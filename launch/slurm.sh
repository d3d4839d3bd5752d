#!/usr/bin/env bash
# Trains under Slurm, on one node or many, with one task per GPU:
#   sbatch -N2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 launch/slurm.sh \
#     [pretrain] CONFIG [key=value ...]
# Options of sbatch stand before the script's name and win over the lines below; arguments after it
# go to `videogn train`, or `videogn pretrain`, as they are. A job that is preempted, or comes to its
# time limit, saves and puts itself into the queue again; started again, it goes on.
#
#SBATCH --job-name=videogn
#SBATCH --output=videogn-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time limit the ranks get SIGUSR1. A preempted job gets SIGTERM.
#SBATCH --signal=USR1@120
set -u

command=train
case ${1:-} in
train | pretrain)
  command=$1
  shift
  ;;
esac
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "videogn: launch/slurm.sh is for sbatch: sbatch -N2 launch/slurm.sh CONFIG" >&2
  exit 2
fi
# The program of the environment in which sbatch was called, or the one launch/setup.sh made.
program=$(command -v videogn) || program=$PWD/.venv/bin/videogn
if [ ! -x "$program" ]; then
  echo "videogn: no videogn on PATH and no $program; activate its environment, or submit from" \
    "the repository's folder after: source launch/setup.sh" >&2
  exit 2
fi
tasks=${SLURM_NTASKS_PER_NODE:-1}
if [ -n "${SLURM_GPUS_ON_NODE:-}" ] && [ "$SLURM_GPUS_ON_NODE" != "$tasks" ]; then
  echo "videogn: $SLURM_GPUS_ON_NODE GPUs and $tasks tasks per node; every GPU needs a task:" \
    "sbatch --ntasks-per-node=$SLURM_GPUS_ON_NODE ..." >&2
  exit 2
fi
# srun takes the cores per task from the command line or from here, not from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# This script outlives the signals that end its ranks, to see how they ended.
trap : USR1 TERM

# Ranks that save end one after the other: the first must not take the others along. A minute or
# two later whoever is left has lost its job's other half.
srun --kill-on-bad-exit=0 --wait=120 "$program" "$command" "$@" &
ranks=$!
code=0
wait "$ranks" || code=$?
# A trapped signal ends `wait` with a code above 128 while srun still runs.
while kill -0 "$ranks" 2>/dev/null; do
  code=0
  wait "$ranks" || code=$?
done

# Slurm's controller may be too busy to answer, or be restarted, just when many jobs are preempted.
insist() {
  for pause in 5 10 20 0; do
    "$@" && return
    sleep "$pause"
  done
  return 1
}

if [ "$code" -eq 75 ]; then
  # A job that its user has cancelled saves too, but shall not come back: it is no longer RUNNING.
  state=$(insist squeue --noheader --states=all --jobs="$SLURM_JOB_ID" --format=%T) || state=unknown
  # A batch script that ends of itself counts as done or failed; only a requeued job comes again.
  if [ "$state" = RUNNING ] && insist scontrol requeue "$SLURM_JOB_ID"; then
    sleep 300 # Slurm ends this script
  elif [ "$state" = RUNNING ] || [ "$state" = unknown ]; then
    echo "videogn: saved, but not put into the queue again; submit the same job to go on" >&2
  fi
fi
exit "$code"
