-- The pre-tokenizers that GGUF files name (tokenizer.ggml.pre). Each is a sequence of expressions
-- in tokenizer.json's dialect, as the models' own tokenizer.json have them; every match and every
-- gap between matches is a word, which the next expression cuts further. An unknown name is an
-- error, never a guess: wrong words give a model that merely seems stupid.
-- Source of the names: https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp); of the
-- expressions, the models.

local pre = {}

local GPT2 = [['s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]
local ENDINGS = [[(?i:'s|'t|'re|'ve|'m|'ll|'d)]]
local LETTERS = [=[|[^\r\n\p{L}\p{N}]?\p{L}+]=]
local REST = [=[| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]=]
local LLAMA3 = ENDINGS .. LETTERS .. [[|\p{N}{1,3}]] .. REST
local QWEN2 = ENDINGS .. LETTERS .. [[|\p{N}]] .. REST
local QWEN35 = ENDINGS
  .. [=[|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]=]

-- Words that begin with capitals, or are all capitals: `ends` may follow either.
local function cased(ends, digits)
  local before, upper, lower = [=[[^\r\n\p{L}\p{N}]?]=], [=[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]]=], [=[[\p{Ll}\p{Lm}\p{Lo}\p{M}]]=]
  return before .. upper .. "*" .. lower .. "+" .. ends .. "|"
    .. before .. upper .. "+" .. lower .. "*" .. ends
    .. "|" .. digits .. [=[| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+]=]
end

-- Letters that have a case.
local CASED = table.concat {
  [[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}\x{370}-\x{373}]],
  [[\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}]],
  [[\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}]],
  [[\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}]],
  [[\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}]],
  [[\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}]],
  [[\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}]],
  [[\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}]],
  [[\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}]],
  [[\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}]],
  [[\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}]],
  [[\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]],
}

local kinds = {
  gpt2 = { GPT2 },
  llama3 = { LLAMA3 },
  qwen2 = { QWEN2 },
  qwen35 = { QWEN35 },
  digits_gpt2 = { [[\p{N}]], GPT2 },
  default = { [=[[\p{P}\$\+<=>\^~\|]+]=], GPT2, [[\p{N}+]], "[0-9][0-9][0-9]" },
  falcon = { [=[[\p{P}\$\+<=>\^~\|`]+]=], GPT2, "[0-9][0-9][0-9]" },
  deepseek_llm = {
    "[\r\n]", [[\s?[]] .. CASED .. "]+", [=[\s?[!-/:-~！-／：-～‘-‟　-。]+]=], [[\s+$]], "[一-龥ࠀ-一가-퟿]+", [[\p{N}+]],
  },
  deepseek_coder = { "[\r\n]", [[\s?\p{L}+]], [[\s?\p{P}+]], "[一-龥ࠀ-一가-퟿]+", [[\p{N}]] },
  deepseek_v3 = {
    [[\p{N}{1,3}]], "[一-龥぀-ゟ゠-ヿ]+",
    [=[[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|]=] ..
    [=[[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]=],
  },
  tekken = { cased("", [[\p{N}]]) },
  gpt4o = { cased(ENDINGS .. "?", [[\p{N}{1,3}]]) },
}

-- Models whose own tokenizer brings text into Unicode's form NFC first.
local composed = { mpt = true, olmo = true, qwen2 = true, stablelm2 = true }

-- name = { kind, words that are pieces are not merged, BOS is added unless the file says so }
local names = {
  ["gpt-2"] = { "gpt2" }, ["phi-2"] = { "gpt2" }, mpt = { "gpt2" }, olmo = { "gpt2" },
  jais = { "gpt2" }, mellum = { "gpt2" }, ["modern-bert"] = { "gpt2" }, exaone4 = { "gpt2" },
  trillion = { "gpt2" }, ["granite-docling"] = { "gpt2" },
  ["llama-bpe"] = { "llama3", true, true }, llama3 = { "llama3", true, true },
  ["llama-v3"] = { "llama3", true, true }, falcon3 = { "llama3", true, true },
  ["falcon-h1"] = { "llama3", true, true }, pixtral = { "llama3", true, true },
  lfm2 = { "llama3", true, true }, dbrx = { "llama3" }, ["smaug-bpe"] = { "llama3" },
  ["chatglm-bpe"] = { "llama3" }, glm4 = { "llama3", true }, qwen2 = { "qwen2" },
  ["deepseek-r1-qwen"] = { "qwen2" }, megrez = { "qwen2" }, stablelm2 = { "qwen2" },
  hunyuan = { "qwen2" }, qwen35 = { "qwen35" }, starcoder = { "digits_gpt2" },
  refact = { "digits_gpt2" }, ["command-r"] = { "digits_gpt2" }, smollm = { "digits_gpt2" },
  codeshell = { "digits_gpt2" }, exaone = { "digits_gpt2" }, ["minerva-7b"] = { "digits_gpt2" },
  ["deepseek-llm"] = { "deepseek_llm" }, ["deepseek-coder"] = { "deepseek_coder" },
  ["deepseek-v3"] = { "deepseek_v3" }, falcon = { "falcon" }, default = { "default" },
  tekken = { "tekken", true, true }, ["gpt-4o"] = { "gpt4o" }, llama4 = { "gpt4o" },
}

---@class pyramid.Pre
---@field cuts string[]        expressions
---@field whole_words boolean
---@field bos boolean
---@field composed boolean

--- What a name stands for, or nil.
---@param name string
---@return pyramid.Pre?
function pre.find(name)
  local row = names[name]
  if not row then return nil end
  return { cuts = kinds[row[1]], whole_words = row[2] or false, bos = row[3] or false,
    composed = composed[name] or false }
end

--- All names, sorted.
---@return string[]
function pre.list()
  local out = {}
  for name in pairs(names) do out[#out + 1] = name end
  table.sort(out)
  return out
end

return pre
