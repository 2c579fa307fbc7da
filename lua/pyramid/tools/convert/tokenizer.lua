--- What a tokenizer.json and the files beside it say, as GGUF's metadata: tokenizer.ggml.*.
---
--- GGUF knows two kinds: "gpt2", byte-level BPE with merges and the name of a pre-tokenizer, and
--- "llama", pieces with scores. Which words text is cut into is said by a name alone, so that a
--- tokenizer.json can ask for what no name stands for. Nothing is guessed: the steps of the one are
--- compared with those of the other, and at last both tokenizers are asked for the ids of some
--- texts. Source of the keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
local core = require "pyramid.core"
local fault = require "pyramid.loaders.fault"
local hf = require "pyramid.tokenizer.hf"
local pre = require "pyramid.tokenizer.pre"
local steps = require "pyramid.tokenizer.steps"
local tokenizer = require "pyramid.tokenizer"

local convert_tokenizer = {}

local NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  -- tokenizer.ggml.token_type

-- Of the names that stand for the same steps, the ones that the most readers know.
local preferred = { "llama-bpe", "qwen2", "gpt-2", "smollm", "starcoder", "tekken", "gpt-4o",
  "falcon", "deepseek-llm", "deepseek-coder", "deepseek-v3" }

-- Texts that tokenizers cut differently: endings, digits, runs of spaces and ends of lines, scripts
-- without spaces, marks, and bytes of characters that no vocabulary has.
local probes = {
  "Hello, world! It's 12345 o'clock; WE'LL see.", " two  spaces,\ttabs\n\nand\r\n ends \n",
  "def f(x):\n    return x**2 != 0x1F_a # done...", "naïve cafés, Ångström — “quoted” ½ 10⁻³",
  "你好世界，今天是2024年。カタカナ한국어 ไทย हिन्दी", "👩‍👩‍👧 🏳️‍🌈 ∑∏ ﬁne e\u{301}", "x", " ", "",
  "CamelCaseWORDS and_snake_case 3.14159e-10 http://a.b/c?d=e&f#g",
}

-- ---- steps --------------------------------------------------------------------------------------

