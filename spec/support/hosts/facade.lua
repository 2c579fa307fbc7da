-- facade.lua LIBRARY MODEL HEADER: a host under LuaJIT. HEADER is pyramid.h as the preprocessor
-- leaves it. Prints a text.
local ffi = require "ffi"

local header = assert(io.open(arg[3])):read "*a"
-- what comes before is of the C library
local first = assert(header:find("const char *pyr_version", 1, true))
ffi.cdef(header:sub(first))
local lib = ffi.load(arg[1])

local options = ffi.new("pyr_host_options", { threads = 1, policy = "pyramidinfer",
  policy_options = "recent=0.3 floor=4" })
local box = ffi.new "pyr_host *[1]"
if lib.pyr_host_open(arg[2], options, box) ~= lib.PYR_OK then
  error(ffi.string(lib.pyr_host_error(box[0])))
end
local pieces = {}
local on_piece = ffi.cast("int (*)(void *, const char *, size_t)", function(_, piece, length)
  pieces[#pieces + 1] = ffi.string(piece, length)
  return 0
end)
local how = ffi.new("pyr_generate_options", { max_tokens = 40, on_piece = on_piece })
if lib.pyr_host_generate(box[0], "hello world", how) ~= lib.PYR_OK then
  error(ffi.string(lib.pyr_host_error(box[0])))
end
lib.pyr_host_close(box[0])
on_piece:free()
io.write(table.concat(pieces))
