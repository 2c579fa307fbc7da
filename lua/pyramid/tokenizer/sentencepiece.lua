-- SentencePiece's own files, tokenizer.model: a ModelProto in protobuf's wire format, read without
-- a library. What counts is what the library makes of them; kinds that Pyramid does not have are
-- refused by the field's name. Source: sentencepiece_model.proto of
-- https://github.com/google/sentencepiece.
--
--     1 piece    { 1 text, 2 score, 3 type }            one for each id, in order
--     2 trainer  { 3 model_type, 24 treat_whitespace_as_suffix, 35 byte_fallback, 40 … 42 ids of
--                  unk, bos and eos }
--     3 normalizer { 1 name, 2 precompiled_charsmap, 3 add_dummy_prefix,
--                  4 remove_extra_whitespaces, 5 escape_whitespaces }
--
-- A message is a row of fields: a number and how it is written, then what it holds. Of a message
-- that comes in parts the last value of a field counts, and fields that nobody here knows are
-- passed over, both as protobuf demands.

local core = require "pyramid.core"
local fault = require "pyramid.loaders.fault"
local json = require "pyramid.loaders.json"
local steps = require "pyramid.tokenizer.steps"

local sentencepiece = {}

-- Bytes of a file, its pieces, and spaces that decoding takes from the beginning where extra ones
-- go.
local FILE_MAX, PIECES_MAX, TRIM_MAX = 1 << 27, 1 << 22, 1 << 20
local NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

-- ---- protobuf -----------------------------------------------------------------------------------

local VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

--- The number at `at`, 7 bits a byte, and where it ends; a fault where there is none before `stop`.
local function varint(s, at, stop, what)
  local value, shift = 0, 0
  while shift < 70 do
    local b = at < stop and s:byte(at)
    if not b then break end
    value, at = value | (b & 127) << shift, at + 1
    if b < 128 then return value, at end
    shift = shift + 7
  end
  return fault.raise("format", "%s: a number that does not end, at byte %d", what, at - 1)
end

--- Calls fn(number, kind, value, stop) for each field of s from `at` to before `stop`. value: the
--- number of a VARINT; else the place where the bytes begin, which end before `stop`.
local function each_field(s, at, stop, what, fn)
  while at < stop do
    local key, length
    key, at = varint(s, at, stop, what)
    local kind = key & 7
    if kind == VARINT then
      local value
      value, at = varint(s, at, stop, what)
      fn(key >> 3, kind, value)
    else
      if kind == BYTES then length, at = varint(s, at, stop, what)
      elseif kind == FIXED64 then length = 8
      elseif kind == FIXED32 then length = 4
      else fault.raise("format", "%s: wire type %d, at byte %d", what, kind, at - 1) end
      if length < 0 or length > stop - at then
        fault.raise("format", "%s: a field of %d bytes ends outside, at byte %d", what, length,
          at - 1)
      end
      fn(key >> 3, kind, at, at + length)
      at = at + length
    end
  end
end

--- Fields of a message by name; known: number to { name, kind }. kind: "bool", "int", "bytes".
local function read_message(s, at, stop, what, known, into)
  each_field(s, at, stop, what, function(number, kind, value, finish)
    local field = known[number]
    if not field then return end
    local name, type = field[1], field[2]
    if (kind == BYTES) ~= (type == "bytes") or kind ~= BYTES and kind ~= VARINT then
      fault.raise("format", "%s: %s is no %s", what, name, type)
    end
    if type == "bytes" then into[name] = s:sub(value, finish - 1)
    elseif type == "bool" then into[name] = value ~= 0
    else into[name] = value end
  end)
end

local trainer_fields = {
  [3] = { "model_type", "int" }, [24] = { "treat_whitespace_as_suffix", "bool" },
  [35] = { "byte_fallback", "bool" }, [40] = { "unk_id", "int" }, [41] = { "bos_id", "int" },
  [42] = { "eos_id", "int" },
}
local normalizer_fields = {
  [1] = { "name", "bytes" }, [2] = { "precompiled_charsmap", "bytes" },
  [3] = { "add_dummy_prefix", "bool" }, [4] = { "remove_extra_whitespaces", "bool" },
  [5] = { "escape_whitespaces", "bool" },
}

local function read_piece(s, at, stop, what, model)
  local id = #model.texts
  if id >= PIECES_MAX then fault.raise("format", "%s: more than %d pieces", what, PIECES_MAX) end
  local text, score, type = "", 0.0, NORMAL
  each_field(s, at, stop, what, function(number, kind, value, finish)
    if number == 1 and kind == BYTES then text = s:sub(value, finish - 1)
    elseif number == 2 and kind == FIXED32 then score = ("<f"):unpack(s, value)
    elseif number == 3 and kind == VARINT then type = value
    elseif number <= 3 then
      fault.raise("format", "%s: piece %d: field %d is of wire type %d", what, id, number, kind)
    end
  end)
  if type < NORMAL or type > BYTE then
    fault.raise("format", "%s: piece %d: type %d", what, id, type)
  end
  if type == UNUSED then
    fault.raise("unsupported", "%s: piece %d, '%s', is unused", what, id, fault.quote(text))
  end
  if text == "" then fault.raise("format", "%s: piece %d is empty", what, id) end
  model.texts[id + 1], model.scores[id + 1], model.types[id + 1] = text, score, type
end

