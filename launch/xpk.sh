#!/usr/bin/env bash
# TPUs on Google Kubernetes Engine, through xpk (pip install xpk).
#
#   launch/xpk.sh ACTION --cluster=NAME [--project=P] [--zone=ZONE] [flags] [-- jukebox train ...]
#
#   cluster   make a cluster                     --type=v5litepod-256 [--slices=2] [--spot | --reservation=R]
#   bucket    mount a bucket at /bucket in all workloads           --bucket=NAME [--size=1000 GB]
#   image     build launch/Dockerfile and push it                  --image=REGION-docker.pkg.dev/P/REPO/jukebox
#   run       start the words after -- on every host               --name=NAME --type=... --image=... [--slices=2]
#             [--restarts=20: after preemptions and failures]
#   list      workloads and their states
#   logs      follow the first host's log                          --name=NAME
#   stop      delete a workload: SIGTERM, and two minutes to save  --name=NAME
#
# --dry_run prints the exact commands instead.
set -euo pipefail
# shellcheck source=launch/shared.sh
source "$(dirname "$0")/shared.sh"

cluster='' project='' zone='' type='' slices=1 spot='' reservation='' bucket='' size=1000 image='' name='' restarts=20
action=${1:-}
test -n "$action" || fail "give an action: cluster, bucket, image, run, list, logs or stop"
shift
read_flags "cluster project zone type slices spot! reservation bucket size image name restarts" "$@"
where=("--cluster=$cluster" ${project:+"--project=$project"} ${zone:+"--zone=$zone"})
jobset="jobset.sigs.k8s.io/jobset-name=$name"

case $action in
cluster)
  need cluster type
  test -z "$spot" || test -z "$reservation" || fail "--spot or --reservation, not both"
  capacity=(--on-demand)
  test -z "$spot" || capacity=(--spot)
  test -z "$reservation" || capacity=("--reservation=$reservation")
  storage=(--enable-gcsfuse-csi-driver)
  call xpk cluster create "${where[@]}" "--tpu-type=$type" "--num-slices=$slices" "${capacity[@]}" "${storage[@]}"
  ;;
bucket)
  need cluster bucket
  call xpk storage attach jukebox --type=gcsfuse "${where[@]}" "--bucket=$bucket" "--size=$size" \
    --mount-point=/bucket --auto-mount=true --readonly=false
  ;;
image)
  need image
  call docker build "--file=$root/launch/Dockerfile" --build-arg=EXTRA=tpu "--tag=$image" "$root"
  call docker push "$image"
  ;;
run)
  need cluster name type image
  need_words
  patient 900 # pods start minutes apart, when images are pulled
  # What ends other than with 0 starts again (130: stopped, and saved).
  call xpk workload create "${where[@]}" "--workload=$name" "--tpu-type=$type" "--num-slices=$slices" \
    "--docker-image=$image" "--max-restarts=$restarts" --restart-on-user-code-failure \
    --termination-grace-period-seconds=120 "--command=$(quoted "${words[@]}")"
  ;;
list)
  need cluster
  call xpk workload list "${where[@]}"
  ;;
logs)
  need name
  call kubectl logs --follow --tail=100 "--selector=$jobset,batch.kubernetes.io/job-completion-index=0" --container=jax-tpu
  ;;
stop)
  need cluster name
  call xpk workload delete "${where[@]}" "--workload=$name" --force
  ;;
*) fail "$action? cluster, bucket, image, run, list, logs or stop" ;;
esac
