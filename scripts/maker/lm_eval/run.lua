-- run.lua [--model PATH] [--count N]: lm-evaluation-harness against `pyramid serve`, offline, and
-- the same questions by model:score; the scores must be equal, and each log-likelihood within 0.02.
--
--   make deps-clients LM_EVAL=1
--   build/pyramid scripts/maker/lm_eval/run.lua --model models/tiny
--
-- The harness asks /v1/completions (local-completions, tokenizer_backend "remote": it has the
-- server count tokens). Exits 1 where something differs, 2 where the harness does not run.
package.path = "./?.lua;" .. package.path
local cjson = require "cjson"
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

-- Sentences whose last word is one of four.
local subjects = { "The cat", "A small dog", "The old king", "My sister", "The river" }
local verbs = { "sat on the", "looked at the", "went to the", "dreamed of the" }
local words = { "mat", "house", "garden", "mountain", "moon", "table", "sea", "door" }
local questions, folder = {}, shell.folder()
for i = 1, tonumber(given.count) do
  local choices = {}
  for j = 1, 4 do choices[j] = words[(i * 3 + j * (i % 2 == 0 and 1 or 3)) % #words + 1] end
  questions[i] = { question = subjects[i % #subjects + 1] .. " " .. verbs[i % #verbs + 1],
    choices = choices, answer = i % 4 }
end
local function write(name, text)
  local file <close> = assert(io.open(folder .. "/" .. name, "wb"))
  file:write(text)
end
local lines = {}
for i, question in ipairs(questions) do lines[i] = cjson.encode(question) end
write("questions.jsonl", table.concat(lines, "\n") .. "\n")
local task <close> = assert(io.open "scripts/maker/lm_eval/questions.yaml")
write("questions.yaml", (task:read "a":gsub("questions%.jsonl", folder .. "/questions.jsonl")))

local server = served.start(("--model '%s' --precision f32 --cache-dtype f32 --name served")
  :format(given.model))
local command = ("HF_DATASETS_OFFLINE=1 HF_HUB_OFFLINE=1 HF_HOME=%s/hf %s -m lm_eval run "
  .. "--model local-completions --tasks pyramid_questions --include_path %s --batch_size 4 "
  .. "--model_args model=served,base_url=%s/v1/completions,tokenizer_backend=remote,num_concurrent=4 "
  .. "--output_path %s/out --log_samples"):format(folder, python, folder, server.url, folder)
local out, err, status = shell.run(command)
if status ~= 0 then
  command = command:gsub(" %-m lm_eval run ", " -m lm_eval ")
  out, err, status = shell.run(command)
end
server:stop()
if status ~= 0 then
  io.stderr:write(out, err, "\n")
  os.exit(2)
end
print(out:match "|Tasks.*" or out)

local model <close> = assert(pyramid.model(given.model, { precision = "f32" }))
local listing = shell.run(("find %s/out -name 'samples_*.jsonl'"):format(folder))
local file <close> = assert(io.open(assert(listing:match "[^\n]+"), "rb"))
local worst, right, total, differs = 0, 0, 0, 0
for line in file:lines() do
  local sample = cjson.decode(line)
  local doc, best, at = sample.doc, nil, nil
  for i, choice in ipairs(doc.choices) do
    -- as the harness cuts them: no BOS, and the choice is what is behind the question's ids
    local before = assert(model:encode(doc.question, { add = false }))
    local whole = assert(model:encode(doc.question .. " " .. choice, { add = false }))
    local found = assert(model:score(before, table.move(whole, #before + 1, #whole, 1, {}),
      { dtype = "f32" }))
    local theirs = tonumber(sample.filtered_resps[i][1])
    worst = math.max(worst, math.abs(found.logprob - theirs))
    if not best or found.logprob > best then best, at = found.logprob, i end
  end
  total = total + 1
  local ours = at - 1 == doc.answer
  right = right + (ours and 1 or 0)
  if (ours and 1 or 0) ~= sample.acc then differs = differs + 1 end
end
shell.remove(folder)
print(("%d of %d right by model:score; %d differ; log-likelihoods within %.2g"):format(right, total,
  differs, worst))
os.exit(differs == 0 and total > 0 and worst < 0.02 and 0 or 1, true)
