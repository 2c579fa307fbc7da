--- Grammars: which texts a sampler may write.
---
---   local grammar = assert(pyramid.grammar [[root ::= "yes" | "no"]])
---   grammar:match "ye"                                            --> "part"
---   model:generate(prompt, { sampler = { grammar = grammar } })
---
--- They are written in GBNF, llama.cpp's notation: rules, literals, classes of characters, groups,
--- | * + ? {m,n}, comments; `root` is the whole text. Or they come out of a JSON Schema
--- (pyramid.grammar.schema). What a grammar may ask for is bounded (core/grammar/grammar.h): 1 MiB
--- of text, 16,384 rules, 262,144 places to be in; a rule that begins with itself is refused.
local core = require "pyramid.core"
local files = require "pyramid.files"
local json = require "pyramid.json"
local options = require "pyramid.options"
local schemas = require "pyramid.grammar.schema"

local grammar = {}

---@class pyramid.Grammar  a grammar that samplers can share
---@field match fun(self: pyramid.Grammar, text: string): "whole"|"part"|false|nil, string?, string?
---  whole: a text of the grammar; part: one may begin so; fails where a grammar is too ambiguous
---@field close fun(self: pyramid.Grammar)

---@class pyramid.GrammarSource
---@field file? string           a file in GBNF
---@field schema? table|string   a JSON Schema, or its text
---@field schema_file? string    a file that holds one

local TEXT_MOST <const> = 1 << 20
local keys = { file = "string", schema = "table|string", schema_file = "string" }

local function of_text(text, name)
  local found, message, code = core.grammar(text)
  if not found then return nil, name and ("%s: %s"):format(name, message) or message, code end
  return found
end

local function text_of_schema(schema, name)
  local function fail(message, code)
    return nil, name and ("%s: %s"):format(name, message) or message, code
  end
  if type(schema) == "string" then
    local value, message, code = json.decode(schema, { ordered = true })
    if message then return fail("schema: " .. message, code) end
    schema = value
  end
  local text, message, code = schemas.grammar(schema)
  if not text then return fail(message, code) end
  return text
end

-- The text of a source, and the name of its file; the text of a schema is made here.
local function text_of(source)
  if type(source) == "string" then return source end
  if type(source) ~= "table" then
    error("pyramid.grammar: a text is wanted, { file = }, { schema = } or { schema_file = }", 3)
  end
  local given = options.check("pyramid.grammar", source, keys, 3)
  local key, value = next(given)
  if not key or next(given, key) then
    error("pyramid.grammar: one of file, schema and schema_file is wanted", 3)
  end
  if key == "schema" then return text_of_schema(value) end
  local text, message, code = files.read(value, TEXT_MOST)
  if not text then return nil, message, code end
  if key == "file" then return text, value end
  return text_of_schema(text, value)
end

-- Samplers of equal grammars share one, which nobody else has, and so what is found out about it.
local shared = setmetatable({}, { __mode = "v" })

---A grammar for a sampler: that which is given, or one that is shared.
---@param source string|pyramid.GrammarSource|pyramid.Grammar
---@return pyramid.Grammar?
---@return string? message
---@return string? code
function grammar.share(source)
  local class = type(source) == "userdata" and getmetatable(source)
  if class and class.__name == "pyramid.grammar" then return source end
  local text, name, code = text_of(source)
  if not text then return nil, name, code end
  if shared[text] then return shared[text] end
  local found, message, kind = of_text(text, name)
  shared[text] = found
  return found, message, kind
end

---A grammar of a text in GBNF, a file, or a JSON Schema. Fails ("format") on what is no grammar,
---with its line, and ("unsupported") on a schema that asks for what no grammar here can say, by
---name.
---@param source string|pyramid.GrammarSource
---@return pyramid.Grammar?
---@return string? message
---@return string? code
function grammar.new(source)
  local text, name, code = text_of(source)
  if not text then return nil, name, code end
  return of_text(text, name)
end

return grammar
