--- Headers of GGUF files, version 3: metadata and the list of tensors. The data that follows is
--- written by whoever has it.
---
---   local head = gguf_writer.head(entries, tensors, 32) -- sets each tensor's offset and padding
---   write(head)
---   for _, t in ipairs(tensors) do write(data_of(t), ("\0"):rep(t.padding)) end
---
--- Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
local gguf_writer = {}

---@class pyramid.GgufEntry      a key with its value
---@field key string
---@field kind string            "u32", "i32", "f32", "bool", "string", or "array:" and one of these
---@field value any

---@class pyramid.GgufTensor
---@field name string
---@field shape integer[]        row-major
---@field type integer           GGUF's number of its dtype
---@field bytes integer
---@field offset? integer        from the data's beginning; head says
---@field padding? integer       bytes of zeros behind it; head says

local kinds = { u32 = { 4, "<I4" }, i32 = { 5, "<i4" }, f32 = { 6, "<f" }, bool = { 7, "B" },
  string = { 8, "<s8" } }
local ARRAY = 9

---The bytes of an entry.
---@param entry pyramid.GgufEntry
---@return string
function gguf_writer.pack(entry)
  local element = entry.kind:match "^array:(%w+)$"
  local kind, value = kinds[element or entry.kind], entry.value
  local function bytes(v)
    if kind == kinds.bool then v = v and 1 or 0 end
    return kind[2]:pack(v)
  end
  if not element then return ("<s8I4"):pack(entry.key, kind[1]) .. bytes(value) end
  local parts = { ("<s8I4I4I8"):pack(entry.key, ARRAY, kind[1], #value) }
  for i, v in ipairs(value) do parts[i + 1] = bytes(v) end
  return table.concat(parts)
end

---All bytes before the data, padding included. Sets the tensors' places.
---@param entries string[]             packed
---@param tensors pyramid.GgufTensor[]
---@param alignment integer            what the entries say of general.alignment; 32 if they do not
---@return string
function gguf_writer.head(entries, tensors, alignment)
  local out, at = { "GGUF" .. ("<I4I8I8"):pack(3, #tensors, #entries) }, 0
  table.move(entries, 1, #entries, 2, out)
  for _, t in ipairs(tensors) do
    local dims = {}
    for i = #t.shape, 1, -1 do dims[#dims + 1] = ("<I8"):pack(t.shape[i]) end
    t.offset, t.padding = at, -t.bytes % alignment
    out[#out + 1] = ("<s8I4"):pack(t.name, #dims) .. table.concat(dims)
      .. ("<I4I8"):pack(t.type, t.offset)
    at = at + t.bytes + t.padding
  end
  local head = table.concat(out)
  return head .. ("\0"):rep(-#head % alignment)
end

--- GGUF's numbers of whole files (general.file_type), by the dtype of most matrices.
---@type table<string, integer>
gguf_writer.file_types = { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 7, q5_0 = 8, q5_1 = 9,
  bf16 = 32 }

return gguf_writer
