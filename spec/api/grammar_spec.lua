-- Grammars: the matcher against one that tries everything out, masks against matching each token's
-- bytes, and what samplers, generations and batches make of them.
local core = require "pyramid.core"
local helper = require "spec.helper"
local json = require "pyramid.json"
local plain = require "spec.support.plain_grammar"
local pyramid = require "pyramid"

local R = math.random

describe("a grammar", function()
  it("matches what a matcher matches that tries everything out", function()
    local seed = os.time()
    math.randomseed(seed)
    local compared, whole = 0, 0
    for n = 1, 400 do
      local rules = plain.random()
      local text = plain.gbnf(rules)
      local grammar, message = pyramid.grammar(text)
      local where = ("seed %d, grammar %d:\n%s\n"):format(seed, n, text)
      assert.truthy(grammar, where .. tostring(message))
      for _ = 1, 12 do
        local s = R(2) == 1 and plain.sample(rules) or plain.noise()
        if R(3) == 1 and #s > 0 then s[R(#s)] = plain.noise()[1] or "a" end
        local expected = plain.match(rules, s)
        if expected ~= nil then
          local bytes = table.concat(s)
          local found, why = grammar:match(bytes)
          compared = compared + 1
          assert.equal(expected, found == "whole", where .. json.quote(bytes) .. tostring(why))
          if expected then
            whole = whole + 1
            -- each beginning of it, in the middle of characters too, is one of a text
            for i = 0, #bytes - 1 do assert.truthy(grammar:match(bytes:sub(1, i)), where) end
          end
        end
      end
      grammar:close()
    end
    assert.is_true(compared > 2000 and whole > 500, ("%d, %d"):format(compared, whole))
  end)

  it("knows what can begin none of its texts", function()
    local grammar = assert(pyramid.grammar [[
      root ::= "é" [0-9]{2} ("x" | "€y")   # E9 is C3 A9
    ]])
    for text, wanted in pairs { [""] = "part", ["\xc3"] = "part", ["\xc3\xa8"] = false,
      ["é1"] = "part", ["é123"] = false, ["é12\xe2\x82"] = "part", ["é12\xe2\x82\xad"] = false,
      ["é12€y"] = "whole", ["é12x"] = "whole", ["é12xx"] = false, ["\xff"] = false } do
      assert.equal(wanted, grammar:match(text), json.quote(text))
    end
  end)

  it("reads all of the notation", function()
    local function matches(text, whole, others)
      local grammar = assert(pyramid.grammar(text))
      for _, one in ipairs(whole) do assert.equal("whole", grammar:match(one), text .. one) end
      for _, one in ipairs(others) do assert.not_equal("whole", grammar:match(one), text .. one) end
    end
    matches('root ::= a-b_1 | (\n "x" # one\n | "y"\n) \na-b_1 ::= "\\t\\"\\\\"', { "x", "y", '\t"\\' },
      { "", "a" })
    matches('root ::= "ab"{2,3} "c"{2} "d"{0,1} [e-g]{1,}', { "ababcce", "abababccdefg" },
      { "abcce", "ababccd", "ababababcce" })
    matches("root ::= [^\\n\\]] [a\\-c-e] . [\\x41\\u00e9]?", { "xaz", "x-\né", "€e😀A" },
      { "\naz", "]az", "xbz", "xa" })
    matches('root ::=\n  "a"* |\n "b"+', { "", "aaa", "b" }, { "ab" })
    matches('root ::= ("a"?)* ((("b")))', { "b", "aab" }, { "a" })
    matches('root ::= ""', { "" }, { "a" })
    matches('root ::= l\r\nl ::= "a" l | ""\r\n', { "", ("a"):rep(5000) }, { "ab" })
    matches('root ::= "(" root ")" | "x"', { ("("):rep(3000) .. "x" .. (")"):rep(3000) },
      { ("("):rep(3000) .. "x" .. (")"):rep(2999) })
  end)

  it("refuses what is none, with the line", function()
    for text, wanted in pairs {
      ["root ::= root \"a\" | \"b\""] = "rule 'root' can begin with itself",
      ["root ::= a\na ::= b? c\nb ::= \"x\"\nc ::= \"\" a"] = "can begin with itself",
      ["root ::= ((a){2,3})*\na ::= (b)\nb ::= [x]? root"] = "can begin with itself",
      ["x ::= \"\""] = "there is no rule 'root'",
      ["root ::= a\n\na ::= bcd"] = "line 3: rule 'bcd' is used, and not defined",
      ["root ::= \"a\nb\""] = "line 1: a literal or a class is not closed",
      ["root ::= [a"] = "line 1: a literal or a class",
      ["root ::= \"\\q\""] = "an escape that GBNF",
      ["root ::= \"\\u12\""] = "hexadecimal", ["root ::= \"\\ud800\""] = "no character",
      ["root ::= [b-a]"] = "ends before it begins", ["root ::= (\"a\""] = "a group wants )",
      ["root ::= * "] = "nothing before a repetition", ["root ::= \"a\"{3,2}"] = "below its least",
      ["root ::= \"a\"{99999}"] = "65536", ["root = x"] = "::=",
      ["\n\n::= x"] = "line 3: a rule is wanted",
      ["root ::= \"a\"\nroot ::= \"b\""] = "line 2: a rule is defined twice",
      ["root ::= \"a\" ) "] = "the end of the rule", ["root ::= <think>"] = "whole tokens",
      ["root ::= \"\xff\""] = "UTF-8", [""] = "there is no rule 'root'",
      ["root ::= " .. ("("):rep(300) .. (")"):rep(300)] = "nested too deep",
      ["root ::= \"a\"" .. ("*"):rep(300)] = "nested too deep",
      [("#"):rep(1 << 20) .. "\n"] = "1 MiB",
    } do
      local grammar, message, code = pyramid.grammar(text)
      assert.is_nil(grammar)
      assert.equal("format", code)
      assert.truthy(message:find(wanted, 1, true), message)
    end
    local _, message, code = pyramid.grammar 'root ::= (("a" "b"){60000} "c"){60000} (("d" "e"){60000} "f"){50000} ("gh"){60000}'
    assert.equal("unsupported", code)
    assert.truthy(message:find "too large", message)
    assert.error_matches(function() pyramid.grammar(3) end, "a text is wanted")
    assert.error_matches(function() pyramid.grammar { text = "x" } end,
      "known: file, schema, schema_file")
    _, message, code = pyramid.grammar { file = "nowhere.gbnf" }
    assert.equal("io", code)
    assert.truthy(message:find "nowhere.gbnf", message)
  end)

  it("ends what is too ambiguous or too deep with an error, in bounded work", function()
    local grammar = assert(pyramid.grammar 'root ::= ("a" root "b" | "a" root "c" | "a")')
    local found, message, code = grammar:match(("a"):rep(40))
    assert.is_nil(found)
    assert.equal("unsupported", code)
    assert.truthy(message:find("ambiguous", 1, true) and message:find("'root'", 1, true), message)
    grammar = assert(pyramid.grammar 'root ::= "(" root ")" | "x"')
    found, message, code = grammar:match(("("):rep(8 << 20))
    assert.is_nil(found)
    assert.equal("unsupported", code)
    assert.truthy(message:find("64 MiB", 1, true), message)
    assert.equal("whole", grammar:match "((x))")        -- it can be used again
  end)

  it("forgets states, and goes on where it is, in texts without end", function()
    local grammar = assert(pyramid.grammar [[
      root ::= ("[" [0-9]{1,2000} "]" | "{" [a-z]{1,3000} "}")*
    ]])
    local parts = {}
    for i = 1, 300 do
      parts[i] = i % 2 == 0 and "[" .. ("7"):rep(i * 6) .. "]" or "{" .. ("x"):rep(i * 10) .. "}"
    end
    local text = table.concat(parts)
    assert.equal("whole", grammar:match(text))
    assert.is_false(grammar:match(text .. "[" .. ("7"):rep(2001)))
  end)
end)

