#!/bin/sh
# deps.sh PACKAGE…: installs the Debian packages that are missing, if any; says nothing if none is.
# Needs root or sudo for that. Where there is no apt, it names what is needed and goes on.
set -e
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  for module in lua5.4 libpcre2-8; do
    pkg-config --exists $module 2>/dev/null || missing="$missing $module"
  done
  for command in cc lua5.4; do
    command -v $command >/dev/null || missing="$missing $command"
  done
  if [ -n "$missing" ]; then
    echo "Pyramid needs, under whatever names your system gives them: $*" >&2
    echo "not found here:$missing" >&2
  fi
  exit 0
fi
missing=
for package in "$@"; do
  case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
    installed) ;;
    *) missing="$missing $package" ;;
  esac
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi
if [ -n "$sudo" ] && ! command -v sudo >/dev/null; then
  echo "Pyramid needs these packages:$missing; install them as root, or install sudo" >&2
  exit 1
fi
echo "installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1; }
# The lists may be old or absent: fetch them once if the first try fails.
# shellcheck disable=SC2086
apt install -y --no-install-recommends $missing || { apt update && apt install -y --no-install-recommends $missing; } || {
  cat "$log" >&2
  exit 1
}
