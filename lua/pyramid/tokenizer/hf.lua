-- Hugging Face tokenizers: tokenizer.json, or SentencePiece's tokenizer.model where that is
-- missing, and beside it in a directory what tokenizer_config.json, special_tokens_map.json,
-- added_tokens.json, generation_config.json and config.json say of special tokens and the chat
-- template.
--
-- What counts is what transformers 5 makes of these files. Ids around a text come from
-- tokenizer.json's post-processor alone (add_bos_token and add_eos_token are looked at only beside
-- a tokenizer.model). Tokens that are named beside tokenizer.json are tokens: those of
-- added_tokens_decoder; where tokenizer_config.json has no such field, those of added_tokens.json
-- and special_tokens_map.json; and every special token that has a name (bos_token, image_token,
-- additional_special_tokens, …).
-- Source: https://github.com/huggingface/tokenizers (the library's serialised form).

local exists = require("pyramid.files").exists
local fault = require "pyramid.loaders.fault"
local json = require "pyramid.loaders.json"
local sentencepiece = require "pyramid.tokenizer.sentencepiece"
local steps = require "pyramid.tokenizer.steps"
local core = require "pyramid.core"

local hf = {}

local TOKENIZER_MAX, CONFIG_MAX = 1 << 28, 1 << 24

local function read_if_there(path)
  if not exists(path) then return nil end
  return json.decode(json.read(path, CONFIG_MAX), path)
end

-- ---- tokenizer.json -----------------------------------------------------------------------------

local function id_of(value, what, piece)
  local id = math.type(value) and math.tointeger(value)
  if not id or id < 0 or id >= 1 << 24 then
    fault.raise("format", "%s: the id of %s is %s", what, fault.quote(piece), fault.quote(value))
  end
  return id
end

local function read_model(recipe, o)
  local what = recipe.file .. ": model"
  local model = json.required(o, "model", "table", recipe.file)
  local kind = json.field(model, "type", "string", what, model.merges and "BPE")
  if kind ~= "BPE" then
    fault.raise("unsupported", "%s: type %s (known: BPE)", what, fault.quote(kind))
  end
  if json.field(model, "dropout", "number", what, 0) ~= 0 then
    fault.raise("unsupported", "%s: dropout", what)
  end
  for _, key in ipairs { "continuing_subword_prefix", "end_of_word_suffix" } do
    if json.field(model, key, "string", what, "") ~= "" then
      fault.raise("unsupported", "%s: %s", what, key)
    end
  end
  local options = recipe.options
  options.byte_fallback = json.field(model, "byte_fallback", "boolean", what, false)
  options.fuse_unknown = json.field(model, "fuse_unk", "boolean", what, false)
  options.whole_words = json.field(model, "ignore_merges", "boolean", what, false)
  local vocab = json.required(model, "vocab", "table", what)
  local top = -1
  for piece, id in pairs(vocab) do
    if type(piece) ~= "string" then fault.raise("format", "%s.vocab is not an object", what) end
    top = math.max(top, id_of(id, what .. ".vocab", piece))
  end
  local unknown = json.field(model, "unk_token", "string", what, "")
  if unknown ~= "" then recipe.unknown = unknown end
  recipe.vocab, recipe.merges = vocab, json.required(model, "merges", "table", what)
  return top
end

local token_flags = { special = "special", lstrip = "lstrip", rstrip = "rstrip",
  single_word = "word" }

