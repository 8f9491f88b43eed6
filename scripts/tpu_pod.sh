#!/bin/sh
# One run on all hosts of a Cloud TPU slice, from your own machine:
#
#   export TPU=my-pod ZONE=us-central2-b
#   scripts/tpu_pod.sh create v5litepod-256 v2-alpha-tpuv5-lite   # queued
#   scripts/tpu_pod.sh setup            # copies this tree and installs it
#   scripts/tpu_pod.sh start --config=configs/vit_l16_i21k.py --workdir=/mnt/runs/l16
#   scripts/tpu_pod.sh log              # of host 0; `log 3` of host 3
#   scripts/tpu_pod.sh status           # which hosts still run
#   scripts/tpu_pod.sh stop             # saves, then ends
#   scripts/tpu_pod.sh kill             # ends without saving
#   scripts/tpu_pod.sh delete
#
# All hosts must see the workdir and the data under the same path (a mounted
# bucket or NFS). `start` goes through restart.sh on every host.
set -eu

usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
[ $# -ge 1 ] || usage
: "${TPU:?set TPU to the name of the TPU}" "${ZONE:?set ZONE}"
action=$1
shift

on() { # on <worker> <command>
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" \
    --command="$2"
}

quoted() { # The arguments as one line for the shell of another machine.
  for word in "$@"; do
    printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")"
  done
}

case $action in
  create)
    [ $# -ge 2 ] || usage
    gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" \
      --zone="$ZONE" --accelerator-type="$1" --runtime-version="$2"
    ;;
  setup)
    archive=$(mktemp)
    git -C "$(dirname "$0")/.." archive --format=tar.gz -o "$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:vit_jax.tgz" \
      --zone="$ZONE" --worker=all
    rm "$archive"
    on all "mkdir -p vit_jax && tar xzf vit_jax.tgz -C vit_jax && \
      python3 -m pip install -q './vit_jax[fast]' 'jax[tpu]'"
    ;;
  start)
    [ $# -ge 1 ] || usage
    on all "cd vit_jax && PID_FILE=run.pid nohup scripts/restart.sh python3 -m \
vit_jax train $(quoted "$@")> run.log 2>&1 < /dev/null &"
    ;;
  log) on "${1:-0}" "tail -n 50 -f vit_jax/run.log" ;;
  status) on all "hostname; kill -0 \$(cat vit_jax/run.pid) && echo running" ;;
  stop) on all "kill -TERM \$(cat vit_jax/run.pid)" ;;
  # The loop and the run are one process group.
  kill) on all "kill -KILL -\$(ps -o pgid= \$(cat vit_jax/run.pid) | tr -d ' ')" ;;
  delete)
    gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" --force
    ;;
  *) usage ;;
esac
