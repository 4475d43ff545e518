#!/usr/bin/env bash
# Cloud TPU VMs: one pod slice, or several as one job.
#
#   launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [--project=P] [flags] [-- jukebox train ...]
#
#   create    ask for the TPU in the queue, wait until it is there   --type=v5litepod-256 [--spot] [--slices=2]
#             [--version=RUNTIME] [--direct: no queue, one slice]
#   sync      copy this tree to every host and install it            [--bucket=NAME: mounted at /bucket]
#   run       start the words after -- on every host (they stay when the connection ends)
#   logs      follow the first host's log
#   state     what every host is doing
#   stop      SIGTERM on every host: training saves and ends
#   delete    delete the TPU
#   babysit   create, sync and run; after a preemption all of it again, until the command has ended with 0
#             [--retries=20 failures] [--poll=60 seconds] [--keep: do not delete the TPU at the end]
#
# --dry_run prints the exact commands instead. `jukebox train` goes on from its last checkpoint when it is run again.
set -euo pipefail
# shellcheck source=launch/shared.sh
source "$(dirname "$0")/shared.sh"

name='' zone='' project='' type='' version='' spot='' slices=1 direct='' bucket='' retries=20 poll=60 keep=''
action=${1:-}
test -n "$action" || fail "give an action: create, sync, run, logs, state, stop, delete or babysit"
shift
read_flags "name zone project type version spot! slices direct! bucket retries poll keep!" "$@"
need name zone
where=("--zone=$zone" ${project:+"--project=$project"})
everywhere=(--worker=all)
if test -n "$direct"; then
  test "$slices" = 1 || fail "--direct makes one slice, not --slices=$slices"
  api=(gcloud compute tpus tpu-vm)
else
  api=(gcloud compute tpus queued-resources)
  everywhere+=(--node=all)
fi

runtime() { # Google's names: https://cloud.google.com/tpu/docs/runtimes
  case $type in
  v5litepod-* | v5e-*) echo v2-alpha-tpuv5-lite ;;
  v5p-*) echo v2-alpha-tpuv5 ;;
  v6e-*) echo v2-alpha-tpuv6e ;;
  tpu7x-*) fail "--type=$type: TPU7x is only on GKE: use launch/xpk.sh" ;;
  *) echo tpu-ubuntu2204-base ;;
  esac
}

test -z "$type" || test -n "$version" || version=$(runtime)

request() {
  need type
  local flags=("--accelerator-type=$type" "${where[@]}" ${spot:+--spot})
  if test -n "$direct"; then
    call "${api[@]}" create "$name" "${flags[@]}" "--version=$version"
  elif test "$slices" = 1; then
    call "${api[@]}" create "$name" "${flags[@]}" "--runtime-version=$version" "--node-id=$name"
  else
    call "${api[@]}" create "$name" "${flags[@]}" "--runtime-version=$version" "--node-count=$slices" "--node-prefix=$name"
  fi
}

resource() { # the TPU's state in one word; NONE if there is no such TPU
  local format='value(state.state)' out code=0
  test -z "$direct" || format='value(state)'
  out=$(call "${api[@]}" describe "$name" "${where[@]}" "--format=$format" 2>&1) || code=$?
  if test "$code" = 0; then
    echo "${out##*$'\n'}"
  elif [[ $out == *NOT_FOUND* || $out == *"not found"* ]]; then
    echo NONE
  else
    echo "$out" >&2
    return "$code"
  fi
}

gone() { [[ " FAILED SUSPENDING SUSPENDED PREEMPTED TERMINATED STOPPED " == *" $1 "* ]]; }
ready() { [[ " ACTIVE READY " == *" $1 "* ]]; }

# The functions that babysit calls end with `return` at the first failure: `set -e` does not hold inside of `||`.
create() {
  request || return
  local state
  while test -z "$dry_run"; do
    state=$(resource) || return
    if ready "$state"; then return; fi
    if gone "$state" || test "$state" = NONE; then
      echo "tpu_vm.sh: $name: $state" >&2
      return 1
    fi
    echo "$(date +%T) $name: $state"
    sleep "$poll"
  done
  call "${api[@]}" describe "$name" "${where[@]}" # until ACTIVE
}

