#!/usr/bin/env bash
# Proves both commands on a bare system: makes a minimal Debian with git, make and python3 and nothing
# else, clones the last commit into it, and runs `make demo` and `make test` there.
#
#   scripts/fresh.sh [make targets...]     the default is: demo test
#
# FRESH_SUITE (bookworm) names the release, FRESH_SOURCE (this repository) what is cloned. Where packages
# come from is taken from this host: its apt sources and proxies, its pip settings, its environment.
# The bootstrapped base is kept in ${XDG_CACHE_HOME:-~/.cache}/skate-fresh; the system itself lives in a
# mount and process namespace, so that nothing of it outlives this script.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${FRESH_SUITE:-bookworm}
source=${FRESH_SOURCE:-$PWD}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/skate-fresh
base=$cache/$suite.tar root=$cache/root
[ $# -gt 0 ] || set -- demo test

if [ "$(id -u)" != 0 ]; then
  exec sudo --preserve-env=FRESH_SUITE,http_proxy,https_proxy,no_proxy FRESH_SOURCE="$source" XDG_CACHE_HOME="${cache%/*}" "$0" "$@"
fi
if [ -z "${SKATE_FRESH_INSIDE:-}" ]; then
  SKATE_FRESH_INSIDE=1 exec unshare --mount --pid --fork --kill-child --propagation private "$0" "$@"
fi

say() { printf '\n==== fresh: %s\n' "$*"; }

# The host's first source that offers the suite, or the debootstrap default.
mirror() {
  apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' 'Component: main' |
    awk -v suite="$suite" '$1 == suite { print $2; exit }'
}

make_base() {
  [ -f "$base" ] && return
  say "debootstrap $suite"
  local work=$cache/work
  rm -rf "$work"
  mkdir -p "$work"
  # shellcheck disable=SC2046
  debootstrap --variant=minbase "$suite" "$work" $(mirror) >"$cache/debootstrap.log" 2>&1 ||
    { tail -n 20 "$cache/debootstrap.log"; return 1; }
  rm -rf "$work"/var/cache/apt/archives/*.deb
  tar -C "$work" --one-file-system -cf "$base.part" .
  mv "$base.part" "$base"
  rm -rf "$work"
}

copy_host_file() { # keeps path and name
  [ -f "$1" ] || return 0
  mkdir -p "$root${1%/*}"
  cp -L "$1" "$root$1"
}

copy_host_settings() {
  local file
  if [ "$suite" = "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" ]; then
    rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources \
      /etc/apt/keyrings/* /etc/apt/trusted.gpg /etc/apt/trusted.gpg.d/* /usr/share/keyrings/*; do
      copy_host_file "$file"
    done
  fi
  # How to fetch, but not the hooks, whose programs are not there.
  apt-config dump | grep -iE '^Acquire::(http|https|ftp|ForceIPv|Retries|Languages)' \
    >"$root/etc/apt/apt.conf.d/90host" || true
  for file in /etc/resolv.conf /etc/hosts /usr/local/share/ca-certificates/*.crt /etc/pip.conf "$HOME/.pip/pip.conf" "$HOME/.config/pip/pip.conf" \
    "${PIP_CONFIG_FILE:-/}" "${PIP_CERT:-/}" "${SSL_CERT_FILE:-/}" "${REQUESTS_CA_BUNDLE:-/}"; do
    copy_host_file "$file"
  done
}

make_root() {
  rm -rf --one-file-system "$root"
  mkdir -p "$root"
  tar -C "$root" -xpf "$base"
  copy_host_settings
  mount --bind "$root" "$root"  # its "/" is then a mount, as on any system
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount -t tmpfs -o mode=755 dev "$root/dev"
  mkdir "$root/dev/shm" "$root/dev/pts"
  mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts" 2>/dev/null || mount --rbind /dev/pts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
  done
  ln -s /proc/self/fd "$root/dev/fd"
  for name in stdin stdout stderr; do ln -s "/proc/self/fd/$((n++))" "$root/dev/$name"; done
}

inside() {
  local settings=() name
  while IFS='=' read -r name _; do
    case $name in
      PIP_FIND_LINKS) ;; # a folder of this host
      PIP_* | *_proxy | *_PROXY | SSL_CERT_FILE | REQUESTS_CA_BUNDLE | CI) settings+=("$name=${!name}") ;;
    esac
  done < <(env)
  chroot "$root" env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 TERM="${TERM:-dumb}" DEBIAN_FRONTEND=noninteractive "${settings[@]}" "$@" </dev/null
}

n=0
mkdir -p "$cache"
make_base
say "a new system in $root"
make_root
# In the namespace this would come of itself; a host without one is to be left clean as well.
trap 'umount --recursive --lazy "$root" 2>/dev/null; rm -rf --one-file-system "$root"' EXIT
inside apt-get -qq update
inside apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install git make python3 >/dev/null
git clone --quiet --no-hardlinks "file://$source" "$root/skate"
say "commit $(git -C "$root/skate" rev-parse --short HEAD), on $(inside sh -c '. /etc/os-release; echo "$PRETTY_NAME"') \
with $(inside sh -c 'dpkg-query -W | wc -l') packages"

for target in "$@"; do
  say "make $target"
  begun=$SECONDS
  inside make --no-print-directory -C /skate "$target"
  say "make $target: passed in $((SECONDS - begun)) s"
done
