#!/bin/bash
# One run under SLURM, one process for each GPU:
#
#   sbatch --nodes=4 scripts/slurm.sh --config=configs/vit_s16_i1k.py \
#     --workdir=/shared/runs/s16
#
# SLURM sends SIGTERM two minutes before the time is up; the run saves, exits
# with 42 and the job is put into the queue again. Set --ntasks-per-node to the
# GPUs of a node: each process takes one.
#SBATCH --job-name=vit_jax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# Processes find each other by srun's environment. `wait` lets this shell,
# which gets the signal too, live until they have saved.
trap : TERM
srun --kill-on-bad-exit=0 "${PYTHON:-python}" -m vit_jax train "$@" &
srun=$!
wait "$srun"
code=$?
while kill -0 "$srun" 2>/dev/null; do
  wait "$srun"
  code=$?
done
case $code in
  0 | 2 | 130) exit $code ;;
esac
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MOST_RESTARTS:-50}" ]; then
  echo "slurm.sh: restarted $SLURM_RESTART_COUNT times, giving up" >&2
  exit $code
fi
echo "slurm.sh: ended with $code, back into the queue" >&2
scontrol requeue "$SLURM_JOB_ID"
exit $code
