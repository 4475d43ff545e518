# shellcheck shell=bash
# What the scripts of this folder have in common: flags, --dry_run and exact printing. Sourced, never run.

# shellcheck disable=SC2034  # for the scripts that read this one
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=
words=() # what follows --

fail() { # one line, exit code 2: the user's to mend
  echo "$(basename "$0"): error: $*" >&2
  exit 2
}

# read_flags "name zone ..." "$@": sets a variable per --name=value (switches: "spot!" allows a bare --spot).
read_flags() { # its own names begin with _: the caller's variables are set here
  local _known=" $1 dry_run! " _flag _key _names
  read -ra _names <<<"${_known//!/}"
  shift
  while test $# -gt 0; do
    _flag=$1
    shift
    case $_flag in
    --)
      words=("$@")
      return
      ;;
    --*=*)
      _key=${_flag%%=*} && _key=${_key#--}
      [[ $_known == *" $_key "* ]] || fail "unknown flag --$_key=; known are$(printf ' --%s' "${_names[@]}")"
      printf -v "$_key" %s "${_flag#*=}"
      ;;
    --*)
      _key=${_flag#--}
      [[ $_known == *" $_key! "* ]] || fail "write $_flag=VALUE; known flags are$(printf ' --%s' "${_names[@]}")"
      printf -v "$_key" %s yes
      ;;
    *) fail "unexpected '$_flag': a command to run follows --" ;;
    esac
  done
}

need() { # need name zone: these flags must have been given
  local _key
  for _key in "$@"; do test -n "${!_key:-}" || fail "give --$_key=..."; done
}

need_words() { test ${#words[@]} -gt 0 || fail "nothing to run: add -- jukebox train --config=... --workdir=..."; }

# patient SECONDS: hosts start apart, so let training wait longer for the others than on one network.
patient() {
  [[ "${words[0]} ${words[1]:-}" =~ ^jukebox\ (train|sweep)$ ]] || return 0
  [[ " ${words[*]}" == *" --wait="* ]] || words+=("--wait=$1")
}

quoted() { # the words as one line that a shell reads back as the same words
  local word line=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  echo "${line# }"
}

call() { # run a command, or print it
  if test -n "$dry_run"; then
    quoted "$@"
  else
    "$@"
  fi
}
