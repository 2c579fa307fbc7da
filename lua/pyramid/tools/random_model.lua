--- Llamas of stated shapes with random weights, for measuring: a Hugging Face directory, or a GGUF
--- file that other programs read too (it has a SentencePiece-style vocabulary of made-up words).
---
--- A weight is a normal number of deviation 1/sqrt(columns), so that activations keep their size at
--- any width; norms are 1. It depends on the seed and its place only: both formats hold the same
--- model, but that GGUF files of Llamas have the rows of q and k in another order.
local core = require "pyramid.core"
local dtypes = require "pyramid.loaders.dtypes"
local probe = require "pyramid.probe"
local families = require "pyramid.families"
local files = require "pyramid.files"
local gguf_writer = require "pyramid.tools.gguf_writer"
local json = require "pyramid.json"

local random_model = {}

---@class pyramid.Shape
---@field layers integer
---@field width integer
---@field heads integer
---@field kv_heads integer
---@field ff integer
---@field vocab integer
---@field context integer
---@field rope_base? number    default 10000

--- Shapes by name: 7b and 13b are LLaMA 2's, 8b is Llama 3's.
---@type table<string, pyramid.Shape>
random_model.shapes = {
  tiny    = { layers = 3, width = 128, heads = 4, kv_heads = 2, ff = 352, vocab = 512,
    context = 16384 },
  ["134m"] = { layers = 12, width = 768, heads = 12, kv_heads = 12, ff = 2048, vocab = 32000,
    context = 16384 },
  ["1.1b"] = { layers = 22, width = 2048, heads = 32, kv_heads = 4, ff = 5632, vocab = 32000,
    context = 16384 },
  ["8b"]  = { layers = 32, width = 4096, heads = 32, kv_heads = 8, ff = 14336, vocab = 128256,
    context = 16384, rope_base = 5e5 },
  ["7b"]  = { layers = 32, width = 4096, heads = 32, kv_heads = 32, ff = 11008, vocab = 32000,
    context = 16384 },
  ["13b"] = { layers = 40, width = 5120, heads = 40, kv_heads = 40, ff = 13824, vocab = 32000,
    context = 16384 },
}

local ROPE_BASE, EPS = 10000.0, 1e-5
-- <unk> is 0; byte pieces are 3 .. 258; then a space, then words
local BOS, EOS, BYTES, WORDS = 1, 2, 3, 259
local BLOCK_VALUES, ALIGNMENT = 1 << 22, 32

local file_types = gguf_writer.file_types
local known = {}                             -- the table of dtypes by name
for _, info in ipairs(dtypes.all) do known[info.name] = info end

--- What the weights can be, sorted.
---@type string[]
random_model.dtypes = {}
for name in pairs(file_types) do table.insert(random_model.dtypes, name) end
table.sort(random_model.dtypes)

-- ---- what the model holds -----------------------------------------------------------------------

---@class pyramid.RandomTensor
---@field role string
---@field layer? integer     from 0
---@field shape integer[]    row-major; one dimension: a norm, all ones
---@field stream integer     its number among all tensors: which random numbers it gets

