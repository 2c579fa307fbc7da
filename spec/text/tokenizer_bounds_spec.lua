-- Tokenizers that ask for much, from small files: work and memory are bounded, and what is bounded
-- gives the same ids.
local cjson = require "cjson"
local core = require "pyramid.core"
local helper = require "spec.helper"
local pyramid = require "pyramid"

local root = helper.fixture "tokenizers/"

local function path_of(name)
  return root .. name .. (name:find "^gguf" and "/vocab.gguf" or "")
end

describe("a small file cannot ask for much:", function()
  -- Loads a tokenizer.json made of these parts; a and b are its pieces.
  local function made(parts, runtime)
    local o = { model = { type = "BPE", vocab = { a = 0, b = 1 }, merges = {} } }
    for key, value in pairs(parts) do o[key] = value end
    local path = helper.tmp()
    helper.write(path, (cjson.encode(o):gsub('"merges":{}', '"merges":[]')))
    local t, message, code = pyramid.tokenizer(path, runtime and { runtime = runtime })
    os.remove(path)
    return t, message, code
  end
  local function split(expression)
    return { type = "Split", pattern = { Regex = expression }, behavior = "Isolated",
      invert = false }
  end
  local function replacements(count, from, to, kind)
    local list = {}
    for i = 1, count do
      list[i] = { type = "Replace", pattern = { [kind or "String"] = from }, content = to }
    end
    return list
  end

  -- Fails unless encoding is refused with these words, in a moment and within 64 MiB.
  local function refuses(parts, text, words, code)
    local runtime <close> = assert(core.runtime { threads = 1, memory = 64 << 20 })
    local t <close> = assert(made(parts, runtime))
    local started = os.clock()
    local ids, message, got = t:encode(text)
    assert.is_nil(ids)
    assert.matches(words, message, 1, true)
    assert.equal(code or "argument", got)
    assert.is_true(os.clock() - started < 15, "took " .. os.clock() - started .. " s")
    assert.is_true(runtime:memory_peak() < 64 << 20)
    assert.is_table(t:encode "a" or t:encode "")       -- and it is as before
  end

  it("matches that begin before the place where they were looked for", function()
    local words = "before the place where it was asked to look"
    for _, expression in ipairs { "(?(DEFINE)(\\Ka))(?<=(?1))",
      "(?(DEFINE)(\\K[ab]))(?<=(?1))|b" } do
      refuses({ pre_tokenizer = split(expression) }, "aaa", words, "format")
      refuses({ normalizer = { type = "Replace", pattern = { Regex = expression },
        content = "b" } }, "aaa", words, "format")
    end
    -- what is kept back by \K within the match itself is no such thing
    local t <close> = assert(made { pre_tokenizer = split "a\\Kb" })
    assert.same({ 0, 1, 0, 1 }, t:encode "abab")
  end)

  it("text that grows with every step", function()
    local words = "longer than 32 times"
    refuses({ normalizer = { type = "Sequence", normalizers = replacements(30, "a", "aa") } }, "a",
      words)
    refuses({ normalizer = { type = "Sequence",
      normalizers = replacements(30, "a", "aa", "Regex") } }, "a", words)
    for _, pattern in ipairs { { String = "a" }, { Regex = "(?=a)" } } do
      refuses({ normalizer = { type = "Replace", pattern = pattern,
        content = ("b"):rep(1 << 14) } }, ("a"):rep(1 << 14), words)
    end
    refuses({ normalizer = { type = "Prepend", prepend = ("b"):rep(1 << 17) } }, "a", words)
    refuses({ pre_tokenizer = { type = "Sequence",
      pretokenizers = { split "a", { type = "Metaspace", replacement = "\u{10ffff}",
        prepend_scheme = "always", split = false }, split "a",
          { type = "Metaspace", replacement = "\u{10fffe}", split = false }, split ".",
            { type = "Metaspace", replacement = "\u{10fffd}", split = false }, split ".",
              { type = "Metaspace", replacement = "\u{10fffc}", split = false } } } },
                ("a"):rep(1 << 16), "leave more to merge")
    refuses({ normalizer = { type = "Sequence", normalizers = replacements(5, "a", "aa") } },
      ("a"):rep(1 << 18), "leave more to merge")
    -- the most that Unicode itself makes of a text goes through, byte alphabet and all
    local t <close> = assert(made { normalizer = { type = "Sequence",
      normalizers = { { type = "NFKD" }, { type = "NFKC" },
        replacements(1, " ", "\u{2581}")[1] } },
          pre_tokenizer = { type = "Sequence", pretokenizers = { { type = "ByteLevel",
            add_prefix_space = false, use_regex = true }, split "x" } } })
    assert.is_table(t:encode(("\u{fdfa}"):rep(1 << 14)))
  end)

  it("added tokens, each normalised", function()
    local runtime <close> = assert(core.runtime { threads = 1, memory = 64 << 20 })
    local t, message = made({ normalizer = { type = "Sequence",
      normalizers = replacements(30, "a", "aa") },
        added_tokens = { { id = 2, content = "aaaa", normalized = true } } }, runtime)
    assert.is_nil(t)
    assert.matches("longer than 32 times", message, 1, true)
  end)

  it("expressions that look far ahead for every short match", function()
    local run = ("a"):rep(100000)
    for _, expression in ipairs { "a*c|a", "a*+c|a", "(?=a*+b)b|a", "(?>a*)c|a", "(?!a*c)a",
      "a(?=a*$)|a", "a*\\bc|a" } do
      refuses({ pre_tokenizer = split(expression) }, run, "gave up on this text")
      local t <close> = assert(made { pre_tokenizer = split(expression) })
      -- a text of some length may
      assert.equal(1000, #assert(t:encode(("a"):rep(1000))), expression)
    end
    refuses({ normalizer = { type = "Replace", pattern = { Regex = "a*c|a" }, content = "b" } },
      run, "gave up on this text")
  end)

  it("expressions that go back over many short matches", function()
    refuses({ pre_tokenizer = split "(?:a+)+c|a{30}" }, ("a"):rep(30000), "gave up on this text")
    refuses({ pre_tokenizer = split "(a|aa)+$|a{40}" }, (("a"):rep(40) .. "b"):rep(2000),
      "gave up on this text")
    refuses({ pre_tokenizer = split "(a(?1)?a|a)c|a" }, ("a"):rep(20000), "gave up on this text")
    refuses({ pre_tokenizer = split "(a*)\\1c|a" }, ("a"):rep(1 << 20), "gave up on this text")
    local dear = {}
    for i = 1, 1000 do dear[i] = ("[ab]{120}%s"):format(utf8.char(0x4e00 + i)) end
    refuses({ pre_tokenizer = split(table.concat(dear, "|") .. "|a") }, ("a"):rep(40000),
      "gave up on this text")
  end)

  it("expressions that are themselves too much", function()
    for expression, words in pairs { ["((((a{1000}){1000}){1000}){1000})"] = "regular expression",
      ["((((a{50}){50}){50}){50}){50}"] = "regular expression",
      [("("):rep(3000) .. "a" .. (")"):rep(3000)] = "regular expression",
        [("a"):rep(20000)] = "at most 16384",
      ["(?<=a{300})b"] = "looks back 300",
      [("["):rep(8000)] = "more than 8 deep", [("[a&&"):rep(4000)] = "more than 8 deep" } do
      local started = os.clock()
      local t, message, code = made { pre_tokenizer = split(expression) }
      if t then error("taken: " .. expression:sub(1, 40)) end
      assert.is_nil(t)
      assert.matches(words, message, 1, true)
      assert.is_truthy(code == "format" or code == "unsupported")
      assert.is_true(os.clock() - started < 2)
    end
  end)

  it("steps and ids around a text without number", function()
    local t, message, code = made { normalizer = { type = "Sequence",
      normalizers = replacements(33, "a", "b") } }
    assert.is_nil(t)
    assert.matches("more than 32 steps", message, 1, true)
    assert.equal("format", code)
    t, message, code = made { normalizer = { type = "Sequence",
      normalizers = replacements(50000, "a", "b") } }
    assert.is_nil(t)
    assert.matches("more than 96 steps", message, 1, true)
    assert.equal("format", code)
    local template = { type = "TemplateProcessing",
      special_tokens = { a = { id = "a", ids = { 0 } } },
        single = { { SpecialToken = { id = "a" } }, { Sequence = { id = "A" } } } }
    local many = {}
    for i = 1, 5000 do many[i] = template end
    t, message, code = made { post_processor = { type = "Sequence", processors = many } }
    assert.is_nil(t)
    assert.matches("more than 64 ids", message, 1, true)
    assert.equal("format", code)
  end)

  it("added tokens that begin alike", function()
    local added = {}
    for i = 1, 1500 do added[i] = { id = i + 1, content = ("a"):rep(i) .. "b", special = true } end
    refuses({ added_tokens = added }, ("a"):rep(100000), "begin alike")
    local t <close> = assert(made { added_tokens = added })
    assert.same({ 0, 1501, 3 }, t:encode(("a"):rep(1501) .. "baab"))
  end)

  it("ids far apart", function()
    local path = helper.tmp()
    helper.write(path, '{"model":{"type":"BPE","vocab":{"a":0,"b":16777215},"merges":[]},'
      .. '"added_tokens":[{"id":9999999,"content":"<x>","special":true}]}')
    local runtime <close> = assert(core.runtime { threads = 1 })
    local before = runtime:memory()
    local t <close> = assert(pyramid.tokenizer(path, { runtime = runtime }))
    os.remove(path)
    assert.is_true(runtime:memory_peak() - before < 1 << 16)
    assert.same({ 0, 9999999, 16777215, 16777215 }, t:encode "a<x>bb")
    assert.equal("b <x> a", t:decode { 16777215, 9999999, 0 })
    assert.equal("b", t:piece(16777215))
    assert.equal(16777215, t:id "b")
    assert.is_nil(t:piece(1))
    assert.is_true(t:is_special(9999999))
    assert.equal(1 << 24, t.vocab_size)
  end)

  it("decoders that make long texts of short pieces", function()
    local long = { a = 0, [("b"):rep(4000)] = 1, b = 2 }
    local model = { type = "BPE", vocab = long, merges = {} }
    for _, decoder in ipairs { { type = "Sequence", decoders = replacements(30, "a", "aa") },
      replacements(1, "b", ("c"):rep(1 << 16))[1],
      { type = "Sequence", decoders = { replacements(1, "a", ("c"):rep(250))[1],
        replacements(1, "c", "dd")[1] } } } do
      local started = os.clock()
      local t, message, code = made { model = model, decoder = decoder }
      assert.is_nil(t)
      assert.matches("more than 16 times", message, 1, true)
      assert.equal("format", code)
      assert.is_true(os.clock() - started < 2)
    end
    local t <close> = assert(made { model = model,
      decoder = replacements(1, "a", "A" .. ("x"):rep(200))[1] })
    assert.equal("A" .. ("x"):rep(200), t:decode { 0 })
  end)

  it("and long words are merged in time", function()
    for _, name in ipairs { "gpt2", "llama2-legacy", "gguf-spm", "qwen2" } do
      local t <close> = assert(pyramid.tokenizer(path_of(name)))
      local started = os.clock()
      assert.is_table(t:encode(("abcdefghij"):rep(100000)))
      assert.is_true(os.clock() - started < 10)
    end
  end)
end)

describe("what is seen of a text at a time", function()
  -- With \G an expression sees all of the text at once; that its alternative never matches changes
  -- nothing else.
  it("does not change where it is cut", function()
    local pre = require "pyramid.tokenizer.pre"
    local pieces = {}
    local vocab = { "\n", "\r", " ", "\t", "a", "B", "Z", "7", "é", "\u{301}", "日", "本", "!", "/",
      "'s", "'", "_", "\u{a0}" }
    for i, text in ipairs(vocab) do pieces[text] = i - 1 end
    local seed = 3
    local function random(n)
      seed = (seed * 1103515245 + 12345) % (1 << 31)
      return seed // 65536 % n + 1
    end
    local texts = {}
    for i = 1, 60 do
      local out = {}
      for k = 1, random(12) do
        local choice, run = {}, random(3) == 1 and random(1200) or random(40)
        for c = 1, random(3) do choice[c] = vocab[random(#vocab)] end
        local part = {}
        for r = 1, run do part[r] = choice[random(#choice)] end
        out[k] = table.concat(part)
      end
      texts[i] = table.concat(out)
    end
    local seen, count = {}, 0
    local function words(expressions, suffix)
      local list = {}
      for i, expression in ipairs(expressions) do
        list[i] = { type = "Split", pattern = { Regex = expression .. suffix },
          behavior = "Isolated", invert = false }
      end
      local added = {}
      for text, id in pairs(pieces) do added[#added + 1] = { text, id } end
      -- every two neighbours merge, so that ids tell where words end
      local model, merges = {}, {}
      for _, one in ipairs(added) do model[one[1]] = one[2] end
      local id = #vocab
      for _, one in ipairs(vocab) do
        for _, other in ipairs(vocab) do
          if not model[one .. other] then
            model[one .. other], id = id, id + 1
            merges[#merges + 1] = { one, other }
          end
        end
      end
      local path = helper.tmp()
      helper.write(path, cjson.encode { model = { type = "BPE", vocab = model, merges = merges },
        pre_tokenizer = { type = "Sequence", pretokenizers = list } })
      local t <close> = assert(pyramid.tokenizer(path))
      os.remove(path)
      local out = {}
      for i, text in ipairs(texts) do out[i] = table.concat(assert(t:encode(text)), " ") end
      return out
    end
    for _, name in ipairs(pre.list()) do
      local cuts = pre.find(name).cuts
      if not seen[cuts] then
        seen[cuts], count = true, count + 1
        assert.same(words(cuts, "|\\Gx(?!)"), words(cuts, ""), name)
      end
    end
    assert.is_true(count >= 10)
    for _, expression in ipairs { "a$", "\\ba+\\b", "(?<=a)B+", "^.+$", ".*?Z", "(?s).{300}", "x*",
      "(?<!a)(?=B)", "a+(?!Z)", "\\Z", "(?:a|B)+?(?=7|\\z)", "\\X", "(?i)b+z" } do
      assert.same(words({ expression }, "|\\Gx(?!)"), words({ expression }, ""), expression)
    end
  end)
end)

-- A real vocabulary against the library (scripts/maker/oracle/smollm2.py).