local function read_added(recipe, o, top)
  local added = {}
  for i, token in ipairs(json.field(o, "added_tokens", "table", recipe.file, {})) do
    local what = ("%s: added_tokens[%d]"):format(recipe.file, i - 1)
    if type(token) ~= "table" then fault.raise("format", "%s is not an object", what) end
    local content = json.required(token, "content", "string", what)
    local id, flags = id_of(token.id, what, content), 0
    for key, bit in pairs(token_flags) do
      if json.field(token, key, "boolean", what, false) then flags = flags | core.token[bit] end
    end
    local special = flags & core.token.special ~= 0
    if not json.field(token, "normalized", "boolean", what, not special) then
      flags = flags | core.token.raw
    end
    -- the library prefers the vocabulary's
    id = recipe.vocab[content] and math.tointeger(recipe.vocab[content]) or id
    if content ~= "" then                           -- and ignores an empty one
      added[#added + 1] = { id = id, text = content, flags = flags }
      recipe.ids[content] = id
      top = math.max(top, id)
    end
  end
  recipe.added = added
  return top
end

--- What text becomes that the vocabulary cannot say. Where all bytes are pieces it is never asked,
--- and often not there.
local function read_unknown(recipe)
  if not recipe.unknown then return nil end
  local id = recipe.vocab[recipe.unknown] or recipe.ids[recipe.unknown]
  if not id and not recipe.options.byte_level then
    fault.raise("format", "%s: model: unk_token %s is not in the vocabulary", recipe.file,
      fault.quote(recipe.unknown))
  end
  return id and math.tointeger(id)
end

local function read_tokenizer(path)
  local o = json.decode(json.read(path, TOKENIZER_MAX), path)
  local recipe = { file = path, options = {}, steps = {}, before = {}, after = {}, ids = {},
    eos = {} }
  steps.read(recipe, o)
  recipe.options.vocab = read_added(recipe, o, read_model(recipe, o)) + 1
  recipe.options.unknown = read_unknown(recipe)
  recipe.bos = recipe.before[1]
  return recipe
end

--- Gives the recipe's pieces and merges to a core tokenizer; raises faults.
---@param recipe pyramid.Recipe
---@param t userdata
function hf.fill(recipe, t)
  if recipe.fill then return recipe.fill(recipe, t) end
  local piece, merge = t.piece, t.merge
  for text, id in pairs(recipe.vocab) do
    local ok, message, code = piece(t, math.tointeger(id), text)
    if not ok then fault.raise(code, "%s: model.vocab: %s", recipe.file, message) end
  end
  for i, pair in ipairs(recipe.merges) do
    local left, right
    -- a line that files of merges begin with
    local version = type(pair) == "string" and pair:find("^#version")
    if type(pair) == "string" then left, right = pair:match("^([^ ]+) ([^ ]+)$")
    elseif type(pair) == "table" and #pair == 2 then left, right = pair[1], pair[2] end
    if not version and type(left) == "string" and type(right) == "string" then
      local ok, message, code = merge(t, left, right)
      if not ok then fault.raise(code, "%s: model.merges[%d]: %s", recipe.file, i - 1, message) end
    elseif not version then
      fault.raise("format", "%s: model.merges[%d] is not a pair of pieces", recipe.file, i - 1)
    end
  end
end

-- ---- the files beside it ------------------------------------------------------------------------

--- The text of a special token: a string, or an object with `content`.
local function token_text(o, key, what)
  local value = o[key]
  if value == nil or value == json.null then return nil end
  if type(value) == "table" then value = value.content end
  if type(value) ~= "string" then fault.raise("format", "%s: %s is not a token", what, key) end
  return value
end

local function find_id(recipe, text)
  if text == nil then return nil end
  return recipe.ids[text] or (recipe.vocab[text] and math.tointeger(recipe.vocab[text]))
end

local function add_eos(recipe, id)
  if id == nil then return end
  for _, other in ipairs(recipe.eos) do
    if other == id then return end
  end
  recipe.eos[#recipe.eos + 1] = id
end

local function add_eos_ids(recipe, o, what)
  local value = o and o.eos_token_id
  if value == nil or value == json.null then return end
  for _, id in ipairs(type(value) == "table" and value or { value }) do
    id = math.type(id) and math.tointeger(id)
    if not id then fault.raise("format", "%s: eos_token_id is not an id", what) end
    if id >= 0 and id < recipe.options.vocab then add_eos(recipe, id) end
  end
end

--- A token's bits from the object that describes it.
local function flags_of(token, what, special)
  local flags = special and core.token.special or 0
  for key, bit in pairs(token_flags) do
    if json.field(token, key, "boolean", what, false) then flags = flags | core.token[bit] end
  end
  special = flags & core.token.special ~= 0
  if not json.field(token, "normalized", "boolean", what, not special) then
    flags = flags | core.token.raw
  end
  return flags
end

--- Adds a token that tokenizer.json does not list, but `file`. Its id is the vocabulary's if that
--- has the text, else the given one, else the next one.
local function add_token(recipe, file, text, flags, id)
  if text == "" or recipe.ids[text] then return end
  local own = recipe.vocab[text] and math.tointeger(recipe.vocab[text])
  if not own and id == nil then id = recipe.options.vocab end
  id = own or id
  recipe.added[#recipe.added + 1] = { id = id, text = text, flags = flags, file = file }
  recipe.ids[text] = id
  recipe.options.vocab = math.max(recipe.options.vocab, id + 1)
end

local function sorted_keys(o)
  local keys = {}
  for key in pairs(o) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  return keys
end

--- added_tokens_decoder: objects by id.
local function read_decoder(recipe, decoder, what)
  local list = {}
  for key, token in pairs(decoder) do
    local where = ("%s: added_tokens_decoder: %s"):format(what, fault.quote(key))
    if type(token) ~= "table" then fault.raise("format", "%s is not an object", where) end
    local content = json.required(token, "content", "string", where)
    list[#list + 1] = { id = id_of(tonumber(key), what, content), text = content,
      flags = flags_of(token, where) }
  end
  table.sort(list, function(a, b) return a.id < b.id end)
  for _, token in ipairs(list) do add_token(recipe, what, token.text, token.flags, token.id) end
end

--- added_tokens.json: ids by text.
local function read_added_file(recipe, added, what, special)
  local list = {}
  for text, id in pairs(added) do
    if type(text) ~= "string" then fault.raise("format", "%s: not ids by text", what) end
    list[#list + 1] = { id = id_of(id, what, text), text = text }
  end
  table.sort(list, function(a, b) return a.id < b.id end)
  for _, token in ipairs(list) do
    add_token(recipe, what, token.text, special[token.text] and core.token.special | core.token.raw
      or 0, token.id)
  end
end

--- The special tokens that an object names: under keys that end in _token, and in lists or objects
--- of more.
local function each_special(o, what, fn)
  local function one(value, where)
    if type(value) == "string" then fn(value, core.token.special | core.token.raw)
    elseif type(value) == "table" and value.content ~= nil then
      fn(json.required(value, "content", "string", where), flags_of(value, where, true))
    end
  end
  for _, key in ipairs(sorted_keys(o)) do
    if type(key) == "string" and key:find("_token$") then one(o[key], what .. ": " .. key) end
  end
  for _, key in ipairs { "additional_special_tokens", "extra_special_tokens" } do
    local more = json.field(o, key, "table", what, {})
    for _, name in ipairs(#more > 0 and {} or sorted_keys(more)) do
      one(more[name], what .. ": " .. key)
    end
    for _, value in ipairs(more) do one(value, what .. ": " .. key) end
  end
end

--- The file chat_template.jinja if it is there; else what tokenizer_config.json holds.
local function read_template(o, dir, what)
  local path = dir .. "/chat_template.jinja"
  if exists(path) then return json.read(path, CONFIG_MAX) end
  local template = o.chat_template
  if type(template) == "table" then                 -- a list of named ones
    local found
    for _, named in ipairs(template) do
      if type(named) == "table" and (named.name == "default" or not found) then
        found = named.template
      end
    end
    template = found
  end
  if template == nil or template == json.null then return nil end
  if type(template) ~= "string" then
    fault.raise("format", "%s: chat_template is not a text", what)
  end
  return template
end

local function read_around(recipe, dir)
  local what = dir .. "/tokenizer_config.json"
  local config = read_if_there(what) or {}
  local decoder = json.field(config, "added_tokens_decoder", "table", what)
  local map_path, added_path = dir .. "/special_tokens_map.json", dir .. "/added_tokens.json"
  local map = read_if_there(map_path) or {}
  if decoder then
    read_decoder(recipe, decoder, what)
  else
    local special = {}
    local function note(text) special[text] = true end
    each_special(config, what, note)
    each_special(map, map_path, note)
    read_added_file(recipe, read_if_there(added_path) or {}, added_path, special)
  end
  each_special(config, what, function(text, flags) add_token(recipe, what, text, flags) end)
  if not decoder then each_special(map, map_path,
    function(text, flags) add_token(recipe, map_path, text, flags) end) end
  recipe.bos_text = token_text(config, "bos_token", what) or token_text(map, "bos_token", map_path)
  recipe.eos_text = token_text(config, "eos_token", what) or token_text(map, "eos_token", map_path)
  recipe.bos = find_id(recipe, recipe.bos_text) or recipe.bos
  -- a tokenizer.model's own, which is put before texts, may have been named otherwise
  if recipe.fill and recipe.before[1] then recipe.before[1] = recipe.bos end
  -- what ends a text: the union of all that say so; the tokenizer's own token, which templates
  -- write, comes first
  local generation = dir .. "/generation_config.json"
  add_eos(recipe, find_id(recipe, recipe.eos_text))
  add_eos_ids(recipe, read_if_there(generation), generation)
  add_eos_ids(recipe, read_if_there(dir .. "/config.json"), dir .. "/config.json")
  recipe.chat_template = read_template(config, dir, what)
end

--- Reads a tokenizer.json, a tokenizer.model, or a directory that holds one of them (the former, if
--- both); raises faults.
---@param path string
---@param directory boolean
---@return pyramid.Recipe
function hf.read(path, directory)
  if not directory then
    if not path:find "%.model$" then return read_tokenizer(path) end
    local recipe = sentencepiece.read(path, {}, path)
    add_eos(recipe, recipe.eos_id)
    return recipe
  end
  local file, model = path .. "/tokenizer.json", path .. "/tokenizer.model"
  local recipe
  if exists(file) then recipe = read_tokenizer(file)
  elseif exists(model) then
    local where = path .. "/tokenizer_config.json"
    recipe = sentencepiece.read(model, read_if_there(where) or {}, where)
  else fault.raise("io", "%s: no tokenizer.json and no tokenizer.model", path) end
  read_around(recipe, path)
  add_eos(recipe, recipe.eos_id)
  return recipe
end

return hf
