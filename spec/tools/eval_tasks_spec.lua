-- The tasks of `pyramid eval`: what was published of them holds for the cases that are made up, and
-- files are read as their makers write them, or refused by line.
local helper = require "helper"
local lines = require "pyramid.tools.eval.lines"
local haystack = require "pyramid.tools.eval.haystack"
local exams = require "pyramid.tools.eval.tasks.exams"
local metrics = require "pyramid.tools.eval.metrics"
local passages = require "pyramid.tools.eval.tasks.passages"
local pyramid = require "pyramid"
local shell = require "support.shell"
local tasks = require "pyramid.tools.eval.tasks"

local function read(path)
  local file <close>, message = io.open(path, "rb")
  if not file then return nil, message, "io" end
  return file:read "a"
end

local function count(text, what)
  local n, at = 0, 1
  while true do
    local first, last = text:find(what, at, true)
    if not first then return n end
    n, at = n + 1, last + 1
  end
end

describe("eval's tasks", function()
  local model, folder, words

  setup(function()
    model = assert(pyramid.model "models/tiny")
    folder = shell.folder()
    local parts = {}
    for i = 1, 900 do parts[i] = ("Sentence %d of this text tells nothing at all."):format(i) end
    words = table.concat(parts, " ")
  end)
  teardown(function()
    model:close()
    shell.remove(folder)
  end)

  -- Length in bytes: quick, and alike for all.
  local function measure(case)
    local most = 0
    for _, q in ipairs(case.questions) do most = math.max(most, #q.text + #q.prefix + q.most) end
    return #case.context + most
  end

  local function cases(name, more)
    local given = { length = 4000, questions = 6, per_context = 4, seed = 0, text = words,
      measure = measure, read = read, list = tasks.list_files }
    for key, value in pairs(more or {}) do given[key] = value end
    return tasks.cases(name, model, given)
  end

  local function file(name, text)
    local path = folder .. "/" .. name
    helper.write(path, text)
    return path
  end

  it("fill the length, and no more", function()
    for _, name in ipairs(tasks.ruler) do
      if not tasks.wants_file(name) then
        for _, length in ipairs { 4000, 9000 } do
          local made, asked = assert(cases(name, { length = length })), 0
          local seen = {}
          for _, case in ipairs(made) do
            assert.is_true(measure(case) <= length, name)
            assert.is_true(measure(case) > length - 150, ("%s: %d"):format(name, measure(case)))
            assert.is_nil(seen[case.context], name)
            seen[case.context] = true
            assert.equal(name, case.task)
            asked = asked + #case.questions
          end
          assert.equal(6, asked, name)
        end
        local none, message, code = cases(name, { length = 300 })
        assert.is_nil(none)
        assert.matches("a length of 300 has no room for a case", message)
        assert.equal("length", code)
      end
    end
  end)

  it("are the same for a seed, and others for another", function()
    for _, name in ipairs { "niah_multikey_1", "niah_multikey_3", "vt", "cwe", "fwe" } do
      local one, again, other = assert(cases(name)), assert(cases(name)),
        assert(cases(name, { seed = 100 }))
      assert.equal(one[1].context, again[1].context)
      assert.same(one[1].questions, again[1].questions)
      assert.not_equal(one[1].context, other[1].context)
    end
  end)

  it("hide needles once each, and ask for them", function()
    local wanted = { niah_single_1 = { 1, 1 }, niah_single_2 = { 1, 1 }, niah_single_3 = { 1, 1 },
      niah_multikey_1 = { 4, 1 }, niah_multivalue = { 4, 4 }, niah_multiquery = { 4, 4 } }
    for name, of in pairs(wanted) do
      local kind = name == "niah_single_3" and "uuids" or "numbers"
      local case = assert(cases(name, { length = 8000 }))[1]
      assert.equal(of[1], count(case.context, "One of the special magic " .. kind .. " for "), name)
      for _, q in ipairs(case.questions) do
        assert.equal(of[2], #q.answers, name)
        for _, value in ipairs(q.answers) do
          assert.equal(1, count(case.context, " is: " .. value .. "."), name)
        end
        local key = q.text:match "for (%l+%-%l+)"
        assert.is_true(count(case.context, "for " .. key .. " is: ") >= 1, key)
        assert.equal(1, metrics.score(q.metric, table.concat(q.answers, " and "), q.answers))
        assert.equal(128, q.most)
      end
    end
    local case = assert(cases "niah_single_1")[1]
    assert.matches("^A special magic number is hidden within the following text%. Make sure", case
      .context)
    assert.matches("\nThe grass is green%. The sky is blue%.", case.context)
    local key = case.context:match "for (%S+) is: "
    assert.equal(("\nWhat is the special magic number for %s mentioned in the provided text?")
      :format(key), case.questions[1].text)
    assert.equal((" The special magic number for %s mentioned in the provided text is"):format(key),
      case.questions[1].prefix)
    case = assert(cases "niah_multiquery")[1]
    assert.matches("^Some special magic numbers are hidden", case.context)
    assert.matches("for %S+, %S+, %S+, and %S+ mentioned", case.questions[1].text)
  end)

  it("have haystacks of needles of which several are asked for", function()
    for name, kind in pairs { niah_multikey_2 = "numbers", niah_multikey_3 = "uuids" } do
      local case = assert(cases(name))[1]
      local _, breaks = case.context:gsub("\n", "")
      assert.equal(breaks, count(case.context, "One of the special magic " .. kind .. " for "))
      assert.equal(4, #case.questions)
      for _, q in ipairs(case.questions) do
        assert.equal(1, count(case.context, " is: " .. q.answers[1] .. "."))
      end
      if kind == "uuids" then
        assert.matches("^%x+%-%x%x%x%x%-4%x%x%x%-[89ab]%x%x%x%-%x+$",
          case.questions[1].answers[1])
        assert.equal(36, #case.questions[1].answers[1])
      end
    end
  end)

  it("track variables through a chain that stands in order", function()
    for _, case in ipairs(assert(cases "vt")) do
      local q = case.questions[1]
      assert.equal(5, #q.answers)
      local value = q.text:match "assigned the value (%d%d%d%d%d) in"
      local at = assert(case.context:find(("\nVAR %s = %s"):format(q.answers[1], value), 1, true))
      for i = 2, 5 do
        local assigned = ("\nVAR %s = VAR %s"):format(q.answers[i], q.answers[i - 1])
        local next_at = assert(case.context:find(assigned, 1, true), assigned)
        assert.is_true(next_at > at)
        at = next_at
      end
      assert.equal(2, count(case.context, "Memorize and track the chain(s)"))      -- an example
      assert.matches("they are:  %u%u%u %u%u%u %u%u%u %u%u%u %u%u%u\n\n", case.context)
    end
  end)

  it("list words of which ten are common", function()
    for length, of in pairs { [3000] = { 6, 1 }, [9000] = { 30, 3 } } do
      local case = assert(cases("cwe", { length = length }))[1]
      local list, counts = case.context:match ".*Memorize the ones that appear most often%.\n(.*)",
        {}
      for word in list:gmatch "%d+%. (%S+)" do counts[word] = (counts[word] or 0) + 1 end
      assert.equal(10, #case.questions[1].answers)
      for _, word in ipairs(case.questions[1].answers) do
        assert.equal(of[1], counts[word])
        counts[word] = nil
      end
      for word, n in pairs(counts) do assert.equal(of[2], n, word) end
    end
  end)

  it("code words of which three are frequent", function()
    local case, counts = assert(cases("fwe", { length = 9000 }))[1], {}
    for word in case.context:match "coded words%. (.*)$":gmatch "%S+" do
      counts[word] = (counts[word] or 0) + 1
    end
    local answers, least = case.questions[1].answers, math.huge
    for i, word in ipairs(answers) do
      assert.equal(6, #word)
      assert.near(counts["..."] / (i + 1) ^ 2, counts[word], 1.1)
      least = math.min(least, counts[word])
      counts[word] = nil
    end
    counts["..."] = nil
    for word, n in pairs(counts) do assert.is_true(n < least, word) end
  end)

  it("put needles where they are said to stand", function()
    local sentences = haystack.sentences "One is here.  Two?\n\"Three!\" Four, e.g. this. Five"
    assert.same({ "One is here.", "Two?", "\"Three!\"", "Four, e.g. this.", "Five" }, sentences)
    assert.equal("A One is here. Two? B \"Three!\" Four, e.g. this. Five C",
      haystack.set(sentences, { "A", "B", "C" }, { 0, 0.4, 1 }))
    assert.equal("A B One is here.", haystack.set({ "One is here." }, { "A", "B" }, { 0, 0.5 }))
  end)

  it("ask for facts as recall does", function()
    local made = assert(cases("word", { length = 400, questions = 5 }))
    assert.equal(2, #made)
    assert.equal(4, #made[1].questions)
    assert.equal(400 - 64, #made[1].ids)
    for _, q in ipairs(made[1].questions) do
      assert.is_true(#q.rest >= 1)
      assert.equal("word", q.metric)
    end
    made = assert(cases("world", { length = 400, questions = 1 }))
    assert.equal("line", made[1].questions[1].metric)
  end)

  it("read documents with questions, of three kinds", function()
    local nq = {}
    for i = 1, 30 do
      nq[i] = ('{"question":"who is %d","answers":["A%d"],"ctxs":[{"title":"T%d","text":"It is A%d.'
        .. '","isgold":true}]}'):format(i, i, i, i)
    end
    local path = file("nq.jsonl", table.concat(nq, "\n"))
    local made = assert(cases("nq", { path = path, questions = 8, length = 1200 }))
    assert.equal(2, #made)
    local asked = {}
    for _, case in ipairs(made) do
      assert.equal(4, #case.questions)
      for _, q in ipairs(case.questions) do
        local n = q.text:match "Question: who is (%d+)$"
        assert.is_nil(asked[n])
        asked[n] = true
        assert.same({ "A" .. n }, q.answers)
        assert.equal(1, count(case.context, ("\nT%s\nIt is A%s."):format(n, n)))
      end
      assert.is_true(count(case.context, "Document ") > 6)
      assert.matches("documents%.\n\nDocument 1:\nT", case.context)
    end
    path = file("squad.json", '{"data":[{"paragraphs":[{"context":"Red.","qas":[{"question":"q1",'
      .. '"is_impossible":false,"answers":[{"text":"Red"}]},{"question":"no","is_impossible":true,'
      .. '"answers":[]}]},{"context":"Blue.","qas":[]}]}]}')
    local squad = assert(passages.read("qa_1", path, read(path)))
    assert.same({ "Red.", "Blue." }, squad.documents)
    assert.equal(1, #squad.questions)
    path = file("hotpot.json", '[{"question":"q","answer":"a","context":[["T",["One. ","Two."]],'
      .. '["U",["Three."]]]}]')
    local hotpot = assert(passages.read("qa_2", path, read(path)))
    assert.same({ "T\nOne. Two.", "U\nThree." }, hotpot.documents)
    assert.same({ 1, 2 }, hotpot.questions[1].documents)
    for n = 1, 40 do
      local stride, seen = passages.stride(n), {}
      for i = 0, n - 1 do seen[i * stride % n] = true end
      for i = 0, n - 1 do assert.is_true(seen[i]) end
    end
  end)

  it("read LongBench with its prompts", function()
    local path = file("lb.jsonl", '{"input":"Who?","context":"Text 100%.","answers":["He"],'
      .. '"dataset":"qasper_e","all_classes":null}\n{"input":"Question: x\\nType:","context":"C",'
      .. '"answers":["Food"],"dataset":"trec","all_classes":["Food","Date"]}\n')
    local made = assert(cases("longbench", { path = path, questions = 10 }))
    local by = {}
    for _, case in ipairs(made) do by[case.task] = case end
    assert.matches("^You are given a scientific article.-Article: Text 100%%%.$", by.qasper.context)
    assert.matches("\n\nQuestion: Who%?\n\nAnswer:$", by.qasper.questions[1].text)
    assert.equal(128, by.qasper.questions[1].most)
    assert.is_true(by.trec.plain)
    assert.same({ "Food", "Date" }, by.trec.questions[1].classes)
    assert.is_true(by.trec.questions[1].first_line)
    local none, message, code = cases("longbench", { path = file("zh.jsonl",
      '{"input":"x","context":"y","answers":["z"],"dataset":"lsht"}') })
    assert.is_nil(none)
    assert.matches("zh%.jsonl, line 1: the set 'lsht' is not known", message)
    assert.equal("unsupported", code)
  end)

  it("read L-Eval, all questions of a document together", function()
    local path = file("tpo.jsonl", '{"input":"Doc","instructions":["q1","q2"],"outputs":["A","B"],'
      .. '"source":"toefl_tpo","evaluation":"exam"}\n{"input":"D","instructions":["x"],"outputs":'
      .. '["y"],"evaluation":"human"}\n')
    local made = assert(cases("leval", { path = path, questions = 10 }))
    assert.equal(1, #made)
    assert.equal("tpo", made[1].task)
    assert.equal(2, #made[1].questions)
    assert.equal("choice", made[1].questions[1].metric)
    assert.equal("\nAnswer:", made[1].questions[2].prefix)
    assert.matches("only a sinlge correct option", made[1].system)
    path = file("summ.jsonl", '{"input":"Doc","instructions":["Sum up."],"outputs":["one two '
      .. 'three"],"source":"news_summ","evaluation":"rouge"}')
    local q = assert(cases("leval", { path = path }))[1].questions[1]
    assert.equal("rouge", q.metric)
    assert.equal(" Instruction: Sum up. \nAnswer this question with 3 words.", q.text)
  end)

  it("read MMLU's folders, with letters or numbers", function()
    assert(os.execute(("mkdir -p '%s/mmlu/dev' '%s/mmlu/test'"):format(folder, folder)))
    local dev = {}
    for i = 1, 6 do dev[i] = ('"Shot, %d",w,x,y,z,%s'):format(i, i % 2 == 0 and "B" or "C") end
    file("mmlu/dev/high_school_x_dev.csv", table.concat(dev, "\n") .. "\n")
    file("mmlu/test/high_school_x_test.csv", 'question,a,b,c,d,answer\n"He said ""so""",1,2,3,4,2\n'
      .. "Two,1,2,3,4,0\n")
    local case = assert(cases("mmlu", { path = folder .. "/mmlu" }))[1]
    assert.matches("^The following are multiple choice questions %(with answers%) about high "
      .. "school x%.\n\nShot, 1\nA%. w\nB%. x\nC%. y\nD%. z\nAnswer: C\n\nShot, 2\n", case.context)
    assert.equal(5, count(case.context, "\nAnswer: "))
    assert.equal('He said "so"\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:', case.questions[1].text)
    assert.same({ "C" }, case.questions[1].answers)
    assert.same({ "A" }, case.questions[2].answers)
    file("mmlu/test/high_school_x_test.csv", "q,1,2,3,4,0\nq,1,2,3,0\n")
    local none, message = cases("mmlu", { path = folder .. "/mmlu" })
    assert.is_nil(none)
    assert.matches("row 2: no question, four choices and an answer", message)
    none, message = cases("mmlu", { path = folder })
    assert.is_nil(none)
    assert.matches("no folder test", message)
  end)

  it("read GSM8K, whose first five are shown, and say what number is meant", function()
    local gsm = {}
    for i = 1, 8 do
      gsm[i] = ('{"question":"q%d","answer":"so\\n#### 1,00%d"}'):format(i, i)
    end
    local path = file("gsm.jsonl", table.concat(gsm, "\n"))
    local case = assert(cases("gsm8k", { path = path }))[1]
    assert.equal(5, count(case.context, "Question: q"))
    assert.equal(3, #case.questions)
    assert.equal("Question: q6\nAnswer:", case.questions[1].text)
    local function worth(answer)
      return metrics.score("final_number", answer, case.questions[1].answers)
    end
    assert.equal(1, worth "first 7, then\n#### 1006")
    assert.equal(1, worth "it is $1,006.00.")
    assert.equal(0, worth "1006, or 7")
    assert.equal(0, worth "none")
    file("train.jsonl", '{"question":"t","answer":"#### 1"}')
    case = assert(cases("gsm8k", { path = path, questions = 20 }))[1]
    assert.equal("Question: t\nAnswer: #### 1\n\n", case.context)
  end)

  it("read HumanEval, and what its checker wrote", function()
    local path = file("he.jsonl", '{"task_id":"HumanEval/0","prompt":"def f():\\n"}')
    local case = assert(cases("humaneval", { path = path }))[1]
    assert.equal("HumanEval/0", case.name)
    assert.equal("def f():\n", case.context)
    local text = {}
    for i, passed in ipairs { true, false, false, false } do
      text[i] = ('{"task_id":"a","passed":%s}'):format(passed)
      text[4 + i] = '{"task_id":"b","passed":true}'
    end
    text = table.concat(text, "\n")
    assert.near((0.25 + 1) / 2, assert(exams.passed("r", text, 1)), 1e-12)
    assert.near((0.5 + 1) / 2, assert(exams.passed("r", text, 2)), 1e-12)
    local none, message = exams.passed("r", text, 5)
    assert.is_nil(none)
    assert.matches("fewer than 5 samples", message)
  end)

  it("read one's own lines, or say which is wrong", function()
    local path = file("own.jsonl", '{"context":"C","question":"q1","answer":"a","metric":"exact"}\n'
      .. '{"context":"C","question":"q2","answers":["b","c"],"max_tokens":5,"prefix":"It is"}\n\n'
      .. '{"context":"D","question":"q3","answers":["d"]}\n')
    local made = assert(cases("data", { path = path }))
    assert.equal(2, #made)
    local by = {}
    for _, case in ipairs(made) do by[case.context] = case end
    assert.equal("exact", by.C.questions[1].metric)
    assert.equal(5, by.C.questions[2].most)
    assert.equal("own", by.D.task)
    assert.equal("line 4", by.D.name)
    for text, fault in pairs {
      ['{"context":"C","question":"q","answers":[]}'] = "no answers",
      ['{"context":"C","question":"q","answers":[1]}'] = "no answers",
      ['{"context":"C","answers":["a"]}'] = "no context and question",
      ['{"context":"C","question":"q","answer":"a","metric":"x"}'] = "the metric 'x' is not known",
      ['{"context":"C","question":"q","answer":"a","max_tokens":0}'] = "max_tokens is no count",
      ['{"context":'] = "line 1, column",
      [""] = "it has no lines",
    } do
      local none, message, code = cases("data", { path = file("bad.jsonl", text) })
      assert.is_nil(none, text)
      assert.matches("bad%.jsonl", message)
      assert.is_truthy(message:find(fault, 1, true), message)
      assert.equal("format", code)
    end
    local none, message, code = cases("data", { path = folder .. "/none" })
    assert.is_nil(none)
    assert.matches("none", message)
    assert.equal("io", code)
  end)

  it("read comma-separated values as they are written", function()
    assert.same({ { "a", "b,c", 'd"e', "" }, { "1\n2", "" } },
      assert(lines.csv("x", 'a,"b,c","d""e",\r\n"1\n2",\n')))
    assert.same({}, assert(lines.csv("x", "")))
    local none, message = lines.csv("x", 'a,"b')
    assert.is_nil(none)
    assert.matches("x: row 1", message)
    for _, value in ipairs { "plain", "a,b", 'say "so"', "two\nlines", "" } do
      assert.same({ { value, "z" } }, assert(lines.csv("x", lines.field(value) .. ",z\n")))
    end
  end)
end)
