-- Tokenizers out of GGUF metadata: `tokenizer.ggml.model` is "gpt2" (byte-level BPE with listed
-- merges and a named pre-tokenizer) or "llama" (SentencePiece BPE: scores, byte pieces, spaces
-- spelled U+2581).
-- Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and llama.cpp for what files
-- leave unsaid.

local core = require "pyramid.core"
local fault = require "pyramid.loaders.fault"
local pre = require "pyramid.tokenizer.pre"
local steps = require "pyramid.tokenizer.steps"

local gguf = {}

local NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  -- tokenizer.ggml.token_type

-- Texts that end a turn or a text wherever they are a token, by llama.cpp's list
-- (src/llama-vocab.cpp): files name one id or two, and some mark these tokens as normal text.
local ends = {
  "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>",
  "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>",
  "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
}
local is_end = {}
for _, text in ipairs(ends) do is_end[text] = true end

-- Where all of `with` are tokens, `text` ends nothing: gpt-oss closes parts of an answer with
-- <|end|>, Gemma 4 has </s> as markup.
local exceptions = {
  { text = "<|end|>", with = { "<|return|>", "<|call|>" } },
  { text = "</s>", with = { "<|tool_response>" } },
}

---@class pyramid.TokenizerKeys
---@field metadata table<string, any>
---@field path string
local Keys = {}
Keys.__index = Keys

--- The value of tokenizer.ggml.<key>; nil or `default` if the file lacks it.
function Keys:get(key, kind, default)
  local value = self.metadata["tokenizer.ggml." .. key]
  if value == nil then return default end
  local right = type(value) == kind or math.type(value) == kind
  if not right then
    fault.raise("format", "%s: metadata tokenizer.ggml.%s is not a %s", self.path, key, kind)
  end
  return value
end

--- A list of one kind and, if given, of a certain length.
function Keys:list(key, kind, count)
  local list = self:get(key, "table")
  if not list then return nil end
  if count and #list < count then
    fault.raise("format", "%s: metadata tokenizer.ggml.%s has %d elements for %d tokens",
      self.path, key, #list, count)
  end
  for i = 1, #list do
    if type(list[i]) ~= kind and math.type(list[i]) ~= kind then
      fault.raise("format", "%s: metadata tokenizer.ggml.%s[%d] is not a %s", self.path, key,
        i - 1, kind)
    end
  end
  return list
end

--- A special token's id; nil if the file has none, or one that no token has (files say 0xFFFFFFFF
--- or the like).
function Keys:id(key, vocab, default)
  local id = self:get(key .. "_token_id", "integer", default)
  return id and id >= 0 and id < vocab and id or nil
end

-- ---- the two kinds ------------------------------------------------------------------------------

local function byte_level(keys, recipe)
  local name = keys:get("pre", "string")
  if not name then
    fault.raise("unsupported", "%s: metadata tokenizer.ggml.pre (the pre-tokenizer) is missing",
      keys.path)
  end
  local how = pre.find(name)
  if not how then
    fault.raise("unsupported", "%s: tokenizer.ggml.pre %s (known: %s)", keys.path,
      fault.quote(name), table.concat(pre.list(), ", "))
  end
  recipe.merges = keys:list("merges", "string")
    or fault.raise("format", "%s: metadata tokenizer.ggml.merges is missing", keys.path)
  recipe.options.byte_level, recipe.options.whole_words = true, how.whole_words
  if how.composed then steps.add(recipe, "normalize", "nfc") end
  if keys:get("add_space_prefix", "boolean", false) then
    steps.add(recipe, "split", "prepend", nil, " ", 1, 0)
  end
  for _, expression in ipairs(how.cuts) do
    steps.cut(recipe, expression, "Isolated", false, "tokenizer.ggml.pre " .. name)
  end
  steps.add(recipe, "decode", "bytes")
  return how.bos
end

local function sentencepiece(keys, recipe, count)
  recipe.scores = keys:list("scores", "number", count) or
    fault.raise("format", "%s: metadata tokenizer.ggml.scores is missing", keys.path)
  local options, space = recipe.options, keys:get("add_space_prefix", "boolean", true)
  options.by_score, options.byte_fallback, options.fuse_unknown = true, true, true
  options.unknown = keys:id("unknown", count, 0)
  if space then steps.add(recipe, "normalize", "prepend", nil, " ") end
  steps.add(recipe, "normalize", "replace", " ", "▁")
  steps.add(recipe, "decode", "replace", "▁", " ")
  steps.add(recipe, "decode", "fallback")
  if space then steps.add(recipe, "decode", "trim", " ", nil, 1) end
  return true
end

local kinds = { gpt2 = byte_level, llama = sentencepiece }

-- ---- tokens -------------------------------------------------------------------------------------

--- Phi-3's control tokens take the white space behind them along; its GGUF files do not say so.
local function strips_right(keys, text)
  local name = tostring(keys.metadata["general.name"] or ""):lower()
  if not (name:find("phi-3", 1, true) or name:find("phi3", 1, true)) then return false end
  return text ~= "<unk>" and text ~= "<s>" and text ~= "<|endoftext|>"
end

