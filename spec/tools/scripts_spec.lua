-- The scripts: what they print, where, with what status; and that their numbers are right.
local cjson = require "cjson"
local helper = require "helper"
local picture = require "pyramid.tools.picture"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local shell = require "support.shell"
local run, quote = shell.pyramid, shell.quote

local tiny = "models/tiny"
local bare = helper.fixture "families/llama-mha"     -- a model without a tokenizer
local story = "The code of the tin box was 4821. Toby lived in Tilbury.\n\nIt rained. Toby had a "
  .. "dog named Rex. He went home.\n"

local function write(path, text)
  helper.write(path, text)
  return path
end

-- A command line with more than arguments: environment before the program, redirections behind it.
local function line(before, arguments, after)
  return shell.run(("%s %s %s %s"):format(before, quote(shell.program), arguments,
    after or "</dev/null"))
end

-- Fails unless a run ended as failures do: one line of what, perhaps one of what to do, nothing on
-- standard output.
local function assert_fails(pattern, out, err, status)
  assert.equal("", out)
  assert.matches(pattern, err)
  assert.not_matches("stack traceback", err)
  assert.equal(1, status)
end

local function lines_of(text)
  local list = {}
  for each in text:gmatch "([^\n]*)\n" do list[#list + 1] = each end
  return list
end

describe("scripts", function()
  local folder, text

  setup(function()
    folder = shell.folder()
    text = write(folder .. "/story.txt", story:rep(6))
  end)
  teardown(function() shell.remove(folder) end)

  it("explain themselves", function()
    for _, name in ipairs { "generate", "perplexity", "recall", "chat", "demo" } do
      local out, err, status = run(name, "--help")
      assert.matches("^Usage: pyramid " .. name .. " ", out)
      assert.matches("%-%-policy NAME", out)
      assert.equal("", err)
      assert.equal(0, status)
    end
  end)

  it("say what is wrong with their arguments, and what to do", function()
    for _, name in ipairs { "generate", "perplexity", "recall", "chat", "demo" } do
      local unknown = "^pyramid NAME: unknown option '%-%-nonesuch'.*\npyramid NAME %-%-help "
        .. "lists the options%.\n$"
      assert_fails(unknown:gsub("NAME", name), run(name, "--nonesuch"))
      local file = name == "perplexity" and text or nil
      local function fails(pattern, ...)
        local words = { name, ... }
        words[#words + 1] = file
        assert_fails(pattern, run(table.unpack(words)))
      end
      fails("there is no model 'no/such'\nGive %-%-model PATH", "--model", "no/such")
      fails("has no tokenizer.*\nA Hugging Face folder has it in tokenizer%.json", "--model", bare)
      fails("unknown policy 'nonesuch' %(known: .*full, .*h2o, .*streaming.*%)", "--policy",
        "nonesuch")
      fails("unknown option 'nonesuch' %(known: .*ratio", "--policy", "pyramidinfer", "nonesuch=1")
      fails("option 'ratio' must be a number, not 'x'", "--policy", "pyramidinfer ratio=x")
      fails("unknown preset '1b' %(known: 13b, ", "--policy", "pyramidinfer", "preset=1b")
      fails("cannot read '%./nonesuch%.lua'", "--policy-file", "nonesuch.lua")
      fails("unknown dtype 'f8' %(known: bf16, f16, f32, fp8_e4m3, q2, q3, q4, q8_0%)",
        "--cache-dtype", "f8")
      if name == "generate" then
        fails("%-%-tiers takes TIER=DTYPE.* not 'warm=q5' %(dtypes: .*q4, q3, q2%)", "--tiers",
          "hot=f16,warm=q5")
      end
      fails("'much' is not a size", "--budget", "much")
      fails("'%-1' is not a size", "--budget", "-1")
      fails("'%-%-threads' must be an integer of 0 or more, not '%-2'", "--threads", "-2")
      fails("device 'tpu' is not available %(there are: cpu, cuda%)", "--device", "tpu")
    end
  end)
end)

describe("pyramid generate", function()
  local folder, model

  setup(function()
    folder = shell.folder()
    model = assert(pyramid.model(tiny))
  end)
  teardown(function()
    model:close()
    shell.remove(folder)
  end)

  local function generated(prompt, given)
    local pieces = {}
    for piece in assert(model:generate(prompt, given)) do pieces[#pieces + 1] = piece end
    return table.concat(pieces)
  end

  it("writes what the library generates", function()
    local out, err, status = run("generate", story, "-n", "24")
    assert.equal(generated(story, { max_tokens = 24 }) .. "\n", out)
    assert.equal("", err)
    assert.equal(0, status)
    out = run("generate", story, "-n", "24", "-t", "0.9", "--top-k", "20", "--top-p", "0.9",
      "--min-p", "0.01", "--repeat-penalty", "1.1", "--seed", "5", "--ignore-eos", "--policy",
        "streaming", "rows=24")
    assert.equal(generated(story, { max_tokens = 24, ignore_eos = true,
      policy = pyramid.policy("streaming", { rows = 24 }),
        sampler = { temperature = 0.9, top_k = 20, top_p = 0.9, min_p = 0.01, repeat_penalty = 1.1,
          seed = 5 } }) .. "\n", out)
  end)

  it("takes the prompt from words, a file, or standard input", function()
    local wanted = run("generate", story, "-n", "8")
    assert.equal(wanted, (run("generate", "-n", "8", "--prompt-file",
      write(folder .. "/prompt.txt", story))))
    assert.equal(wanted, (line("", "generate -n 8", "<" .. folder .. "/prompt.txt")))
    assert.equal(wanted, (line("", "generate -n 8 -f -", "<" .. folder .. "/prompt.txt")))
    assert.equal(run("generate", "one two three", "-n", "8"),
      (run("generate", "-n", "8", "one", "two", "three")))
    assert_fails("both a prompt and %-%-prompt%-file",
      run("generate", "x", "-f", folder .. "/prompt.txt"))
    assert_fails("nonesuch%.txt: No such file", run("generate", "-f", folder .. "/nonesuch.txt"))
  end)

  it("finds the default model from any folder, beside the program or above it", function()
    local wanted = run("generate", "Once", "-n", "5")
    local root = io.popen("pwd -P"):read "l"
    local program = io.popen("realpath " .. quote(shell.program)):read "l"
    assert.equal(wanted,
      (shell.run(("cd %s && PYRAMID_PATH=%s %s generate Once -n 5 </dev/null"):format(folder,
        quote(root), quote(program)))))
  end)

  it("stops at texts, with \\n for a new line", function()
    local whole = generated(story, { max_tokens = 40, ignore_eos = true })
    local at = whole:find("%a%s%a", 8)
    local out = run("generate", story, "-n", "40", "--ignore-eos", "--stop", "nonesuch", "--stop",
      whole:sub(at, at + 2))
    assert.equal(whole:sub(1, at - 1) .. "\n", out)
    assert.equal(generated(story, { max_tokens = 40, ignore_eos = true, stop = "\n" }) .. "\n",
      (run("generate", story, "-n", "40", "--ignore-eos", "--stop", "\\n")))
  end)

  it("prints one JSON object", function()
    local out, err, status = run("generate", story, "-n", "20", "--ignore-eos", "--json",
      "--policy", "snapkv", "rows=8", "window=4", "--cache-dtype", "f32", "--threads", "1")
    assert.equal("", err)
    assert.equal(0, status)
    assert.equal(1, select(2, out:gsub("\n", "")))
    local object = cjson.decode(out)
    local ids = assert(model:encode(story))
    local chosen = assert(pyramid.policy("snapkv", { rows = 8, window = 4 }))
    assert.equal(generated(story, { max_tokens = 20, ignore_eos = true, dtype = "f32",
      policy = chosen }), object.text)
    assert.equal("length", object.finish)
    assert.equal(#ids, object.prompt_tokens)
    assert.equal(20, object.generated_tokens)
    assert.equal("snapkv", object.policy.name)
    assert.equal(8, object.policy.options.rows)
    assert.equal("f32", object.cache_dtype)
    assert.equal(1, object.threads)
    assert.equal(model.config.layers, #object.rows)
    for _, rows in ipairs(object.rows) do assert.equal(8 + 19, rows) end
    assert.near((8 + 19) / (#ids + 19), object.cache_fraction, 1e-9)
    for _, key in ipairs { "prefill_seconds", "decode_seconds", "prefill_tokens_per_second",
      "decode_tokens_per_second", "cache_bytes", "peak_bytes" } do
      assert.is_true(object[key] > 0, key)
    end
    assert.equal(model.description, object.model)
  end)

  it("shows statistics on standard error", function()
    local out, err = run("generate", story, "-n", "3", "--ignore-eos", "--stats", "--policy",
      "pyramidinfer ratio=0.5")
    local chosen = pyramid.policy("pyramidinfer", { ratio = 0.5 })
    assert.equal(generated(story, { max_tokens = 3, ignore_eos = true, policy = chosen }) .. "\n",
      out)
    assert.matches("prompt +%d+ tokens .* tok/s", err)
    assert.matches("generated +3 tokens .* ended by length", err)
    assert.matches("policy +pyramidinfer ratio=0%.5\n", err)
    assert.matches("KV cache +[%d%.]+ KiB in f16, [%d%.]+ %% of a full cache's rows", err)
    assert.matches("rows +%d+ %d+", err)
    assert.not_matches("\27", err)
  end)

  it("says so where a policy has dropped nothing", function()
    local _, err = run("generate", "Once", "-n", "2", "--policy", "snapkv")
    assert.matches("^\npyramid generate: snapkv dropped nothing of these tokens: the text is a "
      .. "full cache's\n$", err)
    assert.is_false(cjson.decode((run("generate", "Once", "-n", "2", "--json", "--policy",
      "snapkv"))).pruned)
    _, err = run("generate", "Once", "-n", "2", "--policy", "snapkv", "target=0.3")
    assert.matches("^pyramid generate: warning: snapkv target=0%.3: the target of 30%.0 %% "
      .. "cannot be met.*: 100%.0 %%.*\n$",
      err)                                                       -- which says it
    for _, of in ipairs { "full", "streaming rows=8" } do
      _, err = run("generate", story, "-n", "2", "--policy", of)
      assert.equal("", err)
    end
    assert.is_true(cjson.decode((run("generate", story, "-n", "2", "--json", "--policy",
      "streaming rows=8"))).pruned)
  end)

  it("checks policies without a model", function()
    local out, err, status = run("check", "snapkv", "policies/h2o.lua")
    assert.matches("^policy snapkv: sound, %d+ plans\npolicy h2o: sound, %d+ plans\n$", out)
    assert.equal("", err)
    assert.equal(0, status)
    local path = write(folder .. "/flawed.lua",
      "return { name = 'flawed', prefill = function() return { keep = 9 } end }")
    out, err, status = run("check", path)
    assert.matches("policy flawed: 2 problems.*it has no doc.*keep asks for more rows than there "
      .. "are %(", out)
    assert.equal("", err)
    assert.equal(1, status)
    assert_fails("unknown policy 'snapvk'", run("check", "snapvk"))
  end)

  it("takes a policy's options after its name, in one word, and from a file", function()
    local function rows(...)
      return cjson.decode((run("generate", story, "-n", "1", "--json", ...))).rows[1]
    end
    assert.equal(9, rows("--policy", "streaming", "rows=9", "sinks=2"))
    assert.equal(9, rows("--policy", "streaming rows=9 sinks=2"))
    assert.equal(9, rows("--policy=streaming", "rows=9"))
    assert.equal(9, rows("-p", "streaming,rows=9"))
    local path = write(folder .. "/my policy.lua", [[
      local policy = require "pyramid.policy"
      return policy { name = "mine", defaults = { rows = 5 },
        prefill = function(o) return { keep = o.rows, guard = { last = o.rows } } end }]])
    assert.equal(5, rows("--policy-file", path))
    assert.equal(7, rows("--policy-file", path, "rows=7"))
    assert_fails("more than one policy\npyramid perplexity compares",
      run("generate", "x", "-p", "full", "-p", "streaming"))
    local wanted = run("generate", "x=1 is", "-n", "4")
    assert.equal(wanted, (run("generate", "--policy", "full", "x=1 is", "-n", "4")))
    assert.equal(run("generate", "x=1", "-n", "4"),
      (run("generate", "-n", "4", "-p", "full", "--", "x=1")))
    assert_fails("unknown option 'x'.*\nA prompt that looks like key=value goes before "
      .. "%-%-policy or after %-%-", run("generate", "--policy", "full", "x=1"))
  end)

  it("reads only the end of a long prompt if told so", function()
    local ids = assert(model:encode(story))
    local object = cjson.decode((run("generate", story, "-n", "4", "--json", "--context", "10")))
    assert.equal(10, object.prompt_tokens)
    local last = helper.slice(ids, #ids - 8)
    table.insert(last, 1, ids[1])                    -- what begins each text stays
    assert.equal(generated(last, { max_tokens = 4 }), object.text)
  end)

  it("takes negative numbers for what they are", function()
    assert_fails("'%-%-max%-tokens' must be .* not '%-5'", run("generate", "x", "-n", "-5"))
    assert_fails("'%-%-max%-tokens' must be .* not '%-5'", run("generate", "x", "-n=-5"))
    assert_fails("'%-%-seed' must be an integer of 0 or more, not '%-1'",
      run("generate", "x", "--seed", "-1"))
    assert_fails("'%-%-top%-k' must be an integer of 0 or more, not '%-1'",
      run("generate", "x", "--top-k", "-1"))
    assert_fails("temperature must be", run("generate", "x", "-t", "-1"))
    assert.equal(run("generate", "x", "-n", "3"), (run("generate", "x", "-n=3")))
    assert.equal(run("generate", "-n", "3", "--", "-5"), (run("generate", "-n3", "--", "-5")))
  end)

  it("warns where sampling is asked for and none is done", function()
    local out, err, status = run("generate", "x", "-n", "3", "--top-p", "0.9", "--seed", "4")
    assert.equal(run("generate", "x", "-n", "3"), out)
    assert.matches("^pyramid generate: at temperature 0 .* ignored: %-%-top%-p, %-%-seed "
      .. "%(.*%)\n$", err)
    assert.equal(0, status)
    err = select(2, run("generate", "x", "-n", "3", "-t", "1", "--top-p", "0.9", "--seed", "4"))
    assert.equal("", err)
  end)

  it("ends well where the context does", function()
    local context, ids = model.config.context, assert(model:encode(story:rep(80)))
    assert.is_true(#ids > context)
    local path = write(folder .. "/nearly.txt", story:rep(80))
    local out, err, status = run("generate", "-f", path, "--context", tostring(context - 6), "-n",
      "-1", "--ignore-eos", "--stats")
    assert.is_true(#out > 1)
    assert.matches("generated +7 tokens .* ended by context", err)
    assert.equal(0, status)
  end)

  it("fails where the world does", function()
    assert_fails("budget of 8192 bytes is full.*\nRaise %-%-budget",
      run("generate", story, "--budget", "8k"))
    local long = write(folder .. "/long.txt", story:rep(120))
    assert_fails("context.*\nShorten the text, or let %-%-context N", run("generate", "-f", long))
    local _, _, status = run("generate", "-f", long, "--context", "100", "-n", "1")
    assert.equal(0, status)
    assert_fails("min_p must be between", run("generate", "x", "--min-p", "7", "-t", "1"))
    assert_fails("'%-%-max%-tokens' must be an integer of 0 or more, or %-1, not '%-3'",
      run("generate", "x", "--max-tokens=-3"))
    assert_fails("f8", run("generate", "x", "--weights", "f8"))
    assert_fails("'%-%-stop' must not be empty", run("generate", "x", "--stop", ""))
    assert_fails(folder:gsub("%p", "%%%0") .. ": Is a directory", run("generate", "-f", folder))
  end)
end)

describe("pyramid perplexity", function()
  local folder, path, model, ids

  setup(function()
    folder = shell.folder()
    path = write(folder .. "/story.txt", story:rep(8) .. "\xff\xfe \u{20ac}")
    model = assert(pyramid.model(tiny))
    ids = assert(model:encode(helper.read(path), { special = false }))
  end)
  teardown(function()
    model:close()
    shell.remove(folder)
  end)

  it("says what it is going to measure before it does", function()
    local out, err, status = run("perplexity", path, "--context", "40", "--predict", "8",
      "--budget", "1KiB")
    assert.equal(1, status)
    assert.matches("budget of 1024 bytes is full", err)
    assert.matches("windows of 40 %+ 8 tokens", out)
  end)

  -- The plain way: one prefill of a whole window gives every position's logits; softmax here, in
  -- Lua.
  local function plain(context, predict, stride)
    local sum, count, bytes, bos = 0, 0, 0, model.tokenizer.bos
    for start = 1, #ids - (context - 1) - predict + 1, stride do
      local window = helper.slice(ids, start, start + context - 1 + predict - 1)
      table.insert(window, 1, bos)
      local cache <close> = assert(model:cache { dtype = "f32" })
      local all = assert(cache:prefill(window, { all = true }))
      for at = context, context + predict - 1 do
        local logits = all[at]:totable()
        local most, total = math.max(table.unpack(logits)), 0
        for _, x in ipairs(logits) do total = total + math.exp(x - most) end
        sum = sum + logits[window[at + 1] + 1] - most - math.log(total)
        count = count + 1
      end
      bytes = bytes + #assert(model:decode(helper.slice(window, context + 1), { raw = true }))
    end
    return math.exp(-sum / count), -sum / math.log(2) / bytes, count, bytes
  end

  local function measured(...)
    local out, err, status = run("perplexity", path, "--json", "--cache-dtype", "f32", ...)
    assert.equal("", err)
    assert.equal(0, status)
    return cjson.decode(out)
  end

  it("equals a plain computation, token by token and at once", function()
    local perplexity, bits, count, bytes = plain(48, 20, 31)
    for _, word in ipairs { "--threads=1", "--append" } do
      local object = measured("--context", "48", "--predict", "20", "--stride", "31", word)
      assert.equal(count, object.scored_tokens)
      assert.equal(bytes, object.scored_bytes)
      assert.equal(#ids, object.text_tokens)
      assert.near(perplexity, object.results[1].perplexity, perplexity * 1e-4)
      assert.near(bits, object.results[1].bits_per_byte, bits * 1e-4)
      assert.equal(1, object.results[1].cache_fraction)
    end
  end)

  it("counts every byte of a text that it scores whole", function()
    local whole = #helper.read(path)
    local object = measured("--context", "2", "--predict", "1", "--append")
    local first = #assert(model:decode({ ids[1] }, { raw = true }))
    assert.equal(whole - first, object.scored_bytes)
    assert.equal(#ids - 1, object.scored_tokens)
  end)

  it("compares policies over the same windows", function()
    local object = measured("--context", "80", "--predict", "16", "--windows", "2", "-p", "full",
      "-p", "streaming", "rows=16", "slack=0", "-p", "pyramidinfer", "ratio=0.2", "floor=8",
        "--policy-file", "policies/full.lua")
    assert.equal(2, object.windows)
    local full, streaming, pyramidal, again = table.unpack(object.results)
    assert.same({ "full", "streaming rows=16 slack=0", "pyramidinfer ratio=0.2 floor=8", "full" },
      { full.label, streaming.label, pyramidal.label, again.label })
    assert.equal(full.perplexity, again.perplexity)
    assert.not_equal(full.perplexity, streaming.perplexity)
    for _, rows in ipairs(full.rows) do assert.equal(95, rows) end
    for _, rows in ipairs(streaming.rows) do assert.equal(16, rows) end
    assert.near(16 / 95, streaming.cache_fraction, 1e-9)
    -- the context's last token comes after the cut
    assert.near(16 / 79, streaming.context_fraction, 1e-9)
    assert.is_true(pyramidal.computed_fraction < 1
      and pyramidal.rows[1] > pyramidal.rows[model.config.layers])
    assert.is_true(streaming.cache_bytes < full.cache_bytes)
  end)

  it("lets policies act between tokens only if it feeds them one by one", function()
    local function one_window(...)
      return measured("--context", "80", "--predict", "16", "--windows", "1", "-p", "streaming",
        "rows=16", "slack=0", ...)
    end
    local stepped, appended = one_window(), one_window "--append"
    assert.near(16 / 95, stepped.results[1].cache_fraction, 1e-9)
    assert.near(32 / 95, appended.results[1].cache_fraction, 1e-9)
  end)

  it("prints a table that fits", function()
    local out, err, status = line("COLUMNS=80", "perplexity " .. quote(path) ..
      " --context 40 --predict 8 --windows 2 -p full -p pyramidinfer ratio=0.6")
    assert.equal("", err)
    assert.equal(0, status)
    assert.matches("2 windows of 40 %+ 8 tokens; 16 tokens scored, %d+ bytes\n", out)
    assert.matches("\nfull +[%d%.]+ +[%d%.]+ +100%.0 %% +[%d%.]+ KiB +%d+ +%d+\n", out)
    assert.matches("\npyramidinfer ratio=0%.6 +[%d%.]+ +[+-][%d%.]+ %% +[%d%.]+ ", out)
    assert.not_matches("\27", out)
    for _, each in ipairs(lines_of(out)) do
      assert.is_true(picture.columns(each) <= math.max(80, #path + 80), each)
    end
  end)

  it("reads standard input, and says if a text is too short", function()
    local out = line("", "perplexity - --context 40 --predict 8 --windows 1", "<" .. quote(path))
    assert.matches("^standard input: 1 window ", out)
    assert_fails("the text has %d+ tokens, and a window takes 511 and 128\nGive a longer text, "
      .. "or lower", run("perplexity", path))
    assert_fails("nonesuch: No such file", run("perplexity", folder .. "/nonesuch"))
    assert_fails("missing argument 'file'", run "perplexity")
    local context = model.config.context
    assert_fails(("are more than the model's context of %d\nLower one of them: their sum may be "
      .. "%d"):format(context, context + 1), run("perplexity", path, "--context",
        tostring(context), "--predict", "2"))
  end)
end)

describe("messages in files", function()
  local folder, messages, tools

  setup(function()
    folder = shell.folder()
    messages = write(folder .. "/messages.json",
      '[{"role": "system", "content": "Toby."}, {"role": "user", "content": "Where is he?"}]')
    tools = write(folder .. "/tools.json",
      '[{"name": "look", "description": "x", "parameters": {"type": "object", "a": {}}}]')
  end)
  teardown(function() shell.remove(folder) end)

  local function generate(arguments) return line("", "generate -n 8 " .. arguments) end

  it("are answered by generate as model:chat does", function()
    local format = write(folder .. "/format.jinja", "{{ tools | tojson }}{{ enable_thinking }}"
      .. "{% for m in messages %}|{{ m.content }}{% endfor %}")
    local told = ("--tools %s --template %s "):format(tools, quote(helper.read(format)))
    local out, err, status = generate(told .. "--json --thinking off --messages " .. messages)
    assert.equal(0, status, err)
    local text = '[{"type": "function", "function": {"name": "look", "description": "x", '
      .. '"parameters": {"type": "object", "a": {}}}}]False|Toby.|Where is he?'
    local model <close> = assert(pyramid.model(tiny))
    local ids = assert(model:encode(text, { add = false, bos = model.tokenizer.adds_bos or nil }))
    assert.equal(#ids, cjson.decode(out).prompt_tokens)
    out, err, status = generate("--messages " .. messages)
    assert.equal(0, status, err)
    local pieces = {}
    for piece in assert(model:chat({ { role = "system", content = "Toby." },
      { role = "user", content = "Where is he?" } }, { max_tokens = 8 })) do
      pieces[#pieces + 1] = piece
    end
    assert.equal(table.concat(pieces) .. "\n", out)
    -- a conversation is told of the same tools
    out, err, status = line("", "chat -n 2 -t 0 --thinking on " .. told,
      "<" .. quote(write(folder .. "/said", "Toby\n/stats\n")))
    assert.equal(0, status, err)
    local asked = text:gsub("False.*", "True|Toby")
    ids = assert(model:encode(asked, { add = false, bos = model.tokenizer.adds_bos or nil }))
    assert.matches(("last turn: read %d tokens"):format(#ids), out)
  end)

  it("are refused in words where they are none, or stand beside a prompt", function()
    local odd = write(folder .. "/odd.json", "[")
    local object = write(folder .. "/object.json", "{}")
    local wrong = write(folder .. "/wrong.json", '[{"role": "user"}]')
    for arguments, pattern in pairs {
      ["--messages " .. odd] = "odd.json: line 1, column 2: ",
      ["--messages " .. object] = "object.json: the JSON is no list\nA list begins with",
      ["--messages " .. wrong] = "wrong.json: the content of message 1 is neither",
      ["--messages " .. write(folder .. "/none.json", "[]")] = "none.json: there are no messages",
      ["--messages " .. messages .. " Once"] = "both a prompt and %-%-messages",
      ["--messages " .. messages .. " --context 5"] = "%-%-context cuts texts",
      ["--messages " .. messages .. " --tools " .. object] = "the JSON is no list",
      ["--tools " .. tools .. " Once"] = "%-%-tools goes with %-%-messages",
      ["--messages /nonesuch"] = "nonesuch: No such file",
    } do assert_fails(pattern, generate(arguments)) end
    assert_fails("%-%-tools needs a chat format, and there is none",
      line("", "chat --template none --tools " .. tools))
  end)
end)

describe("pyramid chat", function()
  local folder

  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  local function talk(said, arguments)
    return line("", "chat -n 12 -t 0 " .. arguments,
      "<" .. quote(write(folder .. "/said.txt", said)))
  end

  it("goes on with lines where there is no chat format, in one cache", function()
    local out, err, status = talk("Once\n/stats\n and then\n/stats\n", "--template none")
    assert.equal(0, status)
    assert.matches("no chat format %(%-%-template NAME", err)
    local seen = {}
    for turns, tokens in out:gmatch "full: (%d) turns?, (%d+) tokens seen" do
      seen[tonumber(turns)] = tonumber(tokens)
    end
    local model <close> = assert(pyramid.model(tiny))
    local first, second = assert(model:encode "Once"),
      assert(model:encode(" and then", { special = false }))
    assert.equal(#first + 11, seen[1])                       -- the last token that was picked waits
    assert.equal(seen[1] + 1 + #second + 11, seen[2])
  end)

  it("says the same as one text read at once", function()
    local out = talk("The code of the tin box was 4821.\n Toby lived in Tilbury.\n",
      "--template none")
    local model <close> = assert(pyramid.model(tiny))
    local function go_on(ids)
      local pieces, cache = {}, assert(model:cache())
      for piece in assert(model:generate(ids, { max_tokens = 12, cache = cache })) do
        pieces[#pieces + 1] = piece
      end
      cache:close()
      return table.concat(pieces)
    end
    local ids = assert(model:encode "The code of the tin box was 4821.")
    local first = go_on(ids)
    assert.equal(first .. "\n", out:sub(1, #first + 1))
    assert.is_true(#out > #first + 1)
  end)

  it("takes no line that begins with / for a message", function()
    local out, err = talk("/HELP\n/quit now\n/clear \n/quit \nnever said\n", "--template none")
    assert.matches("there is no command /HELP; .*/quit takes nothing behind it, and there is 'now'.*forgotten", err)
    assert.equal("", out)
  end)

  it("says once that the context is full, and goes on", function()
    local long = ("The box was blue. "):rep(500)
    local out, err, status = talk("Once\n" .. long .. "\n" .. long .. "\n/clear\nOnce\n/stats\n",
      "--template none")
    assert.equal(1, select(2, err:gsub("/clear forgets the conversation", "")))
    assert.equal(0, status)
    assert.matches("full: 1 turn, ", out)
  end)

  it("draws by default", function()
    local said = write(folder .. "/said.txt", "The box was blue.\nIt rained.\n")
    local function reply(arguments)
      return (line("", "chat -n 24 --template none " .. arguments, "<" .. quote(said)))
    end
    assert.equal(reply "-t 0.7 --top-p 0.95 --seed 3", reply "--seed 3")
    assert.not_equal(reply "-t 0", reply "--seed 3")
  end)

  it("says what to do where a first message has no room", function()
    local out, err, status = talk("Once\n", "--budget 1KiB")
    assert.equal(0, status)
    assert.equal("", out)
    assert.matches("^the cache's budget of 1024 bytes is full: [^\n]*\nRaise %-%-budget, "
      .. "[^\n]*\n$", err)
  end)

  it("tells nothing in front of plain lines, and says so", function()
    local out, err, status = talk("Once\n", "--template none --system 'Be brief.'")
    assert_fails("%-%-system needs a chat format, and there is none\nName one with %-%-template",
      out, err, status)
  end)

  it("has commands", function()
    local out, err, status = talk("/help\n/nonesuch\nOnce\n/clear\n/stats\n/quit\nnever said\n",
      "--template none --policy pyramidinfer")
    assert.equal(0, status)
    assert.matches("/stats: what the cache holds", err)
    assert.matches("there is no command /nonesuch; /help lists them", err)
    assert.matches("forgotten", err)
    assert.matches("pyramidinfer: 0 turns, 0 tokens seen; 0 B", out)
    assert.not_matches("never", out)
  end)

  it("reads only what is new, and says what it would if it read all", function()
    local out, err = talk("What was the code of the tin box?\nWhere did Toby live?\n/stats\n",
      "--template chatml --system 'Be brief.' --cache-dtype f32")
    assert.equal("", err)
    local chat = require "pyramid.chat"
    local model <close> = assert(pyramid.model(tiny))
    local messages, ids, wanted = { { role = "system", content = "Be brief." } },
      { model.tokenizer.bos }, {}
    local held, unread = "", 0
    for _, question in ipairs { "What was the code of the tin box?", "Where did Toby live?" } do
      messages[#messages + 1] = { role = "user", content = question }
      local whole = assert(chat.render("chatml", messages, { add_generation_prompt = true }))
      local added = assert(model:encode(whole:sub(#held + 1), { add = false }))
      table.move(added, 1, #added, #ids + 1, ids)
      local cache <close> = assert(model:cache { dtype = "f32" })
      local pieces = {}
      local answer = assert(model:generate(ids, { max_tokens = 12, cache = cache }))
      for piece, id in answer do
        pieces[#pieces + 1] = piece
        if #pieces <= 12 then ids[#ids + 1] = id end
      end
      -- its last pick; an end token is not among the ids
      unread = answer.finish == "length" and 1 or 0
      local reply = table.concat(pieces)
      messages[#messages + 1] = { role = "assistant", content = reply:match "^%s*(.-)%s*$" }
      -- what the cache holds, as far as the format knows it: the reply's own blanks are not in it
      held = whole .. messages[#messages].content
      wanted[#wanted + 1] = reply:match "^%s*(.*)$" .. "\n"
    end
    assert.equal(table.concat(wanted), out:sub(1, #table.concat(wanted)))
    assert.matches("2 turns, " .. #ids - unread .. " tokens seen", out)
  end)

  it("keeps to the family of the format, and says so if it has none", function()
    local out, err, status = talk("x\n", "--template nonesuch")
    assert_fails("'nonesuch' is no template, and no format's name %(known: chatml, .*\n"
      .. "Name a format with %-%-template, or go without one",
      out, err, status)
    out, err, status = talk("x\n", "--grammar /nonesuch")     -- no format would help there
    assert_fails("^pyramid chat: /nonesuch: [^\n]+\n$", out, err, status)
  end)

  it("talks in the model's own format, and ends replies where a question would begin", function()
    local out, err, status = talk(
      "What was the code of the tin box?\n/stats\nWhere did Toby live?\n/stats\n", "")
    assert.equal("", err)
    assert.equal(0, status)
    assert.matches("2 turns", out)
    assert.not_matches("read anew", out)
    assert.not_matches("Question", out)
  end)
end)

describe("pyramid demo", function()
  it("draws what each policy kept, within 80 columns and without colours where there is no "
    .. "terminal", function()
    local out, err, status = line("COLUMNS=80 LC_ALL=C.UTF-8", "demo --words 60")
    assert.equal("", err)
    assert.equal(0, status)
    for _, each in ipairs(lines_of(out)) do assert.is_true(picture.columns(each) <= 80, each) end
    assert.not_matches("\27", out)
    assert.matches("A story of %d+ tokens", out)
    for _, label in ipairs { "full", "pyramidinfer", "pyramidinfer preset=45" } do
      assert.matches("── " .. label:gsub("%p", "%%%0") .. " goes on ─", out)
    end
    local tokens = out:match "A story of (%d+) tokens"
    for layer = 1, 8 do
      local full, kept = out:match(("\n  %d  [^%%w]+ (%%d+) +[^%%w]+ (%%d+)"):format(layer))
      assert.equal(tokens, full)
      assert.is_true(tonumber(kept) <= tonumber(tokens))
    end
    for _, word in ipairs { "rows kept", "computed", "KV cache", "prefill", "decode",
      "perplexity", "answers" } do
      assert.matches("\n  " .. word .. " +%S", out)
    end
    assert.matches("rows kept +100%.0 %%", out)
  end)

  it("reads a text instead, and asks for facts that it has put into it", function()
    local out, err, status = line("COLUMNS=80 LC_ALL=C.UTF-8",
      "demo --words 60 --text docs/glossary.md -p full -p streaming rows=16")
    assert.equal("", err)
    assert.equal(0, status)
    for _, each in ipairs(lines_of(out)) do assert.is_true(picture.columns(each) <= 80, each) end
    assert.matches("A text of %d+ tokens [^\n]+\n  Glossary\n  Words as this project uses them", out)
    assert.not_matches("%*%*", out)
    assert.not_matches("%]%(", out)
    local _, asked = out:gsub("\n  [✓✗]+ %u%l+[^\n]+ %.%.%. +%S", "")
    assert.equal(8, asked, out)                           -- four facts, two policies
    for right in out:gmatch "\n  ✓[^\n]+" do assert.not_matches("told:", right) end
    assert.matches("answers +%d of 4 +%d of 4", out)
    out, err, status = line("", "demo --text models/tiny/config.json --words 5000")
    assert.equal("", out)
    assert.equal(1, status)
    assert.matches("too short a text\n", err)
  end)

  it("does with ASCII, and with other policies", function()
    local out, _, status = line("COLUMNS=60 LC_ALL=C",
      "demo --words 60 -p full -p streaming rows=16")
    assert.equal(0, status)
    assert.is_nil(out:find "[\128-\255]")
    assert.matches("streaming rows=16 goes on", out)
    assert.matches("\n  8  #+ %d+ +%.*#+%.* 16\n", out)
    for _, each in ipairs(lines_of(out)) do assert.is_true(#each <= 60, each) end
  end)
end)

describe("pictures", function()
  local pic = picture.new(io.stdout, { width = 60, colour = false, ascii = false })
  local plain = picture.new(io.stdout, { width = 60, colour = false, ascii = true })

  it("measure and pad by columns", function()
    assert.equal(3, picture.columns "\27[1mé█x\27[0m")
    assert.equal("é   ", picture.pad("é", 4))
    assert.equal("   é", picture.pad("é", 4, ">"))
    assert.equal(" é  ", picture.pad("é", 4, "^"))
    assert.equal("éé…", pic:cut("ééééé", 3))
    assert.equal("ééééé", pic:cut("ééééé", 5))
    assert.same({ "a    bb", "ccc   d" }, picture.table({ { "a", "bb" }, { "ccc", "d" } }, "<>"))
  end)

  it("draw bars to an eighth, and steps to a half, of a column", function()
    assert.equal("████", pic:bar(1, 4))
    assert.equal("██▌·", pic:bar(0.625, 4))
    assert.equal("····", pic:bar(0, 4))
    assert.equal("####", plain:bar(7, 4))
    assert.equal("....", plain:bar(0 / 0, 4))
    assert.equal("████████", pic:step(1, 8))
    assert.equal("··████··", pic:step(0.5, 8))
    assert.equal("··▐██▌··", pic:step(0.4, 8))
    assert.equal("···▐▌···", pic:step(0.001, 8))
    for share = 0, 1, 0.01 do
      assert.equal(13, picture.columns(pic:bar(share, 13)))
      assert.equal(14, picture.columns(pic:step(share, 14)))
      assert.equal(14, picture.columns(plain:step(share, 14)))
    end
  end)

  it("shade where positions lie", function()
    assert.equal("█░ █", pic:strip({ { 0, 1, 2, 3, 4, 12, 13, 14, 15 } }, 16, 4))
    assert.equal("▓░  ", pic:strip({ { 0, 1, 2, 3, 4, 5 }, { 0, 1 } }, 16, 4))
    -- fewer positions than columns; later ones are left out
    assert.equal("█ █     ", pic:strip({ { 0, 2, 9 } }, 3, 8))
    assert.equal("####", plain:strip({ { 0, 1, 2, 3, 4, 5, 6 } }, 7, 4))
  end)

  it("wrap a text that comes in pieces", function()
    local path = helper.tmp()
    local file = assert(io.open(path, "wb"))
    local writer = picture.new(io.stdout, { width = 40, colour = false }):writer { stream = file,
      indent = 2, width = 12 }
    for _, piece in ipairs { "One", " two thr", "ee\n\nfour  fi", "ve ", "six-seven-eight", "." } do
      writer:push(piece)
    end
    writer:finish()
    file:close()
    assert.equal("  One two\n  three\n  four five\n  six-seven-eight.\n", helper.read(path))
    os.remove(path)
  end)

  it("say seconds as people do", function()
    local said = {}
    for i, seconds in ipairs { 0.0042, 0.5, 12.4, 100, 7300 } do
      said[i] = picture.seconds(seconds)
    end
    assert.same({ "4 ms", "0.50 s", "12 s", "1 min 40 s", "2 h 01 min" }, said)
  end)

  it("keep quiet about progress where there is no terminal", function()
    local path = helper.tmp()
    local file = assert(io.open(path, "wb"))
    do
      local progress <close> = picture.progress("working", { stream = file, after = 0 })
      progress.update(1, 2)
    end
    file:close()
    assert.equal("", helper.read(path))
    os.remove(path)
  end)

  it("draw no bar that was closed", function()
    local path = helper.tmp()
    local file <close> = assert(io.open(path, "wb"))
    local progress = picture.progress("working", { stream = file, after = 0 })
    progress.picture.terminal = true
    progress.update(1, 2)
    local drawn = helper.read(path)
    assert.matches("working", drawn)
    picture.clear_progress()  -- something was said; the work goes on
    progress.drawn = -1
    progress.update(1, 2)
    assert.is_true(#helper.read(path) > #drawn + 10)
    progress:close()
    drawn = helper.read(path)
    progress.update(2, 2)
    assert.equal(drawn, helper.read(path))
    os.remove(path)
  end)
end)

describe("forecasts and policies of scripts", function()
  it("survey what a cache holds", function()
    local model <close> = assert(pyramid.model(tiny))
    local cache <close> = assert(model:cache { policy = assert(policy.load("streaming",
      { rows = 6 })) })
    assert(cache:prefill(assert(model:encode(story))))
    local layers = picture.survey(cache, model.config)
    assert.equal(model.config.layers, #layers)
    for layer, entry in ipairs(layers) do
      assert.equal(cache:rows(layer), entry.rows)
      assert.equal(model.config.kv_heads, #entry.lanes)
      assert.same(cache:positions(layer, 1), entry.lanes[1])
    end
  end)
end)
