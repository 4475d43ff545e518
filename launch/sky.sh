#!/usr/bin/env bash
# SkyPilot (pip install 'skypilot[gcp]' or another cloud): managed jobs that recover from preemption.
#
#   launch/sky.sh run --name=NAME --bucket=BUCKET [--gpus=H100:8] [--nodes=2] [--no_spot] -- jukebox train ...
#   launch/sky.sh run --name=NAME --bucket=BUCKET --gpus=tpu-v5litepod-16:1 -- jukebox train ...
#   launch/sky.sh list | logs --name=NAME | stop --name=NAME
#
# --dry_run prints the exact commands instead. The bucket is at /bucket: give --workdir=/bucket/...
set -euo pipefail
# shellcheck source=launch/shared.sh
source "$(dirname "$0")/shared.sh"

name='' bucket='' gpus='H100:8' nodes=1 no_spot=''
action=${1:-}
test -n "$action" || fail "give an action: run, list, logs or stop"
shift
read_flags "name bucket gpus nodes no_spot!" "$@"

case $action in
run)
  need name bucket
  need_words
  patient 300
  extra=gpu
  spot=--use-spot
  test -z "$no_spot" || spot=--no-use-spot
  if [[ $gpus == tpu-* ]]; then extra=tpu; fi
  test -n "$dry_run" || cd "$root" # what is copied to the nodes
  call sky jobs launch --yes "--name=$name" "--gpus=$gpus" "--num-nodes=$nodes" "$spot" "--env=BUCKET=$bucket" \
    "--env=EXTRA=$extra" "--env=COMMAND=$(quoted "${words[@]}")" launch/sky.yaml
  ;;
list) call sky jobs queue ;;
logs)
  need name
  call sky jobs logs "--name=$name"
  ;;
stop)
  need name
  call sky jobs cancel --yes "--name=$name"
  ;;
*) fail "$action? run, list, logs or stop" ;;
esac
