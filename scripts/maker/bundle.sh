#!/bin/sh
# bundle.sh BUILD OUT [PROGRAM]: what the program needs to run, prove and measure itself on a
# machine that has only a C library, as a folder and OUT.tar.gz: the program (linked with `make
# bundle`), oneDNN and what it needs in lib/, the backends, Busted with its modules, scripts,
# policies, specs, kernels' scripts and the default model. Run it at the top of the source tree.
set -eu
[ $# = 2 ] || { echo "usage: bundle.sh BUILD OUT" >&2; exit 1; }
build=$1 out=$2
rm -rf "$out"
mkdir -p "$out/build/lib" "$out/lib/lua/5.4" "$out/share/lua/5.4"
cp "$build/pyramid-bundle" "$out/build/pyramid"
for object in libpyramid_cuda.so libpyramid_emulated.so pyramid_specs.so; do
  if [ -f "$build/$object" ]; then cp "$build/$object" "$out/build/"; else echo "bundle: without $object" >&2; fi
done

# Shared libraries that the program and the emulator load, but the C library's own, which every
# machine has.
for object in "$out/build/pyramid" "$out/build/libpyramid_emulated.so"; do ldd "$object"; done |
  sed -n 's/^[[:space:]]*\([^ ]*\) => \(\/[^ ]*\) .*/\1 \2/p' | sort -u | while read -r name path; do
    case $name in
      libc.so.*|libm.so.*|libpthread.so.*|libdl.so.*|librt.so.*|ld-linux*) ;;
      *) cp -L "$path" "$out/build/lib/$name"; strip --strip-unneeded "$out/build/lib/$name" ;;
    esac
  done

# Busted and its modules, from where this machine's Lua finds them.
"$build/pyramid" - "$out" <<'LUA'
local out = arg[1]
local function copy(from, to)
  assert(os.execute(("mkdir -p %s && cp -rL %s %s/"):format(to, from, to)))
end
for _, name in ipairs { "busted", "luassert", "say", "mediator", "cliargs", "pl", "system", "term", "dkjson" } do
  local file = package.searchpath(name, package.path) or package.searchpath(name .. ".path", package.path)
  local root = assert(file, name .. " is not found"):match "^(.*)/[^/]*$"
  if file:find "/init%.lua$" or name == "pl" then root = root:match "^(.*)/[^/]*$" end
  for _, path in ipairs { root .. "/" .. name .. ".lua", root .. "/" .. name } do
    if os.execute("test -e " .. path) then copy(path, out .. "/share/lua/5.4") end
  end
end
for _, name in ipairs { "lfs", "system.core", "term.core" } do
  local file = assert(package.searchpath(name, package.cpath), name .. " is not found")
  local folder = name:match "^(.*)%.[^.]*$"
  copy(file, out .. "/lib/lua/5.4" .. (folder and "/" .. folder or ""))
end
LUA
strip --strip-unneeded "$out/build/pyramid" "$out/build/"*.so
find "$out/lib" -name '*.so' -exec strip --strip-unneeded {} +
git ls-files scripts policies spec kernels models core lua docs README.md CHANGELOG.md \
  CONTRIBUTING.md LICENSE Makefile |
  grep -v '^policies/report.html$' |
  tar -cf - -T - | tar -xf - -C "$out"
git describe --always --dirty --abbrev=9 --exclude='*' >"$out/COMMIT"
tar -czf "$out.tar.gz" -C "$(dirname "$out")" "$(basename "$out")"
du -sh "$out" "$out.tar.gz"
