-- bundle_lua.lua OUT DIR…: packs Lua texts into one C file, so that a host needs no files at run
-- time.
--
-- lua/pyramid/**.lua become modules ("pyramid.score"), policies/*.lua policies, scripts/*.lua
-- scripts, and the argument parser of the scripts a module under its own name; pages, styles and
-- browsers' scripts under lua/pyramid become texts ("serve/page/page.css"). OUT is written only if
-- it changes, so that running this at each build costs nothing. The texts are C string literals;
-- bundle.h describes the table.

local out = arg[1]

--- Paths of the files under a folder whose names end in one of these, sorted.
local function files_of(dir, depth, ...)
  local files, names = {}, {}
  for i, ending in ipairs { ... } do names[i] = ("-name '*.%s'"):format(ending) end
  local pipe = assert(io.popen(("find '%s' -maxdepth %d -type f '(' %s ')' 2>/dev/null"):format(
    dir, depth, table.concat(names, " -o "))))
  for path in pipe:lines() do files[#files + 1] = path end
  pipe:close()
  table.sort(files)
  return files
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("a")
  file:close()
  return text
end

local escapes = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ['"'] = '\\"', ["\\"] = "\\\\",
  ["?"] = "\\?" }

local function literal(text)
  local lines = {}
  for line in text:gmatch("[^\n]*\n?") do
    if line ~= "" then
      -- three-digit octal escapes end by themselves, whatever follows
      lines[#lines + 1] = '"' .. line:gsub('[%c"\\?\128-\255]', function(c)
        return escapes[c] or ("\\%03o"):format(c:byte())
      end) .. '"'
    end
  end
  return #lines > 0 and table.concat(lines, "\n") or '""'
end

local entries = {}

local function add(kind, name, chunk, path)
  local text = read(path)
  entries[#entries + 1] = ('{"%s", "%s", "@%s", %d,\n%s},'):format(kind, name, chunk, #text,
    literal(text))
end

for i = 2, #arg do
  local dir = arg[i]
  local kind = ({ policies = "policy", scripts = "script" })[dir] or "module"
  for _, path in ipairs(files_of(dir, kind == "module" and 9 or 1, "lua")) do
    local name = path:sub(#dir + 2, -5)
    if kind == "module" then
      local root = dir:match("[^/]+$")
      local module = root .. "." .. name:gsub("/", ".")
      -- a folder's init is the folder's module; but `pyramid` itself is luaopen_pyramid, which ends
      -- in pyramid.init
      if module ~= root .. ".init" then module = module:gsub("%.init$", "") end
      add(kind, module, root .. "/" .. name .. ".lua", path)
    else
      add(kind, name, path, path)
    end
  end
  for _, path in ipairs(kind == "module" and files_of(dir, 9, "html", "css", "js") or {}) do
    add("text", path:sub(#dir + 2), path, path)
  end
end

add("module", "argparse", "argparse.lua", assert(package.searchpath("argparse", package.path)))

local text = '/* made by scripts/maker/bundle_lua.lua */\n#include "bundle.h"\n\nconst pyr_bundle_entry pyr_bundle[] = {\n'
  .. table.concat(entries, "\n") .. "\n{0, 0, 0, 0, 0}};\n"
local old = io.open(out, "rb")
if old and old:read("a") == text then return end
local file = assert(io.open(out, "wb"))
file:write(text)
file:close()