-- What comes before the model's own merges, as text.
local function said(recipe)
  local out = { tostring(recipe.options.whole_words or false) }
  for _, step in ipairs(recipe.steps) do
    if step[1] ~= "decode" then out[#out + 1] = table.concat(step, "\1") end
  end
  return table.concat(out, "\2")
end

-- What a reader of GGUF makes of a pre-tokenizer's name.
local function recipe_of(name, space)
  local how = pre.find(name)
  local recipe = { file = name, options = { whole_words = how.whole_words }, steps = {} }
  if how.composed then steps.add(recipe, "normalize", "nfc") end
  if space then steps.add(recipe, "split", "prepend", nil, " ", 1, 0) end
  for _, expression in ipairs(how.cuts) do
    steps.cut(recipe, expression, "Isolated", false, name)
  end
  return recipe
end

--- The name of the pre-tokenizer that does the same, and whether it puts a space before a text.
local function find_pre(recipe)
  local wanted = said(recipe)
  local names = table.move(preferred, 1, #preferred, 1, {})
  table.move(pre.list(), 1, #pre.list(), #names + 1, names)
  for _, space in ipairs { false, true } do
    for _, name in ipairs(names) do
      if said(recipe_of(name, space)) == wanted then return name, space end
    end
  end
  fault.raise("unsupported", "%s: normalizer and pre_tokenizer: none of the pre-tokenizers that "
    .. "GGUF files name cuts text so (known: %s)", recipe.file, table.concat(pre.list(), ", "))
end

-- ---- pieces -------------------------------------------------------------------------------------

-- Texts and types by id; ids that no piece has are spelled as llama.cpp's converter does.
local function list_tokens(recipe, vocab, bytes)
  local tokens, types = {}, {}
  for id = 0, vocab - 1 do tokens[id + 1], types[id + 1] = ("[PAD%d]"):format(id), UNUSED end
  for text, id in pairs(recipe.vocab) do
    if id < vocab then
      tokens[id + 1] = text
      types[id + 1] = bytes and text:find "^<0x%x%x>$" and BYTE or NORMAL
    end
  end
  for _, token in ipairs(recipe.added) do
    if token.id < vocab then
      tokens[token.id + 1] = token.text
      types[token.id + 1] = token.flags & core.token.special ~= 0 and CONTROL or USER
    end
  end
  local unknown = recipe.options.unknown
  if bytes and unknown and unknown < vocab then types[unknown + 1] = UNKNOWN end
  return tokens, types
end

local function pair_of(recipe, i)
  local merge = recipe.merges[i]
  if type(merge) == "string" then
    if merge:find "^#version" then return nil end
    merge = { merge:match "^([^ ]+) ([^ ]+)$" }
  end
  if type(merge) ~= "table" or type(merge[1]) ~= "string" or type(merge[2]) ~= "string" then
    fault.raise("format", "%s: model.merges[%d] is not a pair of pieces", recipe.file, i - 1)
  end
  return merge[1], merge[2]
end

local function list_merges(recipe)
  local out = {}
  for i = 1, #recipe.merges do
    local left, right = pair_of(recipe, i)
    if left then out[#out + 1] = left .. " " .. right end
  end
  return out
end

--- Scores in whose order pairs are merged: minus the place of the first merge that makes a piece.
--- What no merge makes comes last. A tokenizer.model has scores itself.
local function list_scores(recipe, tokens)
  local places, scores = {}, {}
  if recipe.scores then
    for i = 1, #tokens do scores[i] = recipe.scores[i] or 0.0 end
    return scores
  end
  for i = 1, #recipe.merges do
    local left, right = pair_of(recipe, i)
    if left and not places[left .. right] then places[left .. right] = i end
  end
  for i, text in ipairs(tokens) do scores[i] = -(places[text] or #recipe.merges + 1) + 0.0 end
  return scores
end

-- ---- the check ----------------------------------------------------------------------------------

local function same(one, other, text, how)
  local a, b = fault.check(one:encode(text, how)), fault.check(other:encode(text, how))
  return table.concat(a, " ") == table.concat(b, " ")
end

--- Faults where plain text has other ids; lines where only texts do that begin with a space, to
--- which SentencePiece puts another one and tokenizer.json's Metaspace does not, or that hold
--- special tokens.
local function compare(dir, file, entries, vocab)
  local metadata, warnings = {}, {}
  for _, e in ipairs(entries) do metadata[e.key] = e.value end
  local given = { ids = vocab }
  local from <close> = fault.check(tokenizer.load(dir, given))
  local to <close> = fault.check(tokenizer.load({ path = dir, metadata = metadata }, given))
  for _, text in ipairs(probes) do
    local right = same(from, to, text, { special = false })
    if not right and text:find "^ " then
      warnings[1] = ("%s: texts that begin with a space have other ids in GGUF"):format(file)
    elseif not right then
      fault.raise("unsupported", "%s: what GGUF can say of it gives other ids for the text '%s'",
        file, fault.quote(text))
    end
  end
  for id = 0, vocab - 1 do
    local piece = from:is_special(id) and from:piece(id)
    for _, text in ipairs(piece and { piece, "a " .. piece .. " b" } or {}) do
      if not same(from, to, text) then
        warnings[#warnings + 1] = ("%s: GGUF does not say all of %s: the ids of texts with it "
          .. "differ"):format(file, fault.quote(piece))
        return warnings
      end
    end
  end
  return warnings
end

-- ---- the door -----------------------------------------------------------------------------------

---The entries for a folder's tokenizer, and what its user should know, a line each. Raises faults.
---@param dir string     a Hugging Face folder with a tokenizer.json or a tokenizer.model
---@param vocab integer  rows of the embedding: as many tokens there are
---@return pyramid.GgufEntry[]
---@return string[] warnings
function convert_tokenizer.entries(dir, vocab)
  local recipe, out = hf.read(dir, true), {}
  local function add(key, kind, value)
    if value ~= nil then
      out[#out + 1] = { key = "tokenizer." .. key, kind = kind, value = value }
    end
  end
  local bytes = not recipe.options.byte_level
  if bytes and not recipe.options.byte_fallback then
    fault.raise("unsupported", "%s: model: neither byte-level nor with byte_fallback, which is all "
      .. "that GGUF files know", recipe.file)
  end
  local tokens, types = list_tokens(recipe, vocab, bytes)
  local space
  add("ggml.model", "string", bytes and "llama" or "gpt2")
  if bytes then
    space = said(recipe):find "\1prepend\1" ~= nil
    add("ggml.pre", "string", "default")
  else
    local name
    name, space = find_pre(recipe)
    add("ggml.pre", "string", name)
  end
  add("ggml.tokens", "array:string", tokens)
  if bytes then add("ggml.scores", "array:f32", list_scores(recipe, tokens)) end
  add("ggml.token_type", "array:i32", types)
  if not bytes then add("ggml.merges", "array:string", list_merges(recipe)) end
  -- an id that the embedding has no row for is none
  local function held(id) return id and id < vocab and id or nil end
  local bos, eos = held(recipe.bos), held(recipe.eos[1])
  add("ggml.bos_token_id", "u32", bos)
  for i, name in ipairs { "eos", "eot", "eom" } do
    add(("ggml.%s_token_id"):format(name), "u32", held(recipe.eos[i]))
  end
  add("ggml.unknown_token_id", "u32", bytes and held(recipe.options.unknown) or nil)
  add("ggml.add_bos_token", "bool", bos ~= nil and recipe.before[1] == bos)
  add("ggml.add_eos_token", "bool", eos ~= nil and recipe.after[1] == eos)
  if bytes or space then add("ggml.add_space_prefix", "bool", space) end
  add("chat_template", "string", recipe.chat_template)
  return out, compare(dir, recipe.file, out, vocab)
end

return convert_tokenizer
