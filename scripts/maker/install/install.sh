#!/bin/sh
# install.sh put BUILD PREFIX VERSION ABI | remove PREFIX: what `make install` and `make uninstall`
# do. DESTDIR, STRIP and LIBS (what a static host links with libpyramid.a) are taken from the
# environment. What is put, and each folder made for it, is listed in share/pyramid/installed; that
# list is what `remove` takes away, and what a newer `put` replaces.
set -e
task=$1
case $task in
  put) build=$2 prefix=$3 version=$4 abi=$5 ;;
  remove) prefix=$2 ;;
  *) echo "usage: install.sh put BUILD PREFIX VERSION ABI | remove PREFIX" >&2; exit 2 ;;
esac
root=$DESTDIR$prefix
list=share/pyramid/installed
libs=$LIBS

remove() {
  [ -f "$root/$list" ] || return 0
  # files first; then folders, the deepest first, if nobody has put anything else there
  while read -r kind path; do
    [ "$kind" = folder ] || rm -f "$root/$path"
  done <"$root/$list"
  folders=$(sed -n 's/^folder //p' "$root/$list" | sort -r)
  rm -f "$root/$list"
  echo "$folders" | while read -r path; do
    [ -z "$path" ] || rmdir "$root/$path" 2>/dev/null || true
  done
}

if [ "$task" = remove ]; then
  [ -f "$root/$list" ] || { echo "nothing is installed under $root (there is no $root/$list)" >&2; exit 1; }
  remove
  exit 0
fi

remove
listed=$(mktemp)
trap 'rm -f "$listed"' EXIT

folder() { # PATH: makes it and what is above it, down from PREFIX
  [ "$1" = . ] || [ -d "$root/$1" ] && return 0
  folder "$(dirname "$1")"
  mkdir "$root/$1"
  echo "folder $1" >>"$listed"
}
file() { # MODE SOURCE PATH
  folder "$(dirname "$3")"
  install -m "$1" "$2" "$root/$3"
  echo "file $3" >>"$listed"
}
link() { # TO PATH
  ln -sf "$1" "$root/$2"
  echo "link $2" >>"$listed"
}
filled() { # SOURCE PATH: a text that holds the prefix and the version
  folder "$(dirname "$2")"
  sed -e "s|@PREFIX@|$prefix|g" -e "s|@VERSION@|$version|g" -e "s|@ABI@|$abi|g" -e "s|@LIBS@|$libs|g" "$1" >"$root/$2"
  chmod 644 "$root/$2"
  echo "file $2" >>"$listed"
}

mkdir -p "$root"
file 755 "$build/pyramid" bin/pyramid
file 644 core/pyramid.h include/pyramid.h
file 644 "$build/libpyramid.a" lib/libpyramid.a
file 644 "$build/libpyramid.so" "lib/libpyramid.so.$version"
link "libpyramid.so.$version" "lib/libpyramid.so.$abi"
link "libpyramid.so.$abi" lib/libpyramid.so
file 644 "$build/pyramid.so" lib/lua/5.4/pyramid.so
[ ! -f "$build/libpyramid_cuda.so" ] || file 644 "$build/libpyramid_cuda.so" lib/libpyramid_cuda.so
filled scripts/maker/install/pyramid.pc.in lib/pkgconfig/pyramid.pc
filled scripts/maker/install/pyramid-lua.pc.in lib/pkgconfig/pyramid-lua.pc
filled scripts/maker/install/PyramidConfig.cmake.in lib/cmake/Pyramid/PyramidConfig.cmake
filled scripts/maker/install/PyramidConfigVersion.cmake.in lib/cmake/Pyramid/PyramidConfigVersion.cmake

# Manual pages and completions are made by the program that was built for this machine; where it
# cannot run (a build for another), they are left out.
made=$(mktemp -d)
trap 'rm -rf "$listed" "$made"' EXIT
if PYRAMID_PATH= "$build/pyramid" man --folder "$made" 2>/dev/null; then
  for page in "$made"/*.1; do file 644 "$page" "share/man/man1/$(basename "$page")"; done
  "$build/pyramid" completion bash >"$made/bash"
  "$build/pyramid" completion zsh >"$made/zsh"
  "$build/pyramid" completion fish >"$made/fish"
  file 644 "$made/bash" share/bash-completion/completions/pyramid
  file 644 "$made/zsh" share/zsh/site-functions/_pyramid
  file 644 "$made/fish" share/fish/vendor_completions.d/pyramid.fish
fi

# What people read: documents, examples, policies, and the Lua modules with their annotations.
# Nothing of it is needed to run.
for path in README.md CHANGELOG.md CONTRIBUTING.md LICENSE policies/*.lua policies/*.md \
  scripts/examples/* $(find docs lua/pyramid -type f 2>/dev/null | sort); do
  [ ! -f "$path" ] || file 644 "$path" "share/pyramid/$path"
done

if [ -n "$STRIP" ]; then
  strip "$root/bin/pyramid"
  strip --strip-unneeded "$root/lib/libpyramid.so.$version" "$root/lib/lua/5.4/pyramid.so"
  strip --strip-debug "$root/lib/libpyramid.a"
  [ ! -f "$root/lib/libpyramid_cuda.so" ] || strip --strip-unneeded "$root/lib/libpyramid_cuda.so"
fi
install -m 644 "$listed" "$root/$list"
if [ -z "$DESTDIR" ] && [ "$(id -u)" = 0 ] && command -v ldconfig >/dev/null; then ldconfig 2>/dev/null || true; fi
