#!/bin/sh
# deps.sh PACKAGE…: installs the Debian packages that are missing, if any; says nothing if none is.
# Needs root or sudo for that. On other systems it says what is missing, by the names that their
# package managers have for it (dnf, pacman, apk), and goes on: what a build lacks, the build then
# says.
set -e

# What a Debian package is called elsewhere, and what no package has.
name_for() { # MANAGER PACKAGE
  case $1:$2 in
    dnf:gcc) echo gcc ;;               pacman:gcc | apk:gcc) echo gcc ;;
    dnf:g++) echo gcc-c++ ;;           pacman:g++) ;;                   apk:g++) echo g++ ;;
    dnf:libc6-dev) echo glibc-devel ;; pacman:libc6-dev) echo glibc ;;  apk:libc6-dev) echo musl-dev ;;
    dnf:pkg-config) echo pkgconf-pkg-config ;; pacman:pkg-config | apk:pkg-config) echo pkgconf ;;
    dnf:lua5.4) echo lua ;;            pacman:lua5.4) echo lua54 ;;     apk:lua5.4) echo lua5.4 ;;
    dnf:liblua5.4-dev) echo lua-devel lua-static ;; pacman:liblua5.4-dev) ;; apk:liblua5.4-dev) echo lua5.4-dev ;;
    dnf:libpcre2-dev) echo pcre2-devel ;; pacman:libpcre2-dev) echo pcre2 ;; apk:libpcre2-dev) echo pcre2-dev ;;
    dnf:libdnnl-dev) echo onednn-devel ;; pacman:libdnnl-dev) echo onednn ;; apk:libdnnl-dev) echo onednn-dev ;;
    dnf:curl | pacman:curl | apk:curl) echo curl ;;
    dnf:lua-argparse) echo lua-argparse ;; pacman:lua-argparse) echo lua54-argparse ;; apk:lua-argparse) echo lua-argparse ;;
    dnf:libopenmpi-dev) echo openmpi-devel ;; pacman:libopenmpi-dev) echo openmpi ;; apk:libopenmpi-dev) echo openmpi-dev ;;
    dnf:openmpi-bin | apk:openmpi-bin) echo openmpi ;;
    dnf:locales) echo glibc-locale-source ;;
    apk:lua-cjson-dev) echo lua5.4-cjson ;;
    apk:lua-busted) echo lua5.4-busted ;;
    apk:lua-check | pacman:lua-check) echo luacheck ;;
    *:chromium) echo chromium ;;
    *:python3) [ "$1" = pacman ] && echo python || echo python3 ;;
    dnf:lua-http | dnf:lua-cqueues) ;;  pacman:lua-http | pacman:lua-cqueues) ;;
    apk:lua-cqueues) echo lua5.4-cqueues ;;
    dnf:python3-pip) echo python3-pip ;; pacman:python3-pip) echo python-pip ;; apk:python3-pip) echo py3-pip ;;
  esac
}
# The same of LuaRocks, for Lua 5.4.
rock_for() {
  case $1 in
    lua-argparse) echo argparse ;; lua-busted) echo busted ;; lua-cjson-dev) echo lua-cjson ;; lua-check) echo luacheck ;;
    lua-http) echo http ;; lua-cqueues) echo cqueues ;;
  esac
}
is_installed() { # MANAGER NAME
  case $1 in
    dnf) rpm -q --whatprovides "$2" ;;
    pacman) pacman -Q "$2" ;;
    apk) apk info -e "$2" ;;
  esac >/dev/null 2>&1
}
has_module() { # ROCK: some Lua 5.4 finds it
  module=$1
  [ "$module" = lua-cjson ] && module=cjson
  [ "$module" = busted ] && module=busted.core
  [ "$module" = http ] && module=http.version
  for lua in lua5.4 lua-5.4 lua54 lua; do
    "$lua" -e 'assert(_VERSION == "Lua 5.4"); require(arg and arg[1] or "'"$module"'")' >/dev/null 2>&1 && return 0
  done
  return 1
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  manager=
  for known in dnf pacman apk; do
    command -v $known >/dev/null && { manager=$known; break; }
  done
  missing= rocks= foreign=
  for package in "$@"; do
    rock=$(rock_for "$package")
    [ -n "$rock" ] && has_module "$rock" && continue
    names=$(name_for "$manager" "$package")
    if [ -z "$manager" ]; then foreign="$foreign $package"
    elif [ -n "$names" ]; then
      for name in $names; do is_installed "$manager" "$name" || missing="$missing $name"; done
    elif [ -n "$rock" ]; then rocks="$rocks $rock"
    fi
  done
  case $manager in
    dnf) how="dnf install" ;; pacman) how="pacman -S" ;; apk) how="apk add" ;;
  esac
  [ -z "$missing" ] || echo "Pyramid needs what is missing here: $how$missing" >&2
  [ -z "$rocks" ] || echo "and of LuaRocks: luarocks --lua-version 5.4 install$rocks" >&2
  [ -z "$foreign" ] || echo "Pyramid needs, by Debian's names:$foreign" >&2
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
