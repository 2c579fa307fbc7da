-- What is fuzzed: a target for each kind of file, and policies. A target has
--
--   suffix                     of its files' names
--   bases() -> names           what its cases are made from; a find's name holds it, as it says
--                              where the file belongs
--   make(base) -> bytes        a case, from math.random alone
--   try(path, base) -> value, or nil, message, code, named
--                              reads the file and uses what it holds; named: the failure is the
--                              file's, and names it
--
-- Policies are Lua and no file: their case is the number that seeds them, as text.
local pyramid = require "pyramid"
local chat = require "pyramid.chat"
local json = require "pyramid.json"
local results = require "pyramid.tools.results"
local score = require "pyramid.score"
local formats = require "spec.support.formats"
local helper = require "spec.helper"
local mutate = require "spec.fuzz.mutate"
local random_policy = require "spec.support.random_policy"

local targets = {}

local R, pick = math.random, mutate.pick
local families = { "codellama", "llama-gqa-llama3", "llama-linear", "llama-yarn", "mistral",
  "qwen2", "qwen3" }
-- Those whose configurations set switches, below spec/fixtures/decoders.
local decoders = { "gemma2", "gemma3", "gpt2", "gpt-neox", "phi3", "falcon-groups", "cohere2",
  "smollm3", "granite", "olmo3", "glm4", "exaone4", "minicpm", "internlm2" }
