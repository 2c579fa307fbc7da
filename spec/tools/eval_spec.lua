-- `pyramid eval`: prompts in parts, answers equal those asked for one by one, results that are gone
-- on with, and figures against direct calculations.
local answer = require "pyramid.tools.eval.answer"
local chat = require "pyramid.chat"
local cjson = require "cjson"
local cut = require "pyramid.tools.cut"
local engine = require "pyramid.tools.engine"
local eval = require "pyramid.tools.eval"
local helper = require "helper"
local noise = require "pyramid.tools.noise"
local prompt = require "pyramid.tools.eval.prompt"
local pyramid = require "pyramid"
local results = require "pyramid.tools.results"
local rivals = require "pyramid.tools.rivals"
local shell = require "support.shell"

local tiny = "models/tiny"

local function read(path)
  local file <close>, message = io.open(path, "rb")
  if not file then return nil, message, "io" end
  return file:read "a"
end

describe("eval's prompts", function()
  local model
  setup(function() model = assert(pyramid.model(tiny)) end)
  teardown(function() model:close() end)

  local case = { task = "t", name = "n", context = "Once there was a baker.", questions = {} }
  local question = { text = "\nWho was there?", prefix = " There was a", answers = { "baker" },
    metric = "f1", most = 4 }

  local function texts(parts)
    return { assert(model:decode(parts.context, { skip_special = true })),
      assert(model:decode(parts.question)), assert(model:decode(parts.cue)) }
  end

  it("have three parts, the last never empty", function()
    assert.same({ case.context, question.text, question.prefix },
      texts(assert(prompt.parts(model, case, question))))
    local parts = assert(prompt.parts(model, case, { text = "\nWho was there?", prefix = "" }))
    assert.equal(1, #parts.cue)
    assert.equal("\nWho was there?", texts(parts)[2] .. texts(parts)[3])
    parts = assert(prompt.parts(model, case, { text = "", prefix = "" }))
    assert.equal(0, #parts.question)
    assert.equal(1, #parts.cue)
    assert.equal(case.context, texts(parts)[1] .. texts(parts)[3])
    assert.equal("Be brief.\n\n" .. case.context, texts(assert(prompt.parts(model,
      setmetatable({ system = "Be brief." }, { __index = case }), question)))[1])
  end)

  it("stand in a chat template, which the context ends in the middle of", function()
    local format = assert(chat.compile "chatml")
    local whole = assert(chat.render(format, { { role = "user",
      content = case.context .. question.text } }, { add_generation_prompt = true }))
    local parts = texts(assert(prompt.parts(model, case, question, format)))
    assert.equal(whole .. "There was a", table.concat(parts))
    assert.equal("<|im_start|>user\n" .. case.context, parts[1])
    assert.equal(question.text, parts[2])
    local plain = setmetatable({ plain = true }, { __index = case })
    assert.equal(case.context, texts(assert(prompt.parts(model, plain, question, format)))[1])
    -- a template that knows no system's role: it stands before the context
    format = assert(chat.compile("{%- for m in messages %}{%- if m.role != 'user' %}{{- "
      .. "raise_exception('no') }}{%- endif %}[{{- m.content }}]{%- endfor %}"))
    parts = texts(assert(prompt.parts(model, setmetatable({ system = "S." }, { __index = case }),
      question, format)))
    assert.equal("[S.\n\n" .. case.context, parts[1])
    local none, message, code = prompt.parts(model, case, question,
      assert(chat.compile "{{- messages[0].content | upper }}"))
    assert.is_nil(none)
    assert.matches("changes what is said", message)
    assert.equal("unsupported", code)
  end)

  it("are cut in the middle of a context", function()
    assert.same({ 1, 2, 3 }, prompt.cut_middle({ 1, 2, 3 }, 3))
    assert.same({ 1, 2, 5, 6, 7 }, prompt.cut_middle({ 1, 2, 3, 4, 5, 6, 7 }, 5))
    assert.same({ 1, 7 }, prompt.cut_middle({ 1, 2, 3, 4, 5, 6, 7 }, 2))
  end)

  it("are read as far as the mode says", function()
    local parts = { context = { 1, 2 }, question = { 3 }, cue = { 4, 5 } }
    assert.same({ { 1, 2 }, { 3, 4, 5 } }, { prompt.split(parts, "agnostic") })
    assert.same({ { 1, 2, 3 }, { 4, 5 } }, { prompt.split(parts, "aware") })
  end)
end)

describe("eval", function()
  local model, folder

  setup(function()
    model = assert(pyramid.model(tiny, { threads = 1 }))
    folder = shell.folder()
  end)
  teardown(function()
    model:close()
    shell.remove(folder)
  end)

  local function given(name, words)
    return { policy = assert(pyramid.policy(name, words)), label = name }
  end

  local function variants(list, budgets)
    return assert(engine.variants(list, budgets or { 0.4 }))
  end

  local store_count = 0
  local function store_of(path)
    store_count = store_count + 1
    return assert(results.open(path or ("%s/%d.jsonl"):format(folder, store_count), eval.format))
  end

  local function plan_of(more)
    local how = { variants = variants { given "h2o" }, circumstances = "spec",
      tasks = { { name = "word" }, { name = "niah_multikey_1" } }, lengths = { 420 },
      modes = { "agnostic", "aware" }, questions = 4, per_context = 4, seed = 3,
      cache = { dtype = "f32" }, read = read }
    for key, value in pairs(more or {}) do how[key] = value end
    return assert(eval.plan(model, how))
  end

  -- A question by itself, in a cache of its own, token by token.
  local function plainly(policy, step, i)
    local cache <close> = assert(model:cache { policy = policy, dtype = "f32" })
    local judged, rest = prompt.split(step.parts[i], step.mode)
    assert(cache:prefill(judged))
    local share = cache:fraction()
    local logits, ids, q = assert(cache:prefill(rest, { prune = false })), {},
      step.case.questions[i]
    for n = 1, q.most do
      local id = logits:argmax()
      if id == model.tokenizer.eos[1] then break end
      ids[n] = id
      logits = assert(cache:step(id))
    end
    return assert(model:decode(ids)), share
  end

  it("answers as asking one by one does, whatever evicts while it writes", function()
    local plan = plan_of { questions = 2, tasks = { { name = "world" },
      { name = "niah_multikey_2" } }, variants = variants { given "h2o",
        given("pyramidinfer", { preset = "45" }), given "keydiff" } }
    local store <close> = store_of()
    assert(eval.run(plan, model, store))
    local compared = 0
    for s, step in ipairs(plan.steps) do
      for v, variant in ipairs(plan.given.variants) do
        local record = assert(store:get(eval.key(plan, step, variant)))
        for i = 1, #step.parts do
          if (s + v + i) % 3 == 0 then
            local text, share = plainly(variant.policy, step, i)
            local q = step.case.questions[i]
            if q.metric == "line" then text = text:match "^%s*[^\n]*" end
            text = text:match "^%s*(.-)%s*$"
            local said = record.answers[i]
            -- an answer that holds all that is looked for ends there
            assert.equal(record.scores[i] == 1 and text:sub(1, #said) or text, said)
            if step.mode == "agnostic" then assert.near(share, record.fraction, 1e-9) end
            compared = compared + 1
          end
        end
      end
    end
    assert.is_true(compared > 10, compared)
  end)

  it("measures in the tiers that are asked for, and knows its results by them", function()
    local plan = plan_of { questions = 2, modes = { "agnostic" }, tasks = { { name = "word" } },
      variants = variants { given "demote" },
      cache = { dtype = "f32", tiers = { warm = "f32" } } }
    local store <close> = store_of()
    assert(eval.run(plan, model, store))
    for _, step in ipairs(plan.steps) do
      local full, demoted = table.unpack(plan.given.variants)
      local one, other = store:get(eval.key(plan, step, full)),
        store:get(eval.key(plan, step, demoted))
      assert.equal(1, other.fraction)                  -- what does not stay hot has not left
      assert.same(one.answers, other.answers)
    end
    local seen = {}
    for _, args in ipairs { {}, { tiers = { warm = { dtype = "q8_0" } } },
      { tiers = { warm = { dtype = "f16" } } }, { tiers = { hot = { dtype = "f32" } } },
      { tiers = { warm = { dtype = "f16", bytes = "1MiB" } } },
      { tiers = { warm = { dtype = "f16" } }, pressure = "demote" }, { scaling = "yarn" },
      { scaling = "linear" }, { max_context = 4096 }, { device = "cuda" } } do
      args.cache_dtype = "f16"
      local circumstances = rivals.circumstances(model, args)
      assert.is_nil(seen[circumstances])
      seen[circumstances] = true
    end
    -- What was measured before these were told apart is found.
    local words = { cache_dtype = "f16", device = "cpu", scaling = "none" }
    assert.is_true(seen[rivals.circumstances(model, words)])
    assert.matches("^[^,]+, weights as they are, precision %w+, rows f16, [^,]+, %d+ threads, "
      .. "pyramid [^,]+$", rivals.circumstances(model, words))
  end)

  it("takes an answer's first token from logits after the cut", function()
    local blind = assert(pyramid.policy { name = "blind", prefill = function()
      return { keep = 2, guard = { last = 2 } }
    end })
    local plan = plan_of { questions = 2, tasks = { { name = "word" } },
      variants = variants { { policy = blind, label = "blind" } } }
    local store <close> = store_of()
    assert(eval.run(plan, model, store))
    local entries = eval.summary(plan, store)
    for i = 1, #entries, 2 do
      assert.is_true(entries[i].tasks.word.score > entries[i + 1].tasks.word.score
        or entries[i].tasks.word.score == 0)
      assert.is_true(entries[i + 1].fraction < 0.02)
    end
  end)

  it("picks the option of the highest probability", function()
    local cache <close> = assert(model:cache { dtype = "f32" })
    local context = assert(model:encode "Once there was a")
    local logits = assert(cache:prefill(context))
    local options, best, most = { "baker", "cat", "dog", "mill" }, nil, nil
    for _, option in ipairs(options) do
      local ids = assert(model:encode(" " .. option, { special = false }))
      local probable = logits:logprob(ids[#ids])
      if not most or probable > most then best, most = option, probable end
    end
    local fresh <close> = assert(model:cache { dtype = "f32" })
    local ask = { cache = fresh, rest = context, question = { options = options, metric = "exact",
      answers = { best }, most = 1 } }
    assert(answer.all(model, { ask }))
    assert.equal(best, ask.text)
  end)

  it("goes on where it was ended, and measures nothing twice", function()
    local path = folder .. "/resume.jsonl"
    local plan = plan_of { variants = variants { given "snapkv" }, modes = { "agnostic" } }
    local whole
    do
      local store <close> = store_of(path)
      whole = assert(eval.run(plan, model, store))
      assert.equal(2 * #plan.steps, whole)
      assert.equal(0, assert(eval.run(plan, model, store)))
    end
    local text = helper.read(path)
    local first = eval.summary(plan, store_of(path))
    helper.write(path, text:sub(1, #text - 40))              -- ended in the middle of a line
    local store <close> = store_of(path)
    assert.equal(whole - 1, store.count)
    local told = 0
    assert.equal(1, assert(eval.run(plan, model, store, function(done, total, what)
      told = told + 1
      assert.is_true(done < total)
      assert.matches("420 tokens, agnostic, ", what)
    end)))
    assert.equal(1, told)
    local again = eval.summary(plan, store)
    for i, entry in ipairs(first) do
      assert.same(entry.tasks.word.scores, again[i].tasks.word.scores)
      assert.same(entry.pooled, again[i].pooled)
    end
    -- what the results depend on is in their keys
    for _, other in ipairs { plan_of { circumstances = "other", modes = { "agnostic" },
      variants = plan.given.variants }, plan_of { seed = 40, modes = { "agnostic" },
        variants = plan.given.variants } } do
      for _, step in ipairs(other.steps) do
        assert.is_nil(store:get(eval.key(other, step, other.given.variants[2])))
      end
    end
  end)

  -- A store with made-up scores: what a summary says of them is known.
  local function made_up(plan, scores_of)
    local store = store_of()
    for _, step in ipairs(plan.steps) do
      for v, variant in ipairs(plan.given.variants) do
        local scores = scores_of(step, v)
        local answers = {}
        for i = 1, #scores do answers[i] = 'said "so", twice' end
        assert(store:add(eval.key(plan, step, variant), { scores = scores, answers = answers,
          fraction = v == 1 and 1 or 0.4, bytes = v == 1 and 1000 or 410, tokens = 300,
          seconds = 0.5, metric = "word", task = step.task }))
      end
    end
    return store
  end

  it("pools the tasks that count, and pairs with the full cache", function()
    local plan = plan_of { questions = 12, modes = { "agnostic" },
      tasks = { { name = "word" }, { name = "niah_single_2" } } }
    local ours, theirs, counts, at = {}, {}, {}, 0
    local store <close> = made_up(plan, function(step, v)
      local scores = {}
      if v == 1 and step.task == "word" then at = at + 1 end
      for i = 1, #step.parts do
        if step.task ~= "word" then scores[i] = v == 1 and i % 2 or 1         -- 1 of 1 counts …
        elseif v == 1 then scores[i] = 1
        else scores[i] = (i + at) % 3 == 0 and 0 or 1 end
        if step.task ~= "word" then scores[i] = v == 1 and 0.5 or 1 end  -- … but half does not
      end
      if step.task == "word" then
        local list, sum = v == 1 and theirs or ours, 0
        for _, score in ipairs(scores) do sum = sum + score end
        list[#list + 1] = sum
        if v == 1 then counts[#counts + 1] = #scores end
      end
      return scores
    end)
    local entries = eval.summary(plan, store)
    assert.equal(2, #entries)
    local full, mine = entries[1], entries[2]
    assert.is_true(mine.tasks.word.counted)
    assert.is_false(mine.tasks.niah_single_2.counted)
    local right = 0
    for _, sum in ipairs(ours) do right = right + sum end
    local pooled = mine.pooled
    assert.equal(12, pooled.n)
    assert.equal(3, pooled.contexts)
    assert.near(right / 12, pooled.share, 1e-12)
    assert.near(select(2, noise.ratio(ours, theirs)), pooled.half, 1e-12)
    assert.near(right / 12 - 1, pooled.difference, 1e-12)
    assert.equal(0, pooled.won)
    assert.equal(12 - right, pooled.lost)
    assert.near(noise.mcnemar(0, 12 - right), pooled.p, 1e-12)
    assert.equal(1, full.pooled.share)
    assert.equal(12, mine.recall.asked)
    assert.equal(right, mine.recall.right)
    assert.equal(410, mine.bytes)
    assert.equal(1000, mine.full_bytes)
    assert.is_false(mine.missed)
    local columns, rows = eval.scores(plan, store)
    assert.equal(2 * 24, #rows)
    local by = {}
    for i, name in ipairs(columns) do by[name] = i end
    for _, row in ipairs(rows) do
      assert.equal(#columns, #row)
      assert.is_true(row[by.policy] == "full" or row[by.budget] == 0.4)
      assert.equal(row[by.task] == "word" and 1 or 0.5, row[by.full])
    end
  end)

  it("says that no task counts", function()
    local plan = plan_of { modes = { "agnostic" } }
    local store <close> = made_up(plan, function(step)
      local scores = {}
      for i = 1, #step.parts do scores[i] = 0.1 end
      return scores
    end)
    local entry = eval.summary(plan, store)[2]
    assert.is_nil(entry.pooled)
    assert.near(0.1, entry.recall.accuracy, 1e-12)
  end)

  it("scores given answers turn by turn, each read when it comes", function()
    local path = folder .. "/question.jsonl"
    helper.write(path, '{"question_id":7,"turns":["Who was the baker?","And where did she live, in '
      .. 'all those long years?"],"reference":["The baker was Mira.","She lived in Dunmore."]}\n'
      .. '{"question_id":8,"turns":["One?","Two?"]}\n{"question_id":9,"turns":["Three?"]}\n')
    assert(os.execute(("mkdir -p '%s/model_answer'"):format(folder)))
    helper.write(folder .. "/model_answer/m.jsonl",
      '{"question_id":8,"choices":[{"turns":["Yes.","No."]}]}\n')
    local plan = plan_of { tasks = { { name = "mtbench", path = path } },
      variants = variants({ given "streaming" }, { 0.5 }) }
    assert.equal(2, #plan.steps)                             -- one of three has no answer; no modes
    local store <close> = store_of()
    assert(eval.run(plan, model, store))
    local compared = 0
    for _, step in ipairs(plan.steps) do
      for _, variant in ipairs(plan.given.variants) do
        local record = assert(store:get(eval.key(plan, step, variant)))
        local cache <close> = assert(model:cache { policy = variant.policy, dtype = "f32" })
        for i, turn in ipairs(step.turns) do
          assert(cache:prefill(helper.slice(turn.read, 1, #turn.read - 1)))
          local logits, sum = assert(cache:prefill({ turn.read[#turn.read] }, { prune = false })), 0
          for _, id in ipairs(turn.answer) do
            sum = sum + logits:logprob(id)
            logits = assert(cache:prefill({ id }, { prune = false }))
          end
          assert.equal(#turn.answer, record.weights[i])
          assert.near(sum / #turn.answer, record.scores[i], 1e-4)
          compared = compared + 1
        end
      end
    end
    assert.equal(8, compared)
    local entries = eval.summary(plan, store)
    local mine, full = entries[2].tasks.mtbench, entries[1].tasks.mtbench
    assert.is_true(mine.nats)
    assert.is_false(mine.counted)
    assert.is_nil(entries[2].pooled)
    local lost, tokens = 0, 0
    for i, sum in ipairs(full.sums) do
      lost, tokens = lost + sum - mine.sums[i], tokens + full.counts[i]
    end
    assert.near(lost / tokens, mine.lost, 1e-12)
    assert.equal(0, full.lost)
    helper.write(path, '{"question_id":70,"turns":["Who?"]}')
    local none, message, code = eval.plan(model, { variants = plan.given.variants,
      circumstances = "spec", tasks = { { name = "mtbench", path = path } }, lengths = { 420 },
      modes = { "aware" }, questions = 2, per_context = 2, seed = 0, read = read })
    assert.is_nil(none)
    assert.matches("no question has an answer for each turn", message)
    assert.equal("format", code)
  end)

  it("tells of models with windows the share of the rows that can be evicted", function()
    local slides <close> = assert(pyramid.model(helper.fixture "decoders/gemma2"))
    local config = slides.config
    local ids = {}
    for i = 1, 300 do ids[i] = i * 7 % config.vocab end
    local cache <close> = assert(slides:cache { policy = assert(pyramid.policy("streaming",
      { rows = 40 })) })
    assert(cache:prefill(ids))
    local rows, layers = 0, 0
    for layer = 1, config.layers do
      if config.window[layer] == 0 then
        layers = layers + 1
        for head = 1, config.kv_heads do rows = rows + cache:rows(layer, head) end
      end
    end
    assert.is_true(layers > 0 and layers < config.layers)
    assert.near(rows / (layers * config.kv_heads * 300), cut.share(cache, config), 1e-12)
    local full <close> = assert(slides:cache())
    assert(full:prefill(ids))
    assert.equal(1, cut.share(full, config))
    local plain <close> = assert(model:cache { policy = assert(pyramid.policy("streaming",
      { rows = 50 })) })
    assert(plain:prefill(assert(model:encode(("a word "):rep(60)))))
    assert.equal(plain:fraction(), cut.share(plain, model.config))
  end)

  it("refuses what cannot be asked", function()
    local function refused(pattern, wanted, more)
      local how = { variants = variants { given "snapkv" }, circumstances = "spec",
        tasks = { { name = "word" } }, lengths = { 420 }, modes = { "agnostic" }, questions = 2,
        per_context = 2, seed = 0, read = read }
      for key, value in pairs(more) do how[key] = value end
      local plan, message, code = eval.plan(model, how)
      assert.is_nil(plan)
      assert.matches(pattern, message)
      assert.equal(wanted, code)
    end
    refused("no room", "length", { tasks = { { name = "niah_single_1" } }, lengths = { 200 } })
    refused("nq: its file is not named", "argument", { tasks = { { name = "nq" } } })
    local path = folder .. "/long.jsonl"
    helper.write(path, ('{"context":"C","question":"%s","answer":"a"}'):format(("why "):rep(600)))
    refused("line 1: a length of 420 has no room", "length", { tasks = { { name = "data",
      path = path } } })
    assert.has_error(function() eval.plan(model, { lenghts = {} }) end)
  end)
end)

describe("pyramid eval", function()
  local folder
  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  local function run(out, ...)
    return shell.pyramid("eval", "--lengths", "400", "--questions", "3", "--threads", "1",
      "--out", folder .. "/" .. out, ...)
  end

  it("explains itself", function()
    local out, err, status = shell.pyramid("eval", "--help")
    assert.matches("^Usage: pyramid eval ", out)
    for _, option in ipairs { "policy NAME", "budgets LIST", "tasks LIST", "lengths LIST",
      "mode MODE", "per%-context N", "text FILE", "out DIR" } do
      assert.matches("%-%-" .. option, out)
    end
    assert.equal("", err)
    assert.equal(0, status)
  end)

  it("prints a table, writes scores and a page, and does no work twice", function()
    local out, err, status = run("a", "--tasks", "word,niah_single_1", "--policy", "keydiff",
      "--budgets", "0.5", "--mode", "both")
    assert.equal("", err)
    assert.equal(0, status)
    assert.matches("400 tokens, agnostic", out)
    assert.matches("400 tokens, aware", out)
    assert.matches("\npolicy +rows +KV +word%*? +niah_single_1%*? +share of full +p", out)
    assert.matches("\nkeydiff target=0%.5 +%d%d %% ", out)
    assert.matches("16 results, 16 of them new: ", out)
    local page = helper.read(folder .. "/a/report.html")
    assert.matches("Tasks under cache policies", page)
    assert.matches("Score by task", page)
    assert.matches(">niah_single_1<", page)
    assert.not_matches("[Ee]vidence", page:match "<table.*</table>")
    for _, foreign in ipairs { "http:", "https:", "@import", "url%(", "<link", "src=" } do
      assert.is_nil(page:find(foreign), foreign)
    end
    local scores = helper.read(folder .. "/a/scores.csv")
    assert.matches("^policy,budget,length,mode,task,metric,case,question,score,full,rows,bytes,",
      scores)
    assert.equal((out:gsub("16 of them new", "0 of them new")), (run("a", "--tasks",
      "word,niah_single_1", "--policy", "keydiff", "--budgets", "0.5", "--mode", "both")))
    local object = cjson.decode((run("a", "--tasks", "word", "--policy", "keydiff", "--budgets",
      "0.5", "--json")))
    assert.equal(2, #object.results)
    assert.equal(3, object.results[2].tasks.word.n)
  end)

  it("writes what HumanEval's checker reads, and reads what it writes", function()
    local path = folder .. "/he.jsonl"
    helper.write(path, '{"task_id":"HumanEval/0","prompt":"def f(x):\\n"}\n{"task_id":"HumanEval/1",'
      .. '"prompt":"def g(x):\\n    return"}\n')
    local out, err, status = run("h", "--tasks", "humaneval=" .. path, "--policy", "streaming",
      "rows=6", "--lengths", "500")
    assert.equal("", err)
    assert.equal(0, status)
    local names = {}
    for name in out:gmatch "samples: (%S+)" do names[#names + 1] = name end
    assert.equal(2, #names)
    local ids = {}
    for line in helper.read(names[2]):gmatch "[^\n]+" do
      local sample = cjson.decode(line)
      assert.equal("string", type(sample.completion))
      ids[#ids + 1] = sample.task_id
    end
    table.sort(ids)
    assert.same({ "HumanEval/0", "HumanEval/1" }, ids)
    helper.write(path, '{"task_id":"a","passed":true}\n{"task_id":"b","passed":false}\n')
    assert.equal("pass@1: 50.0 % of 2 problems\n", (shell.pyramid("eval", "--results", path)))
  end)

  it("writes scores that three lines of pandas read, as docs/protocol.md shows them", function()
    local script = "scripts/examples/scores.py"
    assert.is_truthy(helper.read "docs/protocol.md":find("```python\n" .. helper.read(script)
      .. "```", 1, true))
    local python = os.getenv "PYTHON" or "python3"
    if select(3, shell.run(python .. " -c 'import pandas'")) ~= 0 then
      return pending "needs pandas (PYTHON names an interpreter that has it)"
    end
    local path = folder .. "/s"
    assert.equal(0, select(3, run("s", "--tasks", "word", "--policy", "streaming", "--budgets",
      "0.5")))
    local out, err, status = shell.run(("%s %s %s/scores.csv"):format(python, script, path))
    assert.equal(0, status, err)
    assert.matches("streaming +0%.5 +word +[%d.]+ +[%d.]+ +0%.%d+ +[%d.]+", out)
    assert.matches("full +NaN +word", out)
  end)

  it("says what is wrong with its arguments", function()
    local function fails(pattern, ...)
      local out, err, status = run("c", ...)
      assert.equal("", out)
      assert.matches(pattern, err)
      assert.not_matches("stack traceback", err)
      assert.equal(1, status)
    end
    fails("%-%-tasks: 'riddle' is no task\nKnown: cwe, ", "--tasks", "riddle")
    fails("%-%-tasks: nq needs a file\nWrite nq=PATH%.", "--tasks", "nq")
    fails("%-%-tasks: vt reads no file\nWrite vt%.", "--tasks", "vt=x")
    fails("no/such: no such file", "--tasks", "nq=no/such")
    fails("%-%-budgets: '2' is not a share", "--budgets", "2")
    fails("%-%-lengths: '7' is not a number", "--lengths", "7")
    fails("more than the model's context", "--lengths", "999999")
    fails("too short to hide anything in", "--text", "/dev/null")
    fails("must be one of 'agnostic', 'aware', 'both'", "--mode", "blind")
    fails("unknown policy 'nonesuch'", "--policy", "nonesuch")
    fails("has no tokenizer", "--model", helper.fixture "families/llama-mha")
    fails("has no room for a case\nGive a greater %-%-lengths", "--tasks", "niah_single_1",
      "--lengths", "200")
    local out, err, status = shell.pyramid("eval", "--results", folder .. "/none")
    assert.equal("", out)
    assert.matches("No such file", err)
    assert.equal(1, status)
  end)
end)