on_hosts() { call "${api[@]}" ssh "$name" "${where[@]}" "${everywhere[@]}" "--command=$1"; }
here() { echo "cd jukebox_jax && launch/on_host.sh $(quoted "$@")"; }

sync_tree() {
  local archive=/tmp/jukebox_jax.$$.tar.gz
  call tar --create --gzip "--file=$archive" "--directory=$root" --exclude=__pycache__ jukebox_jax configs launch \
    setup.cfg pyproject.toml constraints.txt README.md LICENSE || return
  call "${api[@]}" scp "$archive" "$name:jukebox_jax.tar.gz" "${where[@]}" "${everywhere[@]}" || return
  call rm "$archive"
  on_hosts "mkdir -p jukebox_jax && rm -rf jukebox_jax/jukebox_jax && tar -xzf jukebox_jax.tar.gz -C jukebox_jax" || return
  on_hosts "$(here install ${bucket:+"$bucket"})"
}

start() {
  patient 120
  on_hosts "$(here start "${words[@]}")"
}
# A fresh host has nothing yet that could answer.
host_states() { on_hosts "{ $(here state); } 2>/dev/null || echo 'jukebox-state: idle'"; }

delete() {
  if test -n "$direct"; then
    call "${api[@]}" delete "$name" "${where[@]}" --quiet
  else
    call "${api[@]}" delete "$name" "${where[@]}" --force --quiet
  fi
}

note() { echo "$(date +%T) $name: $*"; }

failures=0
failed() { # count a failure; give up with its code when there have been too many
  failures=$((failures + 1))
  note "$2 (code $1, failure $failures of $retries)"
  test "$failures" -lt "$retries" || exit "$1"
  sleep "$poll"
}

# One look at the TPU and what its hosts do, and the one step that follows from it.
babysit() {
  local state hosts code last=0
  while :; do
    code=0
    state=$(resource) || code=$?
    if test "$code" != 0; then
      failed "$code" "no answer about the TPU"
    elif test "$state" = NONE; then
      note "asking for a TPU"
      (create && sync_tree && start) || failed $? "could not be made ready"
    elif gone "$state"; then
      note "$state: deleting it, to make it anew"
      delete || failed $? "could not be deleted"
    elif ! ready "$state"; then
      note "$state"
      sleep "$poll"
    elif ! hosts=$(host_states | grep -o 'jukebox-state: .*'); then
      failed 1 "hosts do not answer" # one may just have been taken away, which the next look shows
    elif grep -q running <<<"$hosts"; then
      sleep "$poll"
    elif grep -q idle <<<"$hosts"; then
      (sync_tree && start) || failed $? "could not start"
    elif ! grep -qv 'ended 0$' <<<"$hosts"; then
      note "done"
      test -n "$keep" || delete
      return
    else
      code=$(sed -n 's/.*ended \([1-9][0-9]*\).*/\1/p' <<<"$hosts" | sort -n | head -n 1)
      note "ended with code $code:"
      call "${api[@]}" ssh "$name" "${where[@]}" --worker=0 "--command=tail -n 3 jukebox_jax/run.log" || true
      # 130: stopped and saved. 2: a mistake of the user's, or once a host that was late.
      test "$code" != 2 || test "$last" != 2 || exit 2
      last=$code
      test "$code" = 130 || failed "$code" "the command failed"
      start || failed $? "could not start again"
    fi
  done
}

case $action in
create) create ;;
sync) sync_tree ;;
run) need_words && start ;;
logs) call "${api[@]}" ssh "$name" "${where[@]}" --worker=0 "--command=$(here log)" ;;
state) host_states ;;
stop) on_hosts "$(here stop)" ;;
delete) delete ;;
babysit)
  need type && need_words
  if test -n "$dry_run"; then
    create && sync_tree && start && host_states
    test -n "$keep" || delete
  else
    babysit
  fi
  ;;
*) fail "$action? create, sync, run, logs, state, stop, delete or babysit" ;;
esac