local where = {}
for _, name in ipairs(decoders) do
  where[name], families[#families + 1] = "decoders", name
end

-- Reads once, keeps.
local kept = {}
local function once(key, make)
  if kept[key] == nil then kept[key] = make() end
  return kept[key]
end
local function read(path) return once(path, function() return helper.read(path) end) end
local function parsed(path) return once("json " .. path,
  function() return mutate.decode(helper.read(path)) end) end

-- ---- use ----------------------------------------------------------------------------------------

local texts = { "", "a", "Hello world", "  two  spaces\n\n", ("a"):rep(40),
  "Ünïcödé ▁ Ġ 日本語 \u{1f600}", "\xff\xfe\x80abc", "<s>[INST] x</s>", "1234567890", "\0\1\2",
    "don't we've", ("ab "):rep(2000) }

-- Texts there and back, at once and id by id.
local function use_tokenizer(t)
  local failure
  local function must(value, message, code)
    if value == nil and not failure then failure = { message, code } end
    return value
  end
  for _, text in ipairs(texts) do
    local ids = must(t:encode(text))
    if ids then
      must(t:decode(ids))
      local decoder = must(t:decoder {})
      if decoder then
        for _, id in ipairs(ids) do must(decoder:push(id)) end
        must(decoder:finish())
        decoder:close()
      end
    end
    must(t:encode(text, { special = false }))
  end
  must(t:decode { 0, 1, 2, t.vocab_size - 1 })
  if t.chat_template then
    must(chat.render(t.chat_template, { { role = "user", content = "hi" } },
      { add_generation_prompt = true, bos = "", eos = "" }))
  end
  if failure then return nil, failure[1], failure[2] end
  return true
end

local function use_model(model)
  local ok, message, code = true, nil, nil
  if model.tokenizer then ok, message, code = use_tokenizer(model.tokenizer) end
  local cache
  if ok then cache, message, code = model:cache { dtype = "f16" } end
  if cache then
    local logits
    logits, message, code = cache:prefill { 1, 2, 0, 1, 1 }
    if logits then logits, message, code = cache:step(1) end
    ok = logits ~= nil
    cache:close()
  else
    ok = nil
  end
  model:close()
  if not ok then return nil, message, code end
  return true
end

local function use_path(path)
  local model, message, code = pyramid.model(path, { threads = 1 })
  if not model then return nil, message, code, true end
  return use_model(model)
end

-- A file of a checkpoint in a folder of its own, beside the others.
local function with_folder(path, others, name, use)
  local folder = path .. ".folder"
  os.execute(("rm -rf '%s' && mkdir -p '%s'"):format(folder, folder))
  for other, from in pairs(others) do helper.write(folder .. "/" .. other, read(from)) end
  helper.write(folder .. "/" .. name, read(path))
  kept[path] = nil
  local out = table.pack(use(folder))
  os.execute(("rm -rf '%s'"):format(folder))
  return table.unpack(out, 1, out.n)
end

local function family(name, file)
  return helper.fixture(("%s/%s/%s"):format(where[name] or "families", name, file))
end

-- ---- files of models ----------------------------------------------------------------------------

targets.gguf = {
  suffix = ".gguf",
  bases = function() return { "codellama", "llama-yarn", "qwen3", "qwen2", "mistral" } end,
  make = function(base)
    local bytes = once("gguf " .. base, function()
      local parts, kv = formats.gguf_of(base, "bf16"), formats.kv
      local pieces, scores, types, count = {}, {}, {}, 0
      for _, t in ipairs(parts.tensors) do
        if t.name == "token_embd.weight" then count = t.shape[1] end
      end
      local controls = { "<unk>", "<s>", "</s>" }
      for i = 1, count do
        pieces[i] = controls[i] or i <= 200 and ("<0x%02X>"):format(i - 4) or "t" .. i
        scores[i], types[i] = -i, i <= 3 and 3 or i <= 200 and 6 or 1
      end
      for _, entry in ipairs { { "model", "string", "llama" }, { "tokens", "array:string", pieces },
        { "scores", "array:f32", scores },
        { "token_type", "array:i32", types }, { "bos_token_id", "u32", 1 },
          { "eos_token_id", "u32", 2 } } do
        table.insert(parts.metadata, kv("tokenizer.ggml." .. entry[1], entry[2], entry[3]))
      end
      table.insert(parts.metadata, kv("tokenizer.chat_template", "string",
        "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]"))
      return formats.gguf(parts)
    end)
    return mutate.bytes(bytes, R(2) == 1 and 1200 or math.min(#bytes, 30000))
  end,
  try = use_path,
}

targets.config = {
  suffix = ".json",
  bases = function() return families end,
  make = function(base)
    local v = mutate.copy(parsed(family(base, "config.json")))
    if R(3) == 1 then
      v.rope_scaling = { rope_type = pick { "yarn", "llama3", "linear", "dynamic" }, factor = 2.0,
        original_max_position_embeddings = 64, beta_fast = 32, beta_slow = 1, low_freq_factor = 1,
          high_freq_factor = 4 }
    end
    if R(6) == 1 then
      v.layer_types, v.sliding_window = { "full_attention", "sliding_attention" }, 8
    end
    return mutate.json(v)
  end,
  try = function(path, base)
    return with_folder(path, { ["model.safetensors"] = family(base, "model.safetensors") },
      "config.json", use_path)
  end,
}

targets.safetensors = {
  suffix = ".safetensors",
  bases = function() return families end,
  make = function(base)
    local file = read(family(base, "model.safetensors"))
    local length = ("<i8"):unpack(file)
    local header, data = file:sub(9, 8 + length), file:sub(9 + length)
    local text = R(2) == 1 and mutate.bytes(header)
      or mutate.json(once("header " .. base, function() return mutate.decode(header) end))
    if R(10) == 1 then data = data:sub(1, R(0, #data)) end
    return ("<i8"):pack(R(20) == 1 and pick(mutate.integers) or #text) .. text .. data
  end,
  try = function(path, base)
    return with_folder(path, { ["config.json"] = family(base, "config.json") },
      "model.safetensors", use_path)
  end,
}

local shard = "model-00001-of-00001.safetensors"
targets.index = {
  suffix = ".json",
  bases = function() return families end,
  make = function(base)
    local file, map = read(family(base, "model.safetensors")), {}
    for name in pairs(mutate.decode(file:sub(9, 8 + ("<i8"):unpack(file)))) do
      if name ~= "__metadata__" then map[name] = shard end
    end
    return mutate.json { metadata = { total_size = 1 }, weight_map = map }
  end,
  try = function(path, base)
    return with_folder(path, { ["config.json"] = family(base, "config.json"),
      [shard] = family(base, "model.safetensors") }, "model.safetensors.index.json", use_path)
  end,
}

-- What lies beside a model's weights, in models/tiny.
for _, name in ipairs { "generation_config.json", "tokenizer_config.json" } do
  targets[name:match "^%l+_config" ] = {
    suffix = ".json",
    bases = function() return { "tiny" } end,
    make = function() return mutate.json(parsed("models/tiny/" .. name)) end,
    try = function(path)
      local others = {}
      for _, other in ipairs { "config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "generation_config.json" } do
        if other ~= name then others[other] = "models/tiny/" .. other end
      end
      return with_folder(path, others, name, use_path)
    end,
  }
end

-- ---- tokenizers ---------------------------------------------------------------------------------

local function pattern()
  return R(2) == 1 and { Regex = pick(mutate.texts) } or { String = pick(mutate.texts) }
end
local function normalizer()
  return pick { { type = "NFC" }, { type = "NFKD" }, { type = "Lowercase" },
    { type = "Strip", strip_left = true, strip_right = R(2) == 1 },
    { type = "Prepend", prepend = pick(mutate.texts) },
      { type = "Replace", pattern = pattern(), content = pick(mutate.texts) } }
end
local function pre_tokenizer()
  return pick { { type = "ByteLevel", add_prefix_space = R(2) == 1, use_regex = R(2) == 1 },
    { type = "Split", pattern = pattern(), invert = R(2) == 1,
      behavior = pick { "Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
        "Contiguous" } },
    { type = "Digits", individual_digits = true }, { type = "Whitespace" },
      { type = "WhitespaceSplit" }, { type = "Punctuation" },
    { type = "Metaspace", replacement = "▁", prepend_scheme = pick { "always", "first",
      "never" } } }
end
local function decoder()
  return pick { { type = "ByteLevel" }, { type = "ByteFallback" }, { type = "Fuse" },
    { type = "Metaspace", replacement = "▁" }, { type = "Replace",
      pattern = { String = pick(mutate.texts) }, content = pick(mutate.texts) },
        { type = "Strip", content = " ", start = R(0, 2), stop = R(0, 2) } }
end
local function sequence(one, key)
  local list = {}
  for i = 1, R(4) do list[i] = one() end
  return { type = "Sequence", [key] = list }
end

targets.tokenizer = {
  suffix = ".json",
  bases = function()
    return once("tokenizers", function()
      local names = {}
      local list <close> = assert(io.popen "ls -d spec/fixtures/tokenizers/*/tokenizer.json")
      for path in list:lines() do
        if #helper.read(path) < 60000 then
          names[#names + 1] = path:match "([^/]+)/tokenizer%.json$"
        end
      end
      return names
    end)
  end,
  make = function(base)
    local path = helper.fixture(("tokenizers/%s/tokenizer.json"):format(base))
    local how = R(4)
    if how == 1 then return mutate.bytes(read(path)) end
    local v = mutate.copy(parsed(path))
    if how >= 3 then
      if R(2) == 1 then v.normalizer = sequence(normalizer, "normalizers") end
      if R(2) == 1 then v.pre_tokenizer = sequence(pre_tokenizer, "pretokenizers") end
      if R(2) == 1 then v.decoder = sequence(decoder, "decoders") end
    end
    return how == 3 and mutate.encode(v) or mutate.json(v)
  end,
  try = function(path)
    local t, message, code = pyramid.tokenizer(path)
    if not t then return nil, message, code, true end
    local ok
    ok, message, code = use_tokenizer(t)
    t:close()
    return ok, message, code
  end,
}

-- ---- templates ----------------------------------------------------------------------------------

local function messages()
  local list = {}
  for i = 1, R(0, 5) do
    list[i] = { role = pick { "user", "assistant", "system", "tool", "", "user\n", "%1" },
      content = pick { "", "hi", "%1 %d %%", "</think>", "<think>x</think>y",
        " \n x \u{a0}", "<|im_end|>", "\0", (" "):rep(5000) } }
  end
  return list
end

local statements = { "{{ messages }}", "{{ messages[0] }}", "{{ x * 99 }}",
  "{{ 'a' * 1000000000 }}", "{{ namespace(x=1) }}",
    "{% set ns = namespace(x=messages) %}{{ ns.x }}", "{{ [messages, messages] | tojson }}",
      "{% for i in range(1000000000) %}x{% endfor %}", "{{ messages | length ** 99 }}",
        "{{ (((((((((1))))))))) }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ 'x'.join(messages) }}",
          "{{ nothing.at.all }}", "{{ none + 1 }}", "{{ raise_exception('x') }}",
            "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(1) }}", "{{ strftime_now('%Y') }}", "",
              "{{ messages | selectattr('role', 'equalto', 'user') | list }}",
                "{{ 'a' | replace('', 'b') }}", "{{ range(10)[::-1] }}",
                  "{{ -9223372036854775808 // -1 }}" }
local words = { "messages", "loop", "role", "content", "none", "true", "not", "in", "is",
  "defined", "namespace", "range", "join", "trim", "0", "-1", "x" }

targets.template = {
  suffix = ".jinja",
  bases = function()
    return once("templates", function()
      local names = {}
      local list <close> = assert(io.popen "ls spec/fixtures/chat/*.jinja")
      for path in list:lines() do names[#names + 1] = path:match "([^/]+)%.jinja$" end
      return names
    end)
  end,
  make = function(base)
    local text = read(helper.fixture(("chat/%s.jinja"):format(base)))
    if R(3) > 1 then
      local count, which = select(2, text:gsub("{[{%%].-[%%}]}", "")), 0
      local chosen = R(1, math.max(1, count))
      return (text:gsub("{[{%%].-[%%}]}", function(statement)
        which = which + 1
        if which == chosen then return pick(statements) end
        return R(count) == 1 and statement:gsub("[%w_]+",
          function(word) return R(3) == 1 and pick(words) or word end) or nil
      end))
    end
    text = mutate.bytes(text)
    return R(3) == 1 and mutate.bytes(text .. pick(statements)) or text
  end,
  try = function(path)
    local text = helper.read(path)
    if not text:find "[{\n]" then text = text .. "\n" end
    math.randomseed(#text)
    for _ = 1, 3 do
      local out, message, code = chat.render(text, messages(),
        { add_generation_prompt = R(2) == 1, bos = "<s>", eos = "</s>", thinking = R(2) == 1 })
      if not out then return nil, message, code end
    end
    return true
  end,
}

-- ---- what we write ourselves --------------------------------------------------------------------

local function fnv(s)
  local h = 0xcbf29ce484222325
  for i = 1, #s do h = (h ~ s:byte(i)) * 0x100000001b3 end
  return h
end

local saved = { full = {}, pyramidinfer = {}, streaming = { rotate = true }, h2o = {}, tova = {},
  snapkv = {}, d2o = {}, adakv = {}, demote = { rows = 8 }, recall = { rows = 8 } }
-- Tiers of the caches of these bases: `recall` over few bits, which begin after 64 rows.
local saved_tiers = { demote = { hot = "f32", warm = "f16" }, recall = { hot = "q4", warm = "q2" } }
local function cache_model()
  return once("cache model", function() return assert(pyramid.model(family("codellama",
    ""):gsub("/$", ""), { threads = 1 })) end)
end
local function policy_of(base)
  return once("policy " .. base, function()
    return assert(pyramid.policy(base, base ~= "full" and saved[base] or nil))
  end)
end

targets.cache = {
  suffix = ".bin",
  bases = function() return { "adakv", "d2o", "demote", "full", "h2o", "pyramidinfer", "recall",
    "snapkv", "streaming", "tova" } end,
  make = function(base)
    local bytes = once("cache " .. base, function()
      local cache <close> = assert(cache_model():cache { policy = policy_of(base),
        tiers = saved_tiers[base] })
      local ids, path = {}, os.tmpname()
      for i = 1, saved_tiers[base] and 100 or 40 do ids[i] = i * 7 % 90 end
      assert(cache:prefill(ids))
      for i = 1, 7 do assert(cache:step(i)) end
      assert(cache:save(path))
      local out = helper.read(path)
      os.remove(path)
      return out
    end)
    -- The checksum is put right, so that what it guards is reached; numbers of 8 bytes are most of
    -- what lies at the front.
    local body = bytes:sub(1, -9)
    for _ = 1, R(3) do
      if R(4) == 1 then
        body = mutate.bytes(body)
      else
        local at = 8 * R(0, math.min(#body // 8 - 1, R(2) == 1 and 40 or 800))
        body = body:sub(1, at) .. ("<i8"):pack(R(2) == 1 and R(0, 80) or pick(mutate.integers))
          .. body:sub(at + 9)
      end
    end
    return R(30) == 1 and mutate.bytes(bytes) or body .. ("<i8"):pack(fnv(body))
  end,
  try = function(path, base)
    local cache, message, code = cache_model():load_cache(path, { policy = policy_of(base),
      tiers = saved_tiers[base] })
    if not cache then return nil, message, code, true end
    math.randomseed(#helper.read(path))
    local ok = true
    for _ = 1, R(30) do
      ok, message, code = cache:step(R(0, 80))
      if not ok then break end
    end
    if ok then
      local fork <close> = assert(cache:fork())
      ok, message, code = fork:prefill { 1, 2, 3, 4, 5, 6, 7, 8, 9 }
    end
    if ok then ok, message, code = cache:save(path .. ".again") end
    os.remove(path .. ".again")
    for layer = 1, cache_model().config.layers do cache:positions(layer, 1) end
    cache:close()
    if not ok then return nil, message, code end
    return true
  end,
}

targets.results = {
  suffix = ".jsonl",
  bases = function() return { "compare" } end,
  make = function()
    local lines = {}
    for i = 1, 4 do
      local v = { format = "pyramid compare 1", key = "k" .. i, seconds = i * 1.5,
        rows = { i, 2, 3 } }
      lines[i] = R(2) == 1 and mutate.json(v) or mutate.encode(v)
    end
    local text = table.concat(lines, "\n") .. (R(2) == 1 and "\n" or "")
    return R(3) == 1 and mutate.bytes(text) or text
  end,
  try = function(path)
    local list, message, code = results.open(path, "pyramid compare 1")
    if not list then return nil, message, code or "format", true end
    local ok
    ok, message = list:add("more", { seconds = 1 })
    list:close()
    if not ok then return nil, message, "io" end
    return true
  end,
}

targets.http = require "spec.fuzz.http"

targets.json = {
  suffix = ".json",
  bases = function() return { "config", "tiny" } end,
  make = function(base)
    return mutate.json(parsed(base == "tiny" and "models/tiny/tokenizer_config.json"
      or family("qwen3", "config.json")))
  end,
  try = function(path)
    local value, message, code = json.decode(helper.read(path))
    if value == nil then return nil, message, code or "format" end
    local text = json.encode(value)
    if text ~= json.encode(json.decode(text)) then error "what was written is not read again" end
    return true
  end,
}

-- Grammars and schemas: what is read is asked about texts, its own among them.
local grammars = { list = [==[
root ::= "[" (item ("," item){0,30})? "]" # a list
item ::= [0-9]+ | "\u00e9" [^a-z"\\\x41]? | ("a" | "b"){2,} | (root)* "x" | .
]==], json = [==[
root ::= object
value ::= object | array | string | "true" | "null"
object ::= "{" (string ":" value ("," string ":" value)*)? "}"
array ::= "[" (value ("," value)*)? "]"
string ::= "\"" ([^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
]==] }

local function use_grammar(grammar, message, code)
  if not grammar then return nil, message, code end
  local ok = true
  for _, text in ipairs { "", "[1,2]", '{"a":["b",null]}', ("["):rep(300), ("a"):rep(300),
    "é\xff" } do
    if ok ~= nil then ok, message, code = grammar:match(text) end
  end
  grammar:close()
  if ok == nil then return nil, message, code end
  return true
end

targets.gbnf = {
  suffix = ".gbnf",
  bases = function() return { "json", "list" } end,
  make = function(base) return mutate.bytes(grammars[base]) end,
  try = function(path) return use_grammar(pyramid.grammar(helper.read(path))) end,
}

local schemas = { object = [==[{ "type": "object", "properties": { "a": { "type": "string",
  "minLength": 1, "maxLength": 9 }, "b": { "$ref": "#/$defs/x" }, "c": { "pattern": "^a[b-d]{2}|x$" } },
  "required": ["a", "z"], "additionalProperties": { "type": ["integer", "null"] }, "maxProperties": 4,
  "$defs": { "x": { "anyOf": [{ "$ref": "#" }, { "enum": [1, "two", [3]] }] } } }]==],
  array = [==[{ "type": "array", "prefixItems": [{ "const": { "k": 1 } }, { "format": "date" }],
  "items": { "oneOf": [{ "type": "integer", "minimum": -5, "exclusiveMaximum": 77 },
  { "type": "number", "minimum": 77.25, "maximum": 99.5 }, { "allOf": [{ "type": "string" }] }] },
  "minItems": 1, "maxItems": 6 }]==] }

targets.schema = {
  suffix = ".json",
  bases = function() return { "array", "object" } end,
  make = function(base)
    if R(4) == 1 then return mutate.bytes(schemas[base]) end
    return mutate.json(once("schema " .. base, function() return mutate.decode(schemas[base]) end))
  end,
  try = function(path) return use_grammar(pyramid.grammar { schema = helper.read(path) }) end,
}

-- ---- policies -----------------------------------------------------------------------------------

local big = { 0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 64, 1000, 65535, 0x7fffffff, 1 << 32 }
local factors = { 0, 1, -1, 0.5, 1e-38, 1e38, -1e38, 2, 1e-45 }

-- Misuse raises at once, where scores are made: then another is taken.
local function attempt(make, ...)
  local ok, value = pcall(make, ...)
  return ok and value or nil
end

-- plain: no attention and no function of Lua, which not every place can have.
local function some_score(depth, plain)
  local how = R(1, depth > 0 and 19 or 11)
  if plain and (how == 5 or how == 6 or how == 9 or how == 11) then how = 1 end
  local signals = { "key_norm", "value_norm", "position", "key_similarity", "output_norm", "place",
    "redundancy" }
  local e
  if how == 1 and R(3) == 1 then e = score.probed()
  elseif how == 2 and R(3) == 1 then e = attempt(score.tokens, { pick(big), R(0, 300) })
  elseif how <= 4 then e = score[pick(signals)]()
  elseif how == 5 then e = attempt(score.attention,
    { queries = pick(big), ramp = R(3) == 1 and pick(factors) or nil,
      reduce = pick { "mean", "sum", "max", "variance", "entropy" },
      heads = pick { "mean", "sum", "max" } })
  elseif how == 6 then e = attempt(score.history,
    { decay = pick { 0, 1, 0.5 }, heads = pick { "mean", "sum", "max" } })
  elseif how == 7 then e = score.random(R(0, 9))
  elseif how == 8 then e = attempt(score.const, pick(factors))
  elseif how == 9 then e = attempt(score.expected,
    { future = pick { 1, 16, 512 }, sinks = pick { 0, 4, 100 } })
  elseif how == 10 then e = attempt(score.lag, { lag = pick { 1, 4, 128 } })
  elseif how == 11 then
    local which = R(4)
    e = attempt(score.custom, function(l)
      local out = {}
      for i = 1, which == 4 and R(0, 3) or l.rows do
        out[i] = which == 1 and 0 / 0 or which == 2 and (i % 3 == 0 and 1 / 0 or -1 / 0) or i
      end
      return out
    end)
  else
    local a, b = some_score(depth - 1, plain), some_score(depth - 1, plain)
    if how == 12 then e = attempt(function() return a + b end)
    elseif how == 13 then e = attempt(function() return a * b end)
    elseif how == 14 then e = attempt(function() return a * pick(factors) end)
    elseif how == 15 then e = attempt(function() return a:pool(pick { "max", "avg" },
      pick { 1, 3, 7, 101, 1 << 30 | 1 }) end)
    elseif how == 16 then e = attempt(function() return pick { a:normalize(), a:softmax() } end)
    elseif how == 17 then e = attempt(function() return a:chunk(pick { 1, 2, 100, 1 << 30 }) end)
    elseif how == 18 then
      e = attempt(function()
        return pick { a:sum(), a:max(), a:log(), a:power(pick { 0.5, 3 }), a:above(pick(factors)) }
      end)
    else e = attempt(function() return a:top(pick { 1, 4, 100 }) end) end
  end
  return e or score.value_norm()
end

-- What no policy should return, in place of what it should.
local function nonsense()
  return pick { 1, "x", true, {}, { 1 }, 0 / 0, 1 / 0, -1, 1 << 62, print,
    setmetatable({}, { __index = function() return 1 end }),
    { keep = "x" }, { keep = {} }, { keep = 0 / 0 }, { nothing = 1 } }
end

local function some_plan(l, plain)
  local how = R(10)
  if how == 1 then return nil end
  local plan, by_head = {}, false
  if how <= 5 then plan.keep = R(1, math.max(1, l.rows))
  elseif how == 6 then plan.keep = pick(big)
  elseif how == 7 then
    by_head, plan.keep = true, {}
    for i = 1, l.kv_heads do plan.keep[i] = R(1, math.max(1, l.rows)) end
  else
    plan.mass, plan.least = R(), pick { 1, 5, 1 << 30 }
    plan.above = R(3) == 1 and pick { 0, -1e9, 0.3, 0 / 0, 1e38, 1e300 } or nil
  end
  if R(3) > 1 then
    plan.guard = { first = R(9) == 1 and pick(big) or R(0, 6),
      last = R(9) == 1 and pick(big) or R(0, 10) }
  end
  plan.share = by_head and "head" or pick { "layer", "head", "pool", "model" }
  plan.prune = plan.share == "layer" and pick { "cache", "hidden", "both" } or nil
  plan.rotate = R(4) == 1 and pick { "keep", "compact" } or nil
  plan.merge = R(4) == 1 and pick { true, { threshold = pick { 0, 0.5, -1, 1e38 } } } or nil
  if R(8) > 1 then plan.score = some_score(R(0, 3), plain and R(6) > 1) end
  if R(5) > 1 then            -- as those want it who refuse plans
    if plan.rotate == "compact" and R(2) == 1 then plan.rotate = nil end
    if plan.rotate == "compact" then
      plan.share, plan.prune, plan.keep = "layer", "cache",
        type(plan.keep) == "number" and plan.keep or 1
    end
    if plan.merge and plan.prune == "hidden" then plan.merge = nil end
    if type(plan.merge) == "table" then plan.merge.threshold = 0.5 end
    if plan.least then plan.least = 1 end
    if plan.above then plan.above = 0.1 end
    if plan.mass and plan.share == "pool" then plan.share = "layer" end
    if math.type(plan.keep) == "integer" then
      plan.keep = math.max(1, math.min(plan.keep, l.rows))
    end
  end
  if R(40) == 1 then
    plan[pick { "keep", "mass", "above", "guard", "share", "prune", "rotate", "merge",
      "score" }] = nonsense()
  end
  return R(60) == 1 and nonsense() or plan
end

local function some_preparation()
  if R(4) == 1 then return nil end
  local function lead()
    return pick { {}, { 3 }, { { 1, 2, 3 }, R(0, 40), "text" }, { big[R(#big)] } }
  end
  local how = { track = score.attention { reduce = pick { "mean", "sum", "max" },
    heads = pick { "mean", "sum", "max" }, queries = pick { 0, 1, 5, 1 << 30 } },
    block = pick { 0, 1, 7, 30, 1 << 40 }, lead = lead(), first = R(2) == 1 and lead() or nil,
    among = pick { "all", "block" }, sinks = pick { 0, 4, 1 << 40 } }
  if R(9) == 1 then how[pick { "track", "block", "lead", "among", "sinks" }] = nonsense() end
  return R(60) == 1 and nonsense() or how
end

local function some_trigger()
  if R(6) == 1 then return nil end
  local t = {}
  if R(2) == 1 then t.every = R(5) == 1 and pick(big) or R(1, 6) end
  if R(2) == 1 then t.over = R(5) == 1 and pick(big) or R(1, 60) end
  if R(2) == 1 then t.window = R(8) == 1 and pick(big) or R(0, 12) end
  t.once = R(3) == 1 and (R(9) == 1 or t.every and not t.over) or nil
  if R(2) == 1 then
    t.track = R(4) == 1 and score.history { decay = pick { 1, 0.9, 0 } }
      or attempt(score.attention, { queries = pick { 1, 4, 16 } })
  end
  if R(40) == 1 then t[pick { "every", "over", "window", "once", "track" }] = nonsense() end
  return R(60) == 1 and nonsense() or t
end

local function policy_model(base)
  return once("model " .. base, function()
    return assert(pyramid.model(family(base, ""):gsub("/$", ""), { threads = 2 }))
  end)
end

local function check_positions(cache, model)
  for layer = 1, model.config.layers do
    for head = 1, model.config.kv_heads do
      local before = -1
      for _, position in ipairs(cache:positions(layer, head)) do
        if position <= before or position >= cache:tokens() then
          error(("layer %d, head %d: position %d after %d"):format(layer, head, position, before))
        end
        before = position
      end
    end
  end
end

targets.policy = {
  suffix = ".txt",
  bases = function() return { "codellama", "qwen3", "llama-gqa-llama3", "mistral", "qwen2" } end,
  make = function() return tostring(R(1 << 40)) end,
  try = function(path, base)
    math.randomseed(math.tointeger(tonumber(helper.read(path))))
    local model = policy_model(base)
    local vocab = model.config.vocab
    local valid = R(3) == 1 and random_policy(R(1 << 30),
      model.config.heads ~= model.config.kv_heads)
    local p = valid or pyramid.policy { name = "fuzzed", defaults = {},
      prepare = R(2) == 1 and some_preparation or nil,
      prefill = function(_, l) return some_plan(l) end,
      trigger = function() return some_trigger() end,
        decode = function(_, l) return some_plan(l, true) end }
    local cache, message, code = model:cache { policy = p,
      dtype = pick { "f16", "f32", "bf16", "fp8_e4m3" },
        budget = R(5) == 1 and R(1000, 200000) or nil }
    if not cache then return nil, message, code end
    local ok, fork = true, nil
    for _ = 1, R(3) do
      local ids = {}
      for i = 1, R(90) do ids[i] = R(0, vocab - 1) end
      ok, message, code = cache:prefill(ids, { all = R(9) == 1 or nil })
      if not ok then break end
      if R(5) == 1 then
        ok, message, code = cache:probe(ids, score.attention { reduce = pick { "sum", "max" } })
        if ok and R(2) == 1 then ok, message, code = cache:evict(p) end
        if not ok then break end
      end
      if R(4) == 1 and not fork then fork = cache:fork() end
      for _ = 1, R(0, 20) do
        ok, message, code = (fork and R(2) == 1 and fork or cache):step(R(0, vocab - 1))
        if not ok then break end
      end
      check_positions(cache, model)
      if fork then check_positions(fork, model) end
      if not ok then break end
    end
    if fork then fork:close() end
    -- What failed left the cache as it was: it is still one that can be read and closed.
    check_positions(cache, model)
    cache:close()
    if not ok then return nil, message, code end
    return true
  end,
}

return targets