-- All tensors, in the order of files.
local function tensors_of(shape)
  local width, head_dim = shape.width, shape.width // shape.heads
  local shapes = {
    embed = { shape.vocab, width }, output = { shape.vocab, width }, out_norm = { width },
      attn_norm = { width },
    ffn_norm = { width }, q = { width, width }, k = { shape.kv_heads * head_dim, width },
      v = { shape.kv_heads * head_dim, width },
    o = { width, width }, gate = { shape.ff, width }, up = { shape.ff, width },
      down = { width, shape.ff },
  }
  local list = {}
  local function add(role, layer)
    list[#list + 1] = { role = role, layer = layer, shape = shapes[role], stream = #list }
  end
  local function add_plain(roles, layer)
    for _, role in ipairs(roles) do
      if families.has(role, {}, {}) then add(role, layer) end
    end
  end
  add_plain(families.global_roles)
  for layer = 0, shape.layers - 1 do
    add_plain(families.layer_roles, layer)
  end
  return list
end

local function bytes_of(dtype, shape)
  return shape[1] * (shape[2] or 1) // known[dtype].block * known[dtype].bytes
end

-- Calls write(bytes) with a tensor's rows in order, in blocks that fit memory. `heads`: rows are
-- dealt as GGUF wants q and k of Llamas, the first half of a head's rows between those of the
-- second. The runtime's threads make the rows.
local function write_tensor(write, runtime, tensor, dtype, seed, heads)
  local rows, cols = tensor.shape[1], tensor.shape[2]
  if not cols then
    local one = dtype == "bf16" and "\x80\x3f" or dtype == "f16" and "\x00\x3c" or ("<f"):pack(1)
    return write(one:rep(rows))
  end
  local deviation = cols ^ -0.5
  if heads then
    local dim = rows // heads
    for row = 0, rows - 1 do
      local head, i, half = row // dim, row % dim // 2, row % 2
      write(probe.random_rows(runtime, dtype, seed, tensor.stream,
        head * dim + half * (dim // 2) + i, 1, cols, deviation))
    end
    return
  end
  local step = math.max(1, BLOCK_VALUES // cols)
  for row = 0, rows - 1, step do
    write(probe.random_rows(runtime, dtype, seed, tensor.stream, row, math.min(step, rows - row),
      cols, deviation))
  end
end

-- ---- files --------------------------------------------------------------------------------------

-- Calls fill(write): a file of that name is whole, the old one or the new one.
local function write_file(path, fill)
  local ok, message, code = files.write(path, fill)
  if not ok then return nil, message, code end
  return path
end

local function safetensors_head(list, names, dtype)
  local entries, at = {}, 0
  for i, t in ipairs(list) do
    local bytes = bytes_of(dtype, t.shape)
    entries[i] = ('"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(
      names[t.role]:format(t.layer), known[dtype].safetensors, table.concat(t.shape, ","), at,
        at + bytes)
    at = at + bytes
  end
  local head = "{" .. table.concat(entries, ",") .. "}"
  head = head .. (" "):rep(-#head % 8)
  return ("<I8"):pack(#head) .. head
end

local function config_of(shape, dtype)
  return {
    architectures = { "LlamaForCausalLM" }, model_type = "llama", hidden_act = "silu",
      vocab_size = shape.vocab,
    hidden_size = shape.width, intermediate_size = shape.ff, num_hidden_layers = shape.layers,
    num_attention_heads = shape.heads, num_key_value_heads = shape.kv_heads,
      max_position_embeddings = shape.context,
    rms_norm_eps = EPS, rope_theta = shape.rope_base or ROPE_BASE, tie_word_embeddings = false,
      attention_bias = false,
    bos_token_id = BOS, eos_token_id = EOS, torch_dtype = ({ f32 = "float32", f16 = "float16",
      bf16 = "bfloat16" })[dtype],
  }
end

local function write_folder(path, runtime, shape, dtype, seed)
  os.execute(("mkdir -p '%s'"):format(path:gsub("'", "'\\''")))
  local list, names = tensors_of(shape), families.find "llama".names.hf
  local config = json.encode(config_of(shape, dtype)) .. "\n"
  local ok, message, code = write_file(path .. "/config.json", function(write) write(config) end)
  if not ok then return nil, message, code end
  ok, message, code = write_file(path .. "/model.safetensors", function(write)
    write(safetensors_head(list, names, dtype))
    for _, tensor in ipairs(list) do write_tensor(write, runtime, tensor, dtype, seed) end
  end)
  if not ok then return nil, message, code end
  return path
end

-- ---- GGUF ---------------------------------------------------------------------------------------

-- Words of three letters or more that no two tokens share, as a SentencePiece vocabulary would hold
-- them.
local function word_of(i)
  local letters = {}
  for k = 1, 3 do letters[k], i = string.char(97 + i % 26), i // 26 end
  while i > 0 do letters[#letters + 1], i = string.char(97 + i % 26), i // 26 end
  return "▁" .. table.concat(letters)
end

local function vocabulary(count)
  local tokens, scores, types = { "<unk>", "<s>", "</s>" }, { 0.0, 0.0, 0.0 }, { 2, 3, 3 }
  for byte = 0, 255 do tokens[#tokens + 1] = ("<0x%02X>"):format(byte) end
  tokens[WORDS + 1] = "▁"
  for id = WORDS + 1, count - 1 do tokens[id + 1] = word_of(id - WORDS - 1) end
  for id = BYTES, count - 1 do
    scores[id + 1], types[id + 1] = id < WORDS and 0.0 or WORDS - id + 0.0, id < WORDS and 6 or 1
  end
  return tokens, scores, types
end

local function metadata_of(shape, dtype, name)
  local tokens, scores, types = vocabulary(shape.vocab)
  local entries = {
    { "general.architecture", "string", "llama" }, { "general.name", "string", name },
    { "general.alignment", "u32", ALIGNMENT },
    { "general.file_type", "u32", file_types[dtype] },
    { "general.quantization_version", "u32", 2 },
    { "llama.vocab_size", "u32", shape.vocab }, { "llama.context_length", "u32", shape.context },
    { "llama.embedding_length", "u32", shape.width },
    { "llama.block_count", "u32", shape.layers },
    { "llama.feed_forward_length", "u32", shape.ff },
    { "llama.attention.head_count", "u32", shape.heads },
    { "llama.attention.head_count_kv", "u32", shape.kv_heads },
    { "llama.attention.layer_norm_rms_epsilon", "f32", EPS },
    { "llama.rope.dimension_count", "u32", shape.width // shape.heads },
    { "llama.rope.freq_base", "f32", shape.rope_base or ROPE_BASE },
    { "tokenizer.ggml.model", "string", "llama" }, { "tokenizer.ggml.pre", "string", "default" },
    { "tokenizer.ggml.tokens", "array:string", tokens },
    { "tokenizer.ggml.scores", "array:f32", scores },
    { "tokenizer.ggml.token_type", "array:i32", types },
    { "tokenizer.ggml.bos_token_id", "u32", BOS }, { "tokenizer.ggml.eos_token_id", "u32", EOS },
    { "tokenizer.ggml.unknown_token_id", "u32", 0 },
    { "tokenizer.ggml.add_bos_token", "bool", true },
    { "tokenizer.ggml.add_eos_token", "bool", false },
  }
  for i, e in ipairs(entries) do
    entries[i] = gguf_writer.pack { key = e[1], kind = e[2], value = e[3] }
  end
  return entries
end

local function write_gguf(path, runtime, shape, dtype, seed, name)
  local list, names, out = tensors_of(shape), families.find "llama".names.gguf, {}
  for i, t in ipairs(list) do
    local as = #t.shape == 1 and "f32" or dtype                      -- ggml wants norms as f32
    out[i] = { name = names[t.role]:format(t.layer), shape = t.shape, type = known[as].gguf,
      bytes = bytes_of(as, t.shape) }
  end
  local head = gguf_writer.head(metadata_of(shape, dtype, name), out, ALIGNMENT)
  return write_file(path, function(write)
    write(head)
    for i, t in ipairs(list) do
      write_tensor(write, runtime, t, #t.shape == 1 and "f32" or dtype, seed,
        (t.role == "q" and shape.heads) or (t.role == "k" and shape.kv_heads) or nil)
      write(("\0"):rep(out[i].padding))
    end
  end)
end

-- ---- the door -----------------------------------------------------------------------------------

---How many weights a shape has.
---@param shape pyramid.Shape
---@return integer
function random_model.parameters(shape)
  local count = 0
  for _, t in ipairs(tensors_of(shape)) do count = count + t.shape[1] * (t.shape[2] or 1) end
  return count
end

---Writes a model. The format follows from the path: a GGUF file if it ends in .gguf, else a folder
---with config.json and model.safetensors. Raises if the format cannot hold the dtype, or the dtype
---the shape.
---@param path string
---@param given { shape: string|pyramid.Shape, dtype?: string, seed?: integer }
---@return string? path
---@return string? message
---@return string? code
function random_model.write(path, given)
  local _ <close> = core.plain_locale()
  local shape = type(given.shape) == "string" and random_model.shapes[given.shape:lower()]
    or given.shape
  local dtype, seed, folder = given.dtype or "bf16", given.seed or 1, not path:find "%.gguf$"
  if type(shape) ~= "table" then
    error(("random_model: no shape '%s'"):format(tostring(shape)), 2)
  end
  if not file_types[dtype] then
    error(("random_model: no dtype '%s' (known: %s)"):format(tostring(dtype),
      table.concat(random_model.dtypes, ", ")), 2)
  end
  if folder and not known[dtype].safetensors then
    error("random_model: safetensors hold f32, f16 or bf16; quantised models are GGUF files", 2)
  end
  if shape.width % known[dtype].block ~= 0 or shape.ff % known[dtype].block ~= 0 then
    error(("random_model: rows of %d and %d are no whole blocks of %s"):format(shape.width,
      shape.ff, dtype), 2)
  end
  if shape.vocab <= WORDS then error("random_model: a vocabulary has at least 260 tokens", 2) end
  local runtime <close>, message, code = core.runtime { device = "cpu" }
  if not runtime then return nil, message, code end
  if folder then return write_folder(path, runtime, shape, dtype, seed) end
  return write_gguf(path, runtime, shape, dtype, seed,
    ("random %.0fM"):format(random_model.parameters(shape) / 1e6))
end

return random_model
