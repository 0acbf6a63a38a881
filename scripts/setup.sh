#!/usr/bin/env bash
# Installs what is missing: scripts/setup.sh [build] [check] [bench] [fresh], each a list in
# scripts/requirements/. Debian packages come by apt, Python packages go into .venv. When all is there
# it takes a moment and says nothing. PYTHON picks the Python that .venv is made of.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- build
lists=scripts/requirements
python=${PYTHON:-python3}
exec 9<"$lists" && flock 9  # one at a time

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "setup: not root, and no sudo. As root, run: $*" >&2
    exit 1
  fi
}

# The lines of the .apt lists of which no alternative is installed.
missing_packages() {
  local installed line name found
  installed=$'\n'$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' | sed -n 's/^ii *//p')$'\n'
  for group in "$@"; do
    [ -f "$lists/$group.apt" ] || continue
    while IFS= read -r line; do
      line=${line%%#*}
      [ -n "${line// /}" ] || continue
      found=
      for name in ${line//|/ }; do
        case $installed in *$'\n'"$name"$'\n'*) found=yes ;; esac
      done
      [ -n "$found" ] || echo "$line"
    done <"$lists/$group.apt"
  done
  # A Python from elsewhere than Debian brings these with it.
  if [[ " $* " == *" build "* ]] && ! "$python" - <<<'
import ensurepip, os, sysconfig, venv
raise SystemExit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' 2>/dev/null; then
    printf '%s\n' python3-venv python3-dev
  fi
}

install_packages() {
  local lines line name chosen=()
  mapfile -t lines < <(missing_packages "$@")
  [ ${#lines[@]} -gt 0 ] || return 0
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 update
  for line in "${lines[@]}"; do
    for name in ${line//|/ }; do
      [ -n "$(apt-cache show --no-all-versions "$name" 2>/dev/null)" ] && break
    done
    chosen+=("$name")
  done
  echo "setup: installing ${chosen[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install "${chosen[@]}" >/dev/null
}

# What .venv must be made anew, or filled again, for.
fingerprint() {
  cat "$lists/$1.pip"
  [ "$1" != build ] || cat pyproject.toml compat/ray/pyproject.toml scripts/link_package.py 2>/dev/null || true
  realpath .venv/bin/python
  pwd
}

fill_venv() {
  local group=$1 mark=.venv/.installed-$1
  if ! .venv/bin/python -c '' 2>/dev/null; then
    "$python" -m venv --clear .venv
  fi
  [ "$(fingerprint "$group")" != "$(cat "$mark" 2>/dev/null)" ] || return 0
  echo "setup: filling .venv for $group"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$lists/$group.pip"
  if [ "$group" = build ]; then
    .venv/bin/python scripts/link_package.py . python
    [ ! -f compat/ray/pyproject.toml ] || .venv/bin/python scripts/link_package.py compat/ray compat/ray
  fi
  fingerprint "$group" >"$mark"
}

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
  install_packages "$@"
else
  echo "setup: not a Debian system; these packages, or their likes, must be there:" \
    "$(for group in "$@"; do sed "s/#.*//" "$lists/$group.apt"; done | tr '\n' ' ')" >&2
fi
for group in "$@"; do
  [ ! -f "$lists/$group.pip" ] || fill_venv "$group"
done