local function find_added(keys, recipe)
  local by_text, bits = {}, core.token
  recipe.added = {}
  for i, text in ipairs(recipe.tokens) do
    local kind = recipe.types and recipe.types[i] or NORMAL
    if is_end[text] and kind ~= CONTROL then
      recipe.warnings[#recipe.warnings
        + 1] = ("%s: token %d, '%s', is not marked as a control token, and is taken for one")
        :format(keys.path, i - 1, fault.quote(text))
      recipe.overridden[text], kind = true, CONTROL
    end
    if (kind == CONTROL or kind == USER or kind == UNKNOWN) and text ~= "" then
      local flags = bits.raw
      if kind ~= USER then flags = flags | bits.special end
      if strips_right(keys, text) then flags = flags | bits.rstrip end
      -- of two ids of one text, the later one is found
      by_text[text] = { id = i - 1, text = text, flags = flags }
    end
  end
  for _, token in pairs(by_text) do recipe.added[#recipe.added + 1] = token end
  table.sort(recipe.added, function(a, b) return a.id < b.id end)
  return by_text
end

local function find_eos(keys, recipe, count, by_text)
  local seen = {}
  local function add(id)
    if id and not seen[id] then
      seen[id] = true
      recipe.eos[#recipe.eos + 1] = id
    end
  end
  for _, key in ipairs { "eos", "eot", "eom" } do add(keys:id(key, count)) end
  local none = {}
  for _, exception in ipairs(exceptions) do
    local all = true
    for _, text in ipairs(exception.with) do all = all and by_text[text] ~= nil end
    if all then none[exception.text] = true end
  end
  for _, text in ipairs(ends) do
    if not none[text] then add(by_text[text] and by_text[text].id) end
  end
end

--- Reads a GGUF header's tokenizer; raises faults.
---@param header pyramid.Gguf
---@return pyramid.Recipe
function gguf.read(header)
  local keys = setmetatable({ metadata = header.metadata, path = header.path or "GGUF" }, Keys)
  local model = keys:get("model", "string") or fault.raise("format",
    "%s: metadata tokenizer.ggml.model is missing", keys.path)
  local kind = kinds[model]
  if not kind then
    fault.raise("unsupported", "%s: tokenizer.ggml.model %s (known: gpt2, llama)", keys.path,
      fault.quote(model))
  end
  local tokens = keys:list("tokens", "string") or fault.raise("format",
    "%s: metadata tokenizer.ggml.tokens is missing", keys.path)
  local count = #tokens
  local recipe = {
    file = keys.path, options = { vocab = count }, steps = {}, before = {}, after = {}, eos = {},
      tokens = tokens,
    warnings = {}, overridden = {},
    types = keys:list("token_type", "integer", count),
  }
  local wants_bos = kind(keys, recipe, count)
  local by_text = find_added(keys, recipe)
  local eos = keys:id("eos", count)
  recipe.bos = keys:id("bos", count)
  if keys:get("add_bos_token", "boolean", wants_bos) and recipe.bos then
    recipe.before[1] = recipe.bos
  end
  if keys:get("add_eos_token", "boolean", false) and eos then recipe.after[1] = eos end
  find_eos(keys, recipe, count, by_text)
  recipe.eos_id = eos
  recipe.chat_template = header.metadata["tokenizer.chat_template"]
  if type(recipe.chat_template) ~= "string" then recipe.chat_template = nil end
  return recipe
end

--- Gives the recipe's pieces and merges to a core tokenizer; raises faults.
---@param recipe pyramid.Recipe
---@param t userdata
function gguf.fill(recipe, t)
  local piece, merge, scores, types = t.piece, t.merge, recipe.scores, recipe.types
  local added = {}
  for _, token in ipairs(recipe.added) do added[token.id] = true end
  for i, text in ipairs(recipe.tokens) do
    local kind = types and types[i] or NORMAL
    if text == "" then text, kind = ("[EMPTY_%d]"):format(i - 1), UNUSED end
    if not added[i - 1] then
      local closed = kind == BYTE or kind == CONTROL or kind == USER or kind == UNKNOWN
        or (kind == UNUSED and not scores)
      local ok, message, code = piece(t, i - 1, text, scores and scores[i], closed)
      if not ok then fault.raise(code, "%s: tokenizer.ggml.tokens: %s", recipe.file, message) end
    end
  end
  local overridden = next(recipe.overridden) and recipe.overridden
  for i, pair in ipairs(recipe.merges or {}) do
    local left, right = pair:match("^(.[^ ]*) (.+)$")
    -- a version line, as files of merges begin with; and what would make or use a token that is no
    -- piece any more
    local skipped = i == 1 and pair:find("^#version") or left and overridden
      and (overridden[left .. right] or overridden[left]
      or overridden[right])
    if not left and not skipped then
      fault.raise("format", "%s: tokenizer.ggml.merges[%d] is not a pair of pieces", recipe.file,
        i - 1)
    end
    local ok, message, code = true, nil, nil
    if not skipped then ok, message, code = merge(t, left, right) end
    if not ok then
      fault.raise(code, "%s: tokenizer.ggml.merges[%d]: %s", recipe.file, i - 1, message)
    end
  end
end

return gguf
