-- chat.lua LIBRARY MODEL HEADER CASES: messages, tools and embeddings under LuaJIT. CASES is a Lua
-- file: { { format = a template's text, messages = JSON, tools = JSON, variables = JSON,
-- thinking = 1 or -1 }, … }. Prints what each renders to, or the word of its refusal, ended by a
-- zero byte; then the answer to the first messages in the model's own format, twice: from them, and
-- from the rows of their text's tokens.
local ffi = require "ffi"

local header = assert(io.open(arg[3])):read "*a"
local first = assert(header:find("const char *pyr_version", 1, true))
ffi.cdef(header:sub(first))
local lib = ffi.load(arg[1])
local cases = dofile(arg[4])

local box = ffi.new "pyr_host *[1]"
local function check(status)
  if status ~= lib.PYR_OK then error(ffi.string(lib.pyr_host_error(box[0]))) end
end
check(lib.pyr_host_open(arg[2], ffi.new("pyr_host_options", { threads = 1 }), box))
local host = box[0]

local text, length = ffi.new "const char *[1]", ffi.new "size_t[1]"
local function render(case)
  local how = ffi.new("pyr_generate_options", { size = ffi.sizeof "pyr_generate_options",
    thinking = case.thinking or 0, format = case.format, variables = case.variables })
  local status = lib.pyr_host_render(host, case.messages, case.tools, how, text, length)
  if status ~= lib.PYR_OK then return ffi.string(lib.pyr_status_name(status)) end
  return ffi.string(text[0], length[0])
end

for _, case in ipairs(cases) do io.write(render(case), "\0") end

local pieces = {}
local on_piece = ffi.cast("int (*)(void *, const char *, size_t)", function(_, piece, size)
  pieces[#pieces + 1] = ffi.string(piece, size)
  return 0
end)
local how = ffi.new("pyr_generate_options", { max_tokens = 12, on_piece = on_piece })
check(lib.pyr_host_generate_chat(host, cases[1].messages, nil, how))
io.write(table.concat(pieces), "\0")

-- The same prompt, half of it as rows.
pieces = {}
local whole = render { messages = cases[1].messages }
local half = assert(whole:find("\n", 1, true))
local rest, count = whole:sub(half + 1), ffi.new "int64_t[1]"
assert(lib.pyr_host_embed(host, rest, #rest, nil, 0, count) == lib.PYR_ARGUMENT and count[0] > 0)
local rows = ffi.new("float[?]", tonumber(count[0] * lib.pyr_host_width(host)))
check(lib.pyr_host_embed(host, rest, #rest, rows, count[0], count))
local parts = ffi.new("pyr_part[2]")
parts[0].text, parts[0].length = whole, half
parts[1].rows, parts[1].count = rows, count[0]
check(lib.pyr_host_generate_parts(host, parts, 2, how))
io.write(table.concat(pieces), "\0")
lib.pyr_host_close(host)
on_piece:free()
