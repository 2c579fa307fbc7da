-- The parts of a tokenizer.json around its model: normalizer, pre_tokenizer, post_processor and
-- decoder, read into the core's steps. Each kind is one short function in a table; a kind that is
-- not there is "unsupported", by name.
--
-- A step is { stage, kind, pattern, text, a, b } as core's t:step takes it.

local fault = require "pyramid.loaders.fault"
local json = require "pyramid.loaders.json"
local pattern = require "pyramid.tokenizer.pattern"

local steps = {}

local GPT2 = [['s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]

---@class pyramid.Recipe       what the readers find out and tokenizer.lua builds
---@field file string
---@field options table        of core.tokenizer
---@field steps table[]
---@field before integer[]     ids put before and after a text
---@field after integer[]

-- The core's own limits (core/text/tokenizer.c: AROUND_MAX, and STEPS_MAX in each of three stages),
-- looked at before lists grow.
local AROUND_MAX, STEPS_MAX = 64, 96

local cuts = { Removed = 0, Isolated = 1, MergedWithPrevious = 2, MergedWithNext = 3,
  Contiguous = 4 }

local function add(recipe, stage, kind, text_pattern, text, a, b)
  if #recipe.steps >= STEPS_MAX then
    fault.raise("format", "%s: more than %d steps", recipe.file, STEPS_MAX)
  end
  recipe.steps[#recipe.steps + 1] = { stage, kind, text_pattern or "", text or "", a or 0, b or 0 }
end

--- A step that cuts words at an expression in PCRE2's dialect.
local function cut(recipe, expression, how, invert)
  add(recipe, "split", "match", expression, nil, cuts[how], invert and 1 or 0)
end

--- The same in tokenizer.json's dialect.
function steps.cut(recipe, expression, how, invert, where)
  cut(recipe, pattern.translate(expression, where), how, invert)
end

--- What GPT-2's pre-tokenizer does, without its prefix space.
function steps.gpt2(recipe) steps.cut(recipe, GPT2, "Isolated", false, "GPT-2") end

local function flag(o, key, where, default)
  if default == nil then return json.required(o, key, "boolean", where) end
  return json.field(o, key, "boolean", where, default)
end

local function text_of(o, key, where)
  local text = json.required(o, key, "string", where)
  if text == "" then fault.raise("format", "%s: %s is empty", where, key) end
  return text
end

--- A { "String": … } or { "Regex": … }: the text, and whether it is an expression.
local function read_pattern(o, where)
  local p = json.required(o, "pattern", "table", where)
  where = where .. ": pattern"
  if p.Regex ~= nil then return text_of(p, "Regex", where), true end
  return text_of(p, "String", where), false
end

--- Runs the function for o.type in `kinds`.
local function dispatch(kinds, recipe, o, where, name)
  local kind = json.required(o, "type", "string", where)
  local fn = kinds[kind]
  if not fn then
    local known = {}
    for key in pairs(kinds) do known[#known + 1] = key end
    table.sort(known)
    fault.raise("unsupported", "%s: %s %s (known: %s)", where, name, fault.quote(kind),
      table.concat(known, ", "))
  end
  fn(recipe, o, where)
end

--- A kind "Sequence": the parts in a list under `key`.
local function sequence(kinds, key, name)
  return function(recipe, o, where)
    for i, part in ipairs(json.required(o, key, "table", where)) do
      local place = ("%s.%s[%d]"):format(where, key, i - 1)
      if type(part) ~= "table" then fault.raise("format", "%s is not an object", place) end
      dispatch(kinds, recipe, part, place, name)
    end
  end
end

-- ---- normalizer ---------------------------------------------------------------------------------

local normalizers = {}
for _, form in ipairs { "NFC", "NFD", "NFKC", "NFKD" } do
  normalizers[form] = function(recipe) add(recipe, "normalize", form:lower()) end
end
function normalizers.Lowercase(recipe) add(recipe, "normalize", "lower") end
function normalizers.Strip(recipe, o, where)
  add(recipe, "normalize", "strip", nil, nil, flag(o, "strip_left", where) and 1 or 0,
    flag(o, "strip_right", where) and 1 or 0)
end
function normalizers.Prepend(recipe, o, where)
  add(recipe, "normalize", "prepend", nil, text_of(o, "prepend", where))
end
function normalizers.Replace(recipe, o, where)
  local p, expression = read_pattern(o, where)
  local content = json.required(o, "content", "string", where)
  if expression then add(recipe, "normalize", "substitute",
    pattern.translate(p, where .. ": pattern"), content)
  else add(recipe, "normalize", "replace", p, content) end
end
normalizers.Sequence = sequence(normalizers, "normalizers", "normalizer")

-- ---- pre_tokenizer ------------------------------------------------------------------------------

local pretokenizers = {}

function pretokenizers.ByteLevel(recipe, o, where)
  recipe.options.byte_level = true
  if flag(o, "add_prefix_space", where, true) then
    add(recipe, "split", "prepend", nil, " ", 1, 0)
  end
  if flag(o, "use_regex", where, true) then steps.gpt2(recipe) end
  add(recipe, "split", "bytes")               -- dropped again if nothing follows it
end
function pretokenizers.Split(recipe, o, where)
  local p, expression = read_pattern(o, where)
  local behavior = json.required(o, "behavior", "string", where)
  if not cuts[behavior] then
    fault.raise("format", "%s: behavior is %s", where, fault.quote(behavior))
  end
  if not expression then p = pattern.quote(p) end
  steps.cut(recipe, p, behavior, flag(o, "invert", where, false), where .. ": pattern")
end
function pretokenizers.Digits(recipe, o, where)
  local one = flag(o, "individual_digits", where, false)
  steps.cut(recipe, [[\p{N}]], one and "Isolated" or "Contiguous", false, where)
end
function pretokenizers.Whitespace(recipe) cut(recipe, pattern.WORDS, "Removed", true) end
function pretokenizers.WhitespaceSplit(recipe, _, where)
  steps.cut(recipe, [[\s]], "Removed", false, where)
end
function pretokenizers.BertPreTokenizer(recipe, _, where)
  steps.cut(recipe, [[\s]], "Removed", false, where)
  cut(recipe, pattern.PUNCTUATION, "Isolated", false)
end
function pretokenizers.Punctuation(recipe, o, where)
  local behavior = json.field(o, "behavior", "string", where, "Isolated")
  if not cuts[behavior] then
    fault.raise("format", "%s: behavior is %s", where, fault.quote(behavior))
  end
  cut(recipe, pattern.PUNCTUATION, behavior, false)
end
function pretokenizers.CharDelimiterSplit(recipe, o, where)
  steps.cut(recipe, pattern.quote(text_of(o, "delimiter", where)), "Removed", false, where)
end

--- How Metaspace treats the beginning: "always", "first" or "never". The older form says true or
--- false.
local function prepend_scheme(o, where)
  local scheme = json.field(o, "prepend_scheme", "string", where)
  local older = json.field(o, "add_prefix_space", "boolean", where)
  if scheme == nil then return older == false and "never" or "always" end
  if scheme ~= "always" and scheme ~= "first" and scheme ~= "never" then
    fault.raise("format", "%s: prepend_scheme is %s", where, fault.quote(scheme))
  end
  if older == false and scheme ~= "never" then
    fault.raise("format", "%s: add_prefix_space contradicts prepend_scheme", where)
  end
  return scheme
end

local function replacement(o, where)
  local mark = json.required(o, "replacement", "string", where)
  if utf8.len(mark) ~= 1 then
    fault.raise("format", "%s: replacement is not one character", where)
  end
  return mark
end

function pretokenizers.Metaspace(recipe, o, where)
  local mark, scheme = replacement(o, where), prepend_scheme(o, where)
  add(recipe, "split", "replace", " ", mark)
  if scheme ~= "never" then
    add(recipe, "split", "prepend", nil, mark, 1, scheme == "first" and 1 or 0)
  end
  if flag(o, "split", where, true) then
    steps.cut(recipe, pattern.quote(mark), "MergedWithNext", false, where)
  end
end
pretokenizers.Sequence = sequence(pretokenizers, "pretokenizers", "pre_tokenizer")

-- ---- post_processor -----------------------------------------------------------------------------

local function id_of(value, where)
  local id = math.type(value) and math.tointeger(value)
  if not id then fault.raise("format", "%s is not a token id", where) end
  return id
end

--- Puts ids around what earlier processors made.
local function surround(recipe, before, after)
  if #recipe.before + #before > AROUND_MAX or #recipe.after + #after > AROUND_MAX then
    fault.raise("format", "%s: post_processor: more than %d ids before or behind a text",
      recipe.file, AROUND_MAX)
  end
  recipe.before = table.move(recipe.before, 1, #recipe.before, #before + 1, before)
  table.move(after, 1, #after, #recipe.after + 1, recipe.after)
end

local processors = {}

function processors.ByteLevel() end                              -- trims offsets only
function processors.TemplateProcessing(recipe, o, where)
  local ids = json.required(o, "special_tokens", "table", where)
  local before, after, seen = {}, {}, false
  for i, part in ipairs(json.required(o, "single", "table", where)) do
    local place = ("%s.single[%d]"):format(where, i - 1)
    if type(part) ~= "table" then fault.raise("format", "%s is not an object", place) end
    local special = json.field(part, "SpecialToken", "table", place)
    if special then
      local name = json.required(special, "id", "string", place)
      local token = ids[name]
      if type(token) ~= "table" then
        fault.raise("format", "%s: %s is not in special_tokens", place, fault.quote(name))
      end
      for _, id in ipairs(json.required(token, "ids", "table", where .. ".special_tokens")) do
        local list = seen and after or before
        list[#list + 1] = id_of(id, where .. ".special_tokens: ids")
      end
    elseif json.required(part, "Sequence", "table", place) and seen then
      fault.raise("unsupported", "%s: the text comes twice", place)
    else
      seen = true
    end
  end
  if not seen then fault.raise("format", "%s: single has no place for the text", where) end
  surround(recipe, before, after)
end
function processors.BertProcessing(recipe, o, where)
  local ends = {}
  for i, key in ipairs { "cls", "sep" } do
    ends[i] = id_of(json.required(o, key, "table", where)[2], where .. "." .. key)
  end
  surround(recipe, { ends[1] }, { ends[2] })
end
processors.RobertaProcessing = processors.BertProcessing
processors.Sequence = sequence(processors, "processors", "post_processor")

-- ---- decoder ------------------------------------------------------------------------------------

local decoders = {}

function decoders.ByteLevel(recipe) add(recipe, "decode", "bytes") end
function decoders.ByteFallback(recipe) add(recipe, "decode", "fallback") end
function decoders.Fuse(recipe) recipe.fused = true end
function decoders.Replace(recipe, o, where)
  local p, expression = read_pattern(o, where)
  if expression or recipe.fused then
    fault.raise("unsupported", "%s: a Replace %s", where,
      expression and "of a regular expression" or "after Fuse")
  end
  add(recipe, "decode", "replace", p, json.required(o, "content", "string", where))
end
function decoders.Strip(recipe, o, where)
  local start, stop = json.required(o, "start", "integer", where),
    json.required(o, "stop", "integer", where)
  if not recipe.fused or stop ~= 0 then
    fault.raise("unsupported", "%s: a Strip %s", where, stop ~= 0 and "at the end" or "before Fuse")
  end
  if start < 0 or start > 1 << 20 then fault.raise("format", "%s: start is %d", where, start) end
  add(recipe, "decode", "trim", text_of(o, "content", where), nil, start)
end
function decoders.Metaspace(recipe, o, where)
  add(recipe, "decode", "replace", replacement(o, where), " ")
  if prepend_scheme(o, where) ~= "never" then add(recipe, "decode", "trim", " ", nil, 1) end
end
decoders.Sequence = sequence(decoders, "decoders", "decoder")

-- ---- all of them --------------------------------------------------------------------------------

local function part(kinds, recipe, o, key)
  local value = json.field(o, key, "table", recipe.file)
  if value then dispatch(kinds, recipe, value, recipe.file .. ": " .. key, key) end
  return value ~= nil
end

--- Reads the four parts of a decoded tokenizer.json into a recipe.
---@param recipe pyramid.Recipe
---@param o table
function steps.read(recipe, o)
  part(normalizers, recipe, o, "normalizer")
  part(pretokenizers, recipe, o, "pre_tokenizer")
  local last = recipe.steps[#recipe.steps]
  if last and last[2] == "bytes" then recipe.steps[#recipe.steps] = nil end
  part(processors, recipe, o, "post_processor")
  if not part(decoders, recipe, o, "decoder") then add(recipe, "decode", "join", nil, " ") end
end

--- Adds a step of the core's, for readers of other formats.
steps.add = add

return steps