local function read_model(s, what)
  local model = { texts = {}, scores = {}, types = {}, trainer = {}, normalizer = {},
    denormalizer = {} }
  each_field(s, 1, #s + 1, what, function(number, kind, value, finish)
    if number > 5 or number == 4 then return end
    if kind ~= BYTES then
      fault.raise("format", "%s: field %d is of wire type %d", what, number, kind)
    end
    if number == 1 then read_piece(s, value, finish, what, model)
    elseif number == 2 then
      read_message(s, value, finish, what .. ": trainer_spec", trainer_fields, model.trainer)
    else
      local part = number == 3 and "normalizer" or "denormalizer"
      read_message(s, value, finish, ("%s: %s_spec"):format(what, part), normalizer_fields,
        model[part])
    end
  end)
  if #model.texts == 0 then fault.raise("format", "%s: no pieces", what) end
  return model
end

-- ---- what it means ------------------------------------------------------------------------------

local model_types = { "unigram", "bpe", "word", "char" }

local function refuse(what, model)
  local function no(field, value, known)
    fault.raise("unsupported", "%s: %s is %s (known: %s)", what, field, fault.quote(value), known)
  end
  local t, n = model.trainer, model.normalizer
  local kind = model_types[t.model_type or 1] or t.model_type
  if kind ~= "bpe" then no("trainer_spec: model_type", kind, "bpe") end
  if t.treat_whitespace_as_suffix then
    no("trainer_spec: treat_whitespace_as_suffix", true, "false")
  end
  if (n.precompiled_charsmap or "") ~= "" then
    no("normalizer_spec: name", n.name ~= "" and n.name or "a table of characters", "identity")
  end
  if n.escape_whitespaces == false then
    no("normalizer_spec: escape_whitespaces", false, "true")
  end
  if (model.denormalizer.precompiled_charsmap or "") ~= "" then
    no("denormalizer_spec: name", model.denormalizer.name or "", "identity")
  end
end

--- Spaces at the ends go and others become single ones; then the first gets one before it, and all
--- are spelled U+2581. `each`: also the text behind each token that is cut out gets one.
local function add_steps(recipe, n, each)
  local extra, dummy = n.remove_extra_whitespaces ~= false, n.add_dummy_prefix ~= false
  if extra then
    steps.add(recipe, "normalize", "substitute", [[\A +| +\z]], "")
    steps.add(recipe, "normalize", "substitute", " {2,}", " ")
  end
  if dummy then steps.add(recipe, "normalize", "prepend", nil, " ", 0, each and 0 or 1) end
  steps.add(recipe, "normalize", "replace", " ", "▁")
  steps.add(recipe, "decode", "replace", "▁", " ")
  steps.add(recipe, "decode", "fallback")
  if extra or dummy then steps.add(recipe, "decode", "trim", " ", nil, extra and TRIM_MAX or 1) end
end

--- Gives pieces to a core tokenizer. What is cut out of texts beforehand, and the bytes, merge with
--- nothing.
local function fill(recipe, t)
  local added = {}
  for _, token in ipairs(recipe.added) do added[token.id] = true end
  for i, text in ipairs(recipe.texts) do
    local normal = recipe.types[i] == NORMAL
    if normal or not added[i - 1] then
      local ok, message, code = t:piece(i - 1, text, recipe.scores[i], not normal)
      if not ok then fault.raise(code, "%s: %s", recipe.file, message) end
    end
  end
end

--- An id of the trainer's, if there is such a piece; it says -1 for none.
local function id_of(value, default, count)
  value = value or default
  return value >= 0 and value < count and value or nil
end

--- Reads a tokenizer.model; raises faults. The recipe has what tokenizer.hf adds tokens to: vocab,
--- ids and added.
---@param path string
---@param config table  of tokenizer_config.json, or an empty one
---@param where string  that file
---@return pyramid.Recipe
function sentencepiece.read(path, config, where)
  local model = read_model(json.read(path, FILE_MAX), path)
  refuse(path, model)
  local count, trainer, bits = #model.texts, model.trainer, core.token
  local recipe = { file = path, steps = {}, before = {}, after = {}, eos = {}, vocab = {}, ids = {},
    added = {}, texts = model.texts, scores = model.scores, types = model.types, fill = fill }
  local user = false
  for i, text in ipairs(model.texts) do
    local kind = model.types[i]
    if recipe.vocab[text] then
      fault.raise("format", "%s: pieces %d and %d are both '%s'", path, recipe.vocab[text], i - 1,
        fault.quote(text))
    end
    recipe.vocab[text] = i - 1
    if kind == CONTROL or kind == USER or kind == UNKNOWN then
      recipe.added[#recipe.added + 1] = { id = i - 1, text = text,
        flags = kind == USER and bits.raw or bits.raw | bits.special }
      recipe.ids[text] = i - 1
      user = user or kind == USER
    end
  end
  local n = model.normalizer
  if user and n.remove_extra_whitespaces ~= false then
    fault.raise("unsupported", "%s: normalizer_spec: remove_extra_whitespaces beside user-defined "
      .. "pieces", path)
  end
  recipe.options = { vocab = count, by_score = true, fuse_unknown = true,
    byte_fallback = trainer.byte_fallback or false, unknown = id_of(trainer.unk_id, 0, count) }
  add_steps(recipe, n, json.field(config, "legacy", "boolean", where, false))
  recipe.bos = id_of(trainer.bos_id, 1, count)
  recipe.eos_id = id_of(trainer.eos_id, 2, count)
  if json.field(config, "add_bos_token", "boolean", where, true) then
    recipe.before[1] = recipe.bos
  end
  if json.field(config, "add_eos_token", "boolean", where, false) then
    recipe.after[1] = recipe.eos_id
  end
  return recipe
end

return sentencepiece
