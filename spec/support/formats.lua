-- Writers of safetensors and GGUF files for specs, able to write wrong ones: every count and offset
-- can be overridden. Also a converter of the family fixtures to GGUF, as converters do it (names,
-- permuted rows of q and k, RoPE keys).
local cjson = require "cjson"
local helper = require "spec.helper"

local formats = {}

-- ---- GGUF ---------------------------------------------------------------------------------------

local kinds = {
  u8 = { 0, "<B" }, i8 = { 1, "<b" }, u16 = { 2, "<I2" }, i16 = { 3, "<i2" }, u32 = { 4, "<I4" },
    i32 = { 5, "<i4" },
  f32 = { 6, "<f" }, bool = { 7, "<B" }, string = { 8, "<s8" }, u64 = { 10, "<i8" },
    i64 = { 11, "<i8" }, f64 = { 12, "<d" },
}
formats.types = { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q5_0 = 6, q5_1 = 7, q8_0 = 8, q2_k = 10,
  q3_k = 11, q4_k = 12, q5_k = 13, q6_k = 14, iq4_nl = 20, bf16 = 30 }

--- One metadata entry; kind "array:u32" makes a sequence of u32.
function formats.kv(key, kind, value)
  local element = kind:match "^array:(%w+)$"
  local out = { ("<s8I4"):pack(key, element and 9 or kinds[kind][1]) }
  if element then
    out[2] = ("<I4i8"):pack(kinds[element][1], #value)
    for _, v in ipairs(value) do out[#out + 1] = kinds[element][2]:pack(v) end
  else
    out[2] = kinds[kind][2]:pack(value)
  end
  return table.concat(out)
end

--- A GGUF file. t.metadata: sequence of entries (bytes); t.tensors: { name=, shape= row-major,
--- type=, data=, offset=? }. Overrides: magic, version, tensor_count, key_count, alignment (of the
--- data; default 32), tail (bytes after the data).
function formats.gguf(t)
  local tensors, metadata, alignment = t.tensors or {}, t.metadata or {}, t.alignment or 32
  local out, data, at = {}, {}, 0
  out[1] = (t.magic or "GGUF") .. ("<I4i8i8"):pack(t.version or 3, t.tensor_count or #tensors,
    t.key_count or #metadata)
  out[2] = table.concat(metadata)
  for _, tensor in ipairs(tensors) do
    local dims = {}
    for i = #tensor.shape, 1, -1 do dims[#dims + 1] = ("<i8"):pack(tensor.shape[i]) end
    out[#out + 1] = ("<s8I4"):pack(tensor.name, #dims) .. table.concat(dims)
      .. ("<I4i8"):pack(tensor.type, tensor.offset or at)
    data[#data + 1] = tensor.data
    local pad = -#tensor.data % alignment
    data[#data + 1] = ("\0"):rep(pad)
    at = at + #tensor.data + pad
  end
  local head = table.concat(out)
  return head .. ("\0"):rep(-#head % alignment) .. table.concat(data) .. (t.tail or "")
end

-- ---- safetensors --------------------------------------------------------------------------------

--- A safetensors file of { name=, dtype=, shape=, data=, offsets=? }. `header` replaces the JSON,
--- `length` its length.
function formats.safetensors(tensors, header, length)
  local entries, data, at = {}, {}, 0
  for i, t in ipairs(tensors) do
    local offsets = t.offsets or { at, at + #t.data }
    entries[i] = ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%s]}'):format(cjson.encode(
      t.name), t.dtype, table.concat(t.shape, ","), table.concat(offsets, ","))
    data[i] = t.data
    at = at + #t.data
  end
  header = header or "{" .. table.concat(entries, ",") .. "}"
  if not length then header = header .. (" "):rep(-#header % 8) end
  return ("<i8"):pack(length or #header) .. header .. table.concat(data)
end

-- ---- families as GGUF ---------------------------------------------------------------------------

local renames = {
  { "^model%.embed_tokens%.", "token_embd." }, { "^model%.norm%.", "output_norm." },
    { "^lm_head%.", "output." },
  { "^model%.layers%.", "blk." }, { "input_layernorm", "attn_norm" },
    { "post_attention_layernorm", "ffn_norm" },
  { "self_attn%.([qkv])_proj", "attn_%1" }, { "self_attn%.o_proj", "attn_output" },
    { "self_attn%.([qk])_norm", "attn_%1_norm" },
  { "mlp%.(%l+)_proj", "ffn_%1" },
}

--- Rows of each head: the first half of them and the second are dealt like cards.
function formats.permute(data, rows, heads)
  local size, out = #data // rows, {}
  local dim = rows // heads
  for head = 0, heads - 1 do
    for i = 0, dim // 2 - 1 do
      for half = 0, 1 do
        local from = head * dim + half * (dim // 2) + i
        out[#out + 1] = data:sub(from * size + 1, (from + 1) * size)
      end
    end
  end
  return table.concat(out)
end

--- Metadata of a family fixture's config.json; `more` replaces and adds entries (bytes by key,
--- false takes one away).
function formats.metadata_of(config, arch, more)
  local p = arch .. "."
  local scaling = config.rope_scaling
  if scaling == cjson.null then scaling = nil end
  local head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
  local entries, order = {}, {}
  local function set(key, kind, value)
    if value ~= nil and value ~= cjson.null then
      entries[key] = formats.kv(key, kind, value)
      order[#order + 1] = key
    end
  end
  set("general.architecture", "string", arch)
  set(p .. "block_count", "u32", config.num_hidden_layers)
  set(p .. "context_length", "u32", config.max_position_embeddings)
  set(p .. "embedding_length", "u32", config.hidden_size)
  set(p .. "feed_forward_length", "u32", config.intermediate_size)
  set(p .. "attention.head_count", "u32", config.num_attention_heads)
  set(p .. "attention.head_count_kv", "u32", config.num_key_value_heads)
  set(p .. "attention.key_length", "u32", head_dim)
  set(p .. "attention.layer_norm_rms_epsilon", "f32", config.rms_norm_eps)
  set(p .. "rope.dimension_count", "u32", head_dim)
  set(p .. "rope.freq_base", "f32", config.rope_theta)
  if config.model_type == "mistral" then
    set(p .. "attention.sliding_window", "u32", config.sliding_window)
  end
  if scaling then
    set(p .. "rope.scaling.type", "string", scaling.rope_type or scaling.type)
    set(p .. "rope.scaling.factor", "f32", scaling.factor)
    set(p .. "rope.scaling.original_context_length", "u32",
      scaling.original_max_position_embeddings)
  end
  local out = {}
  for _, key in ipairs(order) do
    if not (more and more[key] ~= nil) then out[#out + 1] = entries[key] end
  end
  for _, bytes in pairs(more or {}) do
    if bytes then out[#out + 1] = bytes end
  end
  return out
end

--- A family fixture (bf16) as the fields of formats.gguf; dtype "bf16" or "f32", both exact. Norms
--- and biases are f32.
function formats.gguf_of(family, dtype, more)
  local families = require "pyramid.families"
  local safetensors = require "pyramid.loaders.safetensors"
  local dir = helper.fixture("families/" .. family)
  local config = helper.json(dir .. "/config.json")
  local arch = config.model_type == "mistral" and "llama" or config.model_type
  local permuted = families.find(arch).gguf_rope == "interleaved"
  local file = assert(safetensors.read(dir .. "/model.safetensors"))
  local bytes = helper.read(file.path)
  local tensors = {}
  for i, t in ipairs(file.tensors) do
    local name, data = t.name, bytes:sub(t.offset + 1, t.offset + t.bytes)
    local which = name:match "self_attn%.([qk])_proj"
    if permuted and which then
      data = formats.permute(data, t.shape[1], which == "q" and config.num_attention_heads
        or config.num_key_value_heads)
    end
    for _, rename in ipairs(renames) do name = name:gsub(rename[1], rename[2]) end
    local wide = #t.shape == 1 or dtype == "f32"
    if wide then data = data:gsub("..", "\0\0%0") end
    tensors[i] = { name = name, shape = t.shape, type = formats.types[wide and "f32" or "bf16"],
      data = data }
  end
  return { metadata = formats.metadata_of(config, arch, more), tensors = tensors }
end

return formats
