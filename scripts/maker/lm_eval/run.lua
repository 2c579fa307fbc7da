-- run.lua [--model PATH] [--count N]: lm-evaluation-harness against `pyramid serve`, offline, and
-- the same questions without it:
--
--   make deps-clients LM_EVAL=1
--   build/pyramid scripts/maker/lm_eval/run.lua --model models/tiny
--
-- Choices are scored over /v1/completions (local-completions, tokenizer_backend "remote": the
-- server counts tokens) and by model:score: the same choice must win, and each log-likelihood be
-- within 0.02. Answers are written over /v1/chat/completions (local-chat-completions) and by
-- `pyramid eval --tasks data=FILE`: texts and scores must be equal, where the prompts' ids are, as
-- eval encodes context and question apart, and a template may join them (models/tiny's does). Exits
-- 1 where something differs, 2 where the harness does not run.
package.path = "./?.lua;" .. package.path
local chat = require "pyramid.chat"
local cjson = require "cjson"
local conversation = require "pyramid.conversation"
local parts_of = require "pyramid.tools.eval.prompt".parts
local pyramid = require "pyramid"
local served = require "spec.support.served"
local shell = require "spec.support.shell"

local given = { model = "models/tiny", count = "24" }
for i = 1, #arg, 2 do
  local key = (arg[i] or ""):match "^%-%-(%l+)$"
  if not given[key] or not arg[i + 1] then
    io.stderr:write "usage: run.lua [--model PATH] [--count N]\n"
    os.exit(2)
  end
  given[key] = arg[i + 1]
end

local python = os.getenv "PYTHON_CLIENTS" or "build/clients/bin/python"
if select(3, shell.run(python .. " -c 'import lm_eval'")) ~= 0 then
  io.stderr:write "needs lm-evaluation-harness: make deps-clients LM_EVAL=1\n"
  os.exit(2)
end

local folder = shell.folder()

-- Writes a list as lines of JSON, and the task that reads them.
local function put(name, list)
  local lines = {}
  for i, one in ipairs(list) do lines[i] = cjson.encode(one) end
  local data, task = folder .. "/" .. name .. ".jsonl", io.open("scripts/maker/lm_eval/" .. name
    .. ".yaml")
  for path, text in pairs { [data] = table.concat(lines, "\n") .. "\n",
    [folder .. "/" .. name .. ".yaml"] = task:read "a":gsub(name .. "%.jsonl", data) } do
    local file <close> = assert(io.open(path, "wb"))
    file:write(text)
  end
  task:close()
  return data
end

-- What the harness found of each question of a task.
local function harness(server, kind, path, task, more)
  local words = ("HF_DATASETS_OFFLINE=1 HF_HUB_OFFLINE=1 HF_HOME=%s/hf %s -m lm_eval%s --model %s "
    .. "--tasks %s --include_path %s --model_args model=served,base_url=%s%s,num_concurrent=4%s "
    .. "--output_path %s/%s --log_samples"):format(folder, python, "%s", kind, task, folder,
    server.url, path, more, folder, task)
  local out, err, status
  for _, verb in ipairs { " run", "" } do               -- releases before 0.4.10 know no verb
    out, err, status = shell.run(words:format(verb))
    if status == 0 then break end
  end
  if status ~= 0 then
    server:stop()
    io.stderr:write(out, err, "\n")
    os.exit(2)
  end
  print(out:match "|Tasks.*" or out)
  local samples = {}
  local found = shell.run(("find %s/%s -name 'samples_*.jsonl'"):format(folder, task))
  for line in io.lines((assert(found:match "[^\n]+"))) do
    samples[#samples + 1] = cjson.decode(line)
  end
  table.sort(samples, function(a, b) return a.doc_id < b.doc_id end)
  return samples
end

-- ---- choices ------------------------------------------------------------------------------------

-- Sentences whose last word is one of four.
local subjects = { "The cat", "A small dog", "The old king", "My sister", "The river" }
local verbs = { "sat on the", "looked at the", "went to the", "dreamed of the" }
local words = { "mat", "house", "garden", "mountain", "moon", "table", "sea", "door" }
local questions = {}
for i = 1, tonumber(given.count) do
  local choices = {}
  for j = 1, 4 do choices[j] = words[(i * 3 + j * (i % 2 == 0 and 1 or 3)) % #words + 1] end
  questions[i] = { question = subjects[i % #subjects + 1] .. " " .. verbs[i % #verbs + 1],
    choices = choices, answer = i % 4 }
end

-- Whether all choices of the harness are those of model:score.
local function check_choices(model, samples)
  local worst, right, differs = 0, 0, 0
  for _, sample in ipairs(samples) do
    local doc, best, at = sample.doc, nil, nil
    for i, choice in ipairs(doc.choices) do
      -- as the harness cuts them: no BOS, and the choice is what is behind the question's ids
      local before = assert(model:encode(doc.question, { add = false }))
      local whole = assert(model:encode(doc.question .. " " .. choice, { add = false }))
      local found = assert(model:score(before, table.move(whole, #before + 1, #whole, 1, {}),
        { dtype = "f32" }))
      worst = math.max(worst, math.abs(found.logprob - tonumber(sample.filtered_resps[i][1])))
      if not best or found.logprob > best then best, at = found.logprob, i end
    end
    local ours = at - 1 == doc.answer and 1 or 0
    right = right + ours
    if ours ~= sample.acc then differs = differs + 1 end
  end
  print(("choices: %d of %d right by model:score; %d differ; log-likelihoods within %.2g"):format(
    right, #samples, differs, worst))
  return differs == 0 and #samples > 0 and worst < 0.02
end

-- ---- answers ------------------------------------------------------------------------------------

local people, towns = { "Priya", "Mateo", "Aiko", "Kwame", "Ingrid", "Farid" },
  { "Paris", "Tokyo", "Cairo", "Madrid", "Boston", "Berlin", "Sydney" }
local asked = {}
for i = 1, tonumber(given.count) do
  local facts, who, wanted = {}, nil, nil
  for j = 1, 3 do
    local name, town = people[(i + j) % #people + 1], towns[(i * 2 + j * 3) % #towns + 1]
    facts[j] = ("%s lives in %s."):format(name, town)
    if j == i % 3 + 1 then who, wanted = name, facts[j] end
  end
  asked[i] = { context = table.concat(facts, " "), answer = wanted, metric = "exact",
    question = ("Where does %s live?"):format(who), max_tokens = 24 }
end

-- Whether a question's ids are the same as a chat's message and in the parts that eval reads.
local function reads_alike(model, one)
  local template = model.tokenizer.chat_template
  if not template then return false end
  local question = { text = "\n" .. one.question, prefix = "" }
  local parts = assert(parts_of(model, { context = one.context }, question, chat.compile(template)))
  local ids = assert(conversation.prompt("run.lua", model, { { role = "user",
    content = one.context .. question.text } }))
  local at = 0
  for _, part in ipairs { parts.context, parts.question, parts.cue } do
    for _, id in ipairs(part) do
      at = at + 1
      if ids[at] ~= id then return false end
    end
  end
  return at == #ids
end

-- Whether all answers of the harness, and what they score, are those of pyramid eval.
local function check_answers(samples, data)
  local _, err, status = shell.pyramid("eval", "--model", given.model, "--precision", "f32",
    "--cache-dtype", "f32", "--tasks", "data=" .. data, "--questions", given.count, "--lengths",
    "256", "--policy", "full", "--out", folder .. "/eval")
  if status ~= 0 then
    io.stderr:write(err, "\n")
    os.exit(2)
  end
  local ours = {}
  for line in io.lines(folder .. "/eval/results.jsonl") do
    local case = cjson.decode(line)
    local first = math.tointeger(tonumber(case.case:match "^line (%d+)$"))
    for i, text in ipairs(case.answers) do
      ours[first + i - 1] = { text = text, score = case.scores[i] }
    end
  end
  local right, differs = 0, 0
  for i, sample in ipairs(samples) do
    local one = ours[i] or {}
    right = right + sample.exact_match
    -- pyramid eval keeps no blank at an answer's end
    if one.text ~= sample.resps[1][1]:match "^(.-)%s*$" or one.score ~= sample.exact_match then
      differs = differs + 1
      print(("%d: '%s' (%s), by pyramid eval '%s' (%s)"):format(i, sample.resps[1][1],
        sample.exact_match, tostring(one.text), tostring(one.score)))
    end
  end
  print(("answers: %d of %d right; %d differ from pyramid eval's"):format(right, #samples, differs))
  return differs == 0 and #samples > 0 and #samples == #ours
end

local files = { questions = put("questions", questions), answers = put("answers", asked) }
local server = served.start(("--model '%s' --precision f32 --cache-dtype f32 --name served")
  :format(given.model))
local chosen = harness(server, "local-completions --batch_size 4", "/v1/completions",
  "pyramid_questions", ",tokenizer_backend=remote")
local model <close> = assert(pyramid.model(given.model, { precision = "f32" }))
local written = reads_alike(model, asked[1]) and harness(server,
  "local-chat-completions --apply_chat_template", "/v1/chat/completions", "pyramid_answers", "")
server:stop()
local held = check_choices(model, chosen)
if written then held = check_answers(written, files.answers) and held
else print "answers: not asked for, as the model's chat template joins what eval reads apart"
end
shell.remove(folder)
os.exit(held and 0 or 1, true)
