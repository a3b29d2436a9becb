#!/bin/bash
# A cluster with Slurm, and a disk that all its machines share: sbatch recipes/launch/slurm.sh FILE MODEL DIR [OPTIONS]
# The job goes back into the queue when a machine is lost or its time is up, and continues from its newest checkpoint.
#SBATCH --job-name=peftcls
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail

file=${1:?expected a file of rows: sbatch slurm.sh FILE MODEL DIR [OPTIONS]}
model=${2:?expected a base model: sbatch slurm.sh FILE MODEL DIR [OPTIONS]}
out=${3:?expected a folder on the shared disk: sbatch slurm.sh FILE MODEL DIR [OPTIONS]}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Three minutes before the end of its time the training writes a checkpoint and stops.
stop_and_requeue() {
    kill -TERM "$step"
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap stop_and_requeue TERM

# One launcher on each machine. If a process dies, all begin again from the newest checkpoint.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node 8 \
    --max-restarts 2 \
    --rdzv-backend c10d \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-endpoint "$first:29500" \
    -m peftcls train "$file" --model "$model" --out "$out" --resume "${@:4}" &
step=$!
wait "$step"