-- ---- masks --------------------------------------------------------------------------------------

-- The ids that a sampler may pick next, found by logits of which one is finite each.
local function allowed(sampler, vocab)
  local out, logits = {}, {}
  for i = 1, vocab do logits[i] = -math.huge end
  for id = 0, vocab - 1 do
    logits[id + 1] = 0
    local copy <close> = assert(sampler:clone())
    local picked, message = copy:pick(logits)
    if picked then
      assert.equal(id, picked)
      out[id] = true
    else
      assert.truthy(message:find("may follow", 1, true), message)
    end
    logits[id + 1] = -math.huge
  end
  return out
end

-- What each id adds to a text; nil where it adds none, or is no text.
local function bytes_of(tokenizer)
  local out, decoder <const> = {}, assert(tokenizer:decoder { raw = true, continues = true })
  for id = 0, tokenizer.vocab_size - 1 do
    if tokenizer:piece(id) and not tokenizer:is_special(id) and id ~= tokenizer.unknown then
      local text = assert(decoder:push(id))
      if text ~= "" then out[id] = text end
    end
  end
  decoder:close()
  return out
end

describe("a sampler's mask", function()
  it("is that of matching the text with each token behind it", function()
    local seed = os.time()
    math.randomseed(seed)
    for _, name in ipairs { "tokenizers/gpt2", "tokenizers/llama2", "tokenizers/unk" } do
      local tokenizer <close> = assert(pyramid.tokenizer(helper.fixture(name)))
      local vocab, bytes = tokenizer.vocab_size, bytes_of(tokenizer)
      assert.truthy(next(bytes), name)
      local ends = {}
      for _, id in ipairs(tokenizer.eos) do ends[id] = true end
      for n = 1, 5 do
        local rules = plain.random()
        local gbnf = plain.gbnf(rules)
        -- so that there is something to choose from
        gbnf = gbnf:gsub("root ::= r1", 'root ::= [a-z ]{0,3} ("é€" | r1 | "the " root)', 1)
        local grammar = assert(pyramid.grammar(gbnf))
        local sampler <close> = assert(pyramid.sampler { grammar = grammar, temperature = 1,
          seed = n })
        assert(sampler:begin(tokenizer:lexicon()))
        local text = ""
        for _ = 1, 3 do
          local mask, any = allowed(sampler, vocab), false
          for id = 0, vocab - 1 do
            local wanted
            if ends[id] then wanted = grammar:match(text) == "whole"
            else wanted = bytes[id] ~= nil and grammar:match(text .. bytes[id]) ~= false end
            assert.equal(wanted, mask[id] or false,
              ("seed %d: %s\ntext %q, id %d, %q"):format(seed, gbnf, text, id, bytes[id] or ""))
            any = any or wanted
          end
          if not any then break end
          local logits = {}
          for i = 1, vocab do logits[i] = R() end
          local id = assert(sampler:pick(logits))
          if ends[id] then
            assert.is_true(sampler:over())
            assert.is_nil(next(allowed(sampler, vocab)))
            break
          end
          text = text .. bytes[id]
        end
      end
    end
  end)

  it("lets all steps of a pick act within it", function()
    local tokenizer <close> = assert(pyramid.tokenizer(helper.fixture "tokenizers/gpt2"))
    local vocab = tokenizer.vocab_size
    local ids = {}
    for id = 0, vocab - 1 do
      local text = not tokenizer:is_special(id) and tokenizer:decode({ id }, { raw = true }) or ""
      if text:find "^[a-f]$" then ids[#ids + 1] = id end
    end
    assert.is_true(#ids >= 4)
    local logits = {}
    for i = 1, vocab do logits[i] = R() * 8 end
    table.sort(ids, function(a, b) return logits[a + 1] > logits[b + 1] end)
    local rank = {}
    for i, id in ipairs(ids) do rank[id] = i end
    local function picks(options)
      options.grammar = "root ::= [a-f]"
      local out = {}
      for seed = 1, 60 do
        options.seed = seed
        local sampler <close> = assert(pyramid.sampler(options))
        assert(sampler:begin(tokenizer:lexicon()))
        out[#out + 1] = assert(rank[assert(sampler:pick(logits))])
      end
      return math.max(table.unpack(out))
    end
    assert.equal(1, picks {})
    assert.equal(1, picks { temperature = 1, top_k = 1 })
    assert.is_true(picks { temperature = 50, top_k = 2 } == 2)
    assert.is_true(picks { temperature = 50 } > 2)
    assert.equal(1, picks { temperature = 0.01, min_p = 0.99 })
    assert.equal(1, picks { temperature = 0.001, top_p = 0.5 })
    assert.equal(2, picks { logit_bias = { [ids[1]] = -math.huge } })
  end)

  it("goes back to the beginning, and is copied with its place", function()
    local tokenizer <close> = assert(pyramid.tokenizer(helper.fixture "tokenizers/gpt2"))
    local logits = {}
    for i = 1, tokenizer.vocab_size do logits[i] = R() end
    local sampler <close> = assert(pyramid.sampler { grammar = 'root ::= "ab" "c"?',
      temperature = 1 })
    assert.error_matches(function() sampler:pick(logits) end, "knows no tokenizer yet")
    assert(sampler:begin(tokenizer:lexicon()))
    local function write(one)
      local out = {}
      while not one:over() do out[#out + 1] = assert(one:pick(logits)) end
      return (tokenizer:decode(out, { skip_special = true }):gsub("<|.-|>", ""))
    end
    local first = assert(sampler:pick(logits))
    local copy <close> = assert(sampler:clone())
    local rest = write(copy)
    assert.equal(rest, write(sampler))
    local whole = tokenizer:decode { first } .. rest
    assert.truthy(whole == "ab" or whole == "abc", whole)
    assert.equal("argument", select(3, sampler:pick(logits)))
    sampler:reset()
    whole = write(sampler)
    assert.truthy(whole == "ab" or whole == "abc", whole)
    assert(sampler:begin())
    whole = write(sampler)
    assert.truthy(whole == "ab" or whole == "abc", whole)
  end)

  it("takes what a function of Lua's allows", function()
    local seen = {}
    local sampler <close> = assert(pyramid.sampler { allow = function(ids)
      seen[#seen + 1] = #ids
      if #ids == 0 then return { 2, 3 } end
      if #ids == 1 then return nil end
      return {}
    end })
    local logits = { 9, 8, 1, 2 }
    assert.equal(3, sampler:pick(logits))
    assert.equal(0, sampler:pick(logits))
    assert.equal("argument", select(3, sampler:pick(logits)))
    assert.same({ 0, 1, 2 }, seen)
    sampler:begin()
    assert.equal(3, sampler:pick(logits))
    for _, wrong in ipairs { 3, "x" } do
      local bad <close> = pyramid.sampler { allow = function() return wrong end }
      assert.error_matches(function() bad:pick(logits) end, "allow must return")
    end
    local bad <close> = pyramid.sampler { allow = function() error "mine" end }
    assert.error_matches(function() bad:pick(logits) end, "mine")
    assert.error_matches(function() pyramid.sampler { allow = 3 } end, "allow must be a function")
    assert.error_matches(function() pyramid.sampler { grammar = "", schema = {} } end, "not both")
    assert.equal("format", select(3, pyramid.sampler { grammar = "root" }))
    assert.equal("unsupported", select(3, pyramid.sampler { schema = { ["not"] = {} } }))
  end)
end)

-- ---- generations --------------------------------------------------------------------------------

local PERSON = [[{ "type": "object", "properties": { "name": { "type": "string", "maxLength": 12 },
  "age": { "type": "integer", "minimum": 0, "maximum": 120 },
  "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 2 } },
  "required": ["name", "age", "tags"], "additionalProperties": false }]]

local function written(run)
  local parts = {}
  for piece in run do parts[#parts + 1] = piece end
  return table.concat(parts), run
end

describe("a generation with a grammar", function()
  local model

  setup(function() model = assert(pyramid.model("models/tiny", { threads = 2 })) end)
  teardown(function() model:close() end)

  it("writes what the schema wants, at any temperature, and ends there", function()
    local grammar = assert(pyramid.grammar { schema = PERSON })
    for seed = 1, 20 do
      local text, run = written(assert(model:generate("Once", { max_tokens = 300,
        sampler = { schema = PERSON, temperature = 1.5, seed = seed } })))
      assert.equal("grammar", run.finish, run.message)
      assert.equal("whole", grammar:match(text), text)
      local value = assert(json.decode(text))
      assert.is_true(utf8.len(value.name) <= 12 and value.age <= 120 and #value.tags <= 2)
    end
  end)

  it("ends by the model's own token where the grammar may end, and not before", function()
    local ended = {}
    for seed = 1, 30 do
      local text, run = written(assert(model:generate("Once", { max_tokens = 12, ignore_eos = true,
        sampler = { grammar = 'root ::= "x"{2} "y"*', temperature = 3, seed = seed,
          logit_bias = { [model.tokenizer.eos[1]] = 6 } } })))
      ended[run.finish] = true
      assert.truthy(text:find "^xxy*$", text)
    end
    assert.is_true(ended.eos)
  end)

  it("begins anew with each generation, and says where there is no way on", function()
    local sampler <close> = assert(pyramid.sampler { grammar = 'root ::= "yes" | "no"' })
    local first = written(assert(model:generate("Well", { sampler = sampler })))
    assert.truthy(first == "yes" or first == "no", first)
    assert.equal(first, (written(assert(model:generate("Well", { sampler = sampler })))))
    local none, run = written(assert(model:generate("Well",
      { sampler = { grammar = 'root ::= "y" []' } })))
    assert.equal("error", run.finish)
    assert.equal("argument", run.code)
    assert.truthy(run.message:find("may follow", 1, true), run.message)
    assert.equal("", none:sub(2))
    local half = written(assert(model:generate("Well", { logprobs = true,
      sampler = { grammar = 'root ::= "yes" | "no"' } })))
    assert.equal(first, half)
  end)

  it("asks a function before each token", function()
    local comma = model:encode(",", { add = false })[1]
    local counts = {}
    local _, run = written(assert(model:generate("Once", { max_tokens = 4,
      sampler = { allow = function(ids)
        counts[#counts + 1] = #ids
        return { comma }
      end } })))
    assert.same({ 0, 1, 2, 3 }, counts)
    assert.equal("length", run.finish)
  end)

  it("is the same in a batch of different grammars, and on a device", function()
    local sources = { { schema = PERSON, temperature = 1, seed = 1 },
      { grammar = 'root ::= [a-z ]{5,20} "."', temperature = 1, seed = 2 }, { seed = 3 },
      { schema = PERSON, temperature = 1, seed = 4, repeat_penalty = 1.2 } }
    for _, device in ipairs { false, "emulated" } do
      local runtime_ok = not device or core.runtime { device = device } ~= nil
      local steps, first = device and 3 or 14, device and 3 or 1     -- an emulated one is slow
      local one = not device and model or runtime_ok
        and assert(pyramid.model("models/tiny", { threads = 2, device = device }))
      if one then
        local batch <close> = assert(one:batch())
        local handles, alone, texts = {}, {}, {}
        for i = first, #sources do
          local options = sources[i]
          local ids = assert(one:encode("Once upon a time there was " .. i))
          handles[i] = assert(batch:add(ids, assert(pyramid.sampler(options))))
          texts[i] = {}
          local run = assert(one:generate(ids, { max_tokens = steps, sampler = options }))
          alone[i] = {}
          for _, id in run do if id then alone[i][#alone[i] + 1] = id end end
        end
        local numbers = {}
        for i = first, #sources do numbers[handles[i]] = i end
        for _ = 1, steps do
          for _, entry in ipairs(assert(batch:step())) do
            local i = numbers[entry[1]]
            assert.truthy(entry.id)
            texts[i][#texts[i] + 1] = entry.id
            if entry.over then batch:remove(entry[1]) end
          end
        end
        for i = first, #sources do
          assert.same(alone[i], { table.unpack(texts[i], 1, #alone[i]) }, device or "cpu")
        end
        if device then one:close() end
      end
    end
    local batch <close> = assert(model:batch())
    local sampler <close> = assert(pyramid.sampler { grammar = 'root ::= "x"' })
    assert(batch:add({ 1, 2 }, sampler))
    assert.error_matches(function() batch:add({ 1, 2 }, sampler) end, "serves one sequence")
  end)

  it("holds a real model to its schema", function()
    if not helper.model then pending "needs models/fetched (make models)" end
    local real <close> = assert(pyramid.model(helper.model, { threads = 2 }))
    local grammar = assert(pyramid.grammar { schema = PERSON })
    for seed = 1, 5 do
      local text, run = written(assert(real:generate("Someone as JSON:", { max_tokens = 120,
        sampler = { schema = PERSON, temperature = 1.5, seed = seed } })))
      assert.equal("grammar", run.finish, run.message)
      assert.equal("whole", grammar:match(text), text)
    end
  end)
end)
