#!/usr/bin/env bash
# On a host that tpu_vm.sh has copied this tree to: install, and keep one command running after the connection ends.
#
#   launch/on_host.sh install [BUCKET]   package in ~/jukebox_venv; BUCKET mounted at /bucket
#   launch/on_host.sh start WORD...      run the words in the background, output to run.log
#   launch/on_host.sh state              one line: "jukebox-state: idle", "... running" or "... ended CODE"
#   launch/on_host.sh stop               SIGTERM (it saves), then wait for the end
#   launch/on_host.sh log                follow run.log
set -euo pipefail
cd "$(dirname "$0")/.."
action=${1:?install, start, state, stop or log}
shift

alive() { test -e run.pid && kill -0 -- "-$(cat run.pid)" 2>/dev/null; }

case $action in
install)
  # The images of TPU VMs have a Python that is too old; uv brings its own.
  command -v "$HOME/.local/bin/uv" >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  test -x "$HOME/jukebox_venv/bin/python" || "$HOME/.local/bin/uv" venv --python 3.12 "$HOME/jukebox_venv"
  VIRTUAL_ENV="$HOME/jukebox_venv" "$HOME/.local/bin/uv" pip install --quiet -e '.[train,tpu]' -c constraints.txt
  if test -n "${1:-}" && ! mountpoint -q "/bucket"; then
    if ! command -v gcsfuse >/dev/null; then
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
      echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse
    fi
    sudo mkdir -p /bucket && sudo chown "$USER" /bucket
    # Checkpoints get their names by renaming directories; a file must be seen by all hosts as soon as it is written.
    gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 "$1" "/bucket"
  fi
  ;;
start)
  if alive; then
    echo "on_host.sh: already running: stop it first" >&2
    exit 1
  fi
  rm -f run.code
  export PATH="$HOME/jukebox_venv/bin:$PATH"
  # What the first host has compiled is read by all of them when a lost machine is made anew.
  if mountpoint -q "/bucket"; then compiled=/bucket/compiled; else compiled="$HOME/.cache/jukebox_jax"; fi
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$compiled}"
  # The trap lets the shell outlive a SIGTERM to the group, so that it can note how the command ended.
  setsid nohup bash -c 'echo $$ >run.pid; trap : TERM; "$@"; echo $? >run.code' start "$@" >>run.log 2>&1 </dev/null &
  while ! test -s run.pid || ! { alive || test -e run.code; }; do sleep 0.1; done
  ;;
state)
  if alive; then
    echo "jukebox-state: running"
  elif test -s run.code; then
    echo "jukebox-state: ended $(cat run.code)"
  else
    echo "jukebox-state: idle"
  fi
  ;;
stop)
  if alive; then kill -TERM -- "-$(cat run.pid)"; fi
  while alive; do sleep 1; done
  ;;
log) exec tail -n 100 -F run.log ;;
*)
  echo "on_host.sh: $action? install, start, state, stop or log" >&2
  exit 2
  ;;
esac
