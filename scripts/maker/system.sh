#!/bin/sh
# system.sh OUT CC ONEDNN: what a build takes from this system, as variables of make, in OUT.
#
# Lua and its libraries have other names on other systems (lua5.4, lua-5.4, lua54, lua), and neither
# pkg-config nor CMake need be there: the compiler is asked what it finds. OUT is written only if it
# changes. Once nothing was missing it stays as it is until this script or what was asked for
# changes. ONEDNN is 0 (without oneDNN), 1 (with it), or empty (as OUT says, or as it is found).
#
#   LUA            a Lua 5.4 interpreter, which packs texts into the library
#   LUA_CFLAGS     where lua.h is               LUA_PC         what pkg-config calls it here
#   LUA_ARCHIVE    liblua*.a                    LUA_LINK       what a host links: -llua5.4
#   CJSON_ARCHIVE lua-cjson, where it is a library to link with (Debian); empty: it is a module or
#   absent, and left to users
#   ONEDNN         1 or 0
#   AMX            flags for matrix tiles, where compiler and assembler know them
#   MISSING        what a build cannot do without and is not there, in words
set -e
out=$1 cc=$2 asked=$3
folder=$(dirname "$out")
mkdir -p "$folder"

header="# system.sh for: $cc, ONEDNN=$asked; $(cksum <"$0")"
if [ -f "$out" ] && [ -z "$asked" ]; then
  # what was once asked for holds
  asked=$(sed -n 's/^# system.sh for: .*, ONEDNN=\([01]*\); .*/\1/p' "$out")
  header="# system.sh for: $cc, ONEDNN=$asked; $(cksum <"$0")"
fi
[ -f "$out" ] && [ "$(head -n 1 "$out")" = "$header" ] && grep -q '^MISSING := *$' "$out" &&
  { [ "$asked" ] || grep -q '^ONEDNN := 1' "$out"; } && exit 0

compiles() { # FLAGS TEXT: the preprocessor takes it
  # shellcheck disable=SC2086
  printf '%b' "$2" | $cc $1 -E -x c - >/dev/null 2>&1
}
assembles() { # FLAGS TEXT: the compiler and its assembler take it
  # shellcheck disable=SC2086
  printf '%b' "$2" | $cc $1 -x c - -c -o "$folder/system.probe" >/dev/null 2>&1 && rm -f "$folder/system.probe"
}
archive() { # NAME…: the first lib NAME.a that the compiler finds
  for name in "$@"; do
    case $name in
      /*) path=$name ;;
      *) path=$($cc -print-file-name="lib$name.a" 2>/dev/null) || path= ;;
    esac
    case $path in /*) [ -f "$path" ] && { echo "$path"; return; } ;; esac
  done
}
links() { # NAME…: the first that the linker takes as -lNAME
  for name in "$@"; do
    if echo 'int main(void) { return 0; }' | $cc -x c - -o "$folder/system.probe" "-l$name" >/dev/null 2>&1; then
      rm -f "$folder/system.probe"
      echo "-l$name"
      return
    fi
  done
}
missing=
lack() { missing="$missing${missing:+; }$1"; }

lua=
for name in lua5.4 lua-5.4 lua54 lua; do
  command -v "$name" >/dev/null 2>&1 || continue
  [ "$("$name" -e 'io.write(_VERSION)' 2>/dev/null)" = "Lua 5.4" ] && { lua=$name; break; }
done

cflags= archive= link= cjson= found= amx=
if ! compiles "" ""; then lack "a C compiler ($cc)"
else
  header_is="#include <lua.h>\n#if LUA_VERSION_NUM != 504\n#error\n#endif\n"
  if compiles "" "$header_is"; then found=1
  else
    for dir in /usr/include/lua5.4 /usr/include/lua-5.4 /usr/include/lua54 /usr/local/include/lua5.4 /usr/local/include/lua-5.4 \
        /usr/local/include/lua54 /usr/local/include/lua /opt/homebrew/include/lua5.4; do
      compiles "-I$dir" "$header_is" && { found=1 cflags=-I$dir; break; }
    done
  fi
  [ "$found" ] || lack "the header lua.h of Lua 5.4"
  archive=$(archive lua5.4 lua-5.4 lua54 /usr/lib/lua5.4/liblua.a /usr/lib64/lua5.4/liblua.a lua)
  [ -n "$archive" ] && ! grep -q 'Lua 5\.4' "$archive" && archive=
  link=$(links lua5.4 lua-5.4 lua54 lua)
  [ "$archive$link" ] || lack "a library of Lua 5.4 (liblua5.4.a or liblua5.4.so)"
  tiles="-mamx-tile -mamx-bf16 -mavx512bf16 -mprfchw"
  assembles "$tiles" 'void f(void) { __asm__ volatile("tdpbf16ps %%tmm1, %%tmm2, %%tmm0; tilerelease" ::); }\n' && amx=$tiles
  cjson=$(archive lua5.4-cjson)
  compiles "" '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <pcre2.h>\n' || lack "the header pcre2.h"
  onednn=$asked
  if [ "$asked" != 0 ]; then
    if compiles "" '#include <dnnl.h>\n#if DNNL_VERSION_MAJOR < 2\n#error\n#endif\n'; then onednn=1
    elif [ "$asked" = 1 ]; then lack "the header dnnl.h of oneDNN, version 2 or later (ONEDNN=1)"
    else onednn=0
    fi
  fi
fi
[ "$lua" ] || lack "a Lua 5.4 interpreter"
pc=lua5.4
for name in lua5.4 lua-5.4 lua54 lua; do
  command -v pkg-config >/dev/null 2>&1 && pkg-config --exists "$name >= 5.4" "$name < 5.5" 2>/dev/null && { pc=$name; break; }
done

cat >"$out.new" <<MK
$header
LUA := ${lua:-lua5.4}
LUA_CFLAGS := $cflags
LUA_PC := $pc
LUA_ARCHIVE := $archive
LUA_LINK := $link
CJSON_ARCHIVE := $cjson
AMX := $amx
ONEDNN := ${onednn:-1}
MISSING := $missing
MK
if [ -f "$out" ] && cmp -s "$out" "$out.new"; then rm "$out.new"; exit 0; fi
mv "$out.new" "$out"
[ "$missing" ] || [ "$asked" ] || [ "$onednn" = 1 ] ||
  echo "oneDNN is not found: built without it, bf16 products by Pyramid's own kernels (ONEDNN=0 says so beforehand)"
