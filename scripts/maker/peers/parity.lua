-- parity.lua REQUEST.json: what Pyramid makes of a model file, for parity.py, which asks llama.cpp
-- the same. The request: { model, precision, text, windows, tokens, prompts = { text … }, count,
-- threads }: so many windows of so many tokens of the text. Prints { windows = ids of each, nll =
-- sum of -ln p over the second half of each, prompts = ids of each, greedy = { { ids, gaps } … } }:
-- gaps are between the two highest logits.
local json = require "pyramid.json"
local pyramid = require "pyramid"

local file <close> = assert(io.open(arg[1]))
local request = assert(json.decode(file:read "a"))
local model = assert(pyramid.model(request.model, { precision = request.precision,
  threads = request.threads }))
local out = { windows = {}, nll = {}, prompts = {}, greedy = {} }

local ids = request.tokens > 0 and assert(model:encode(request.text)) or {}
for i = 1, request.windows do
  local window = table.move(ids, (i - 1) * request.tokens + 1, i * request.tokens, 1, {})
  if #window < request.tokens then break end
  if model.config.bos and ids[1] == model.config.bos then window[1] = ids[1] end
  local cache <close> = assert(model:cache { dtype = "f32" })
  local logits, sum = assert(cache:prefill(window, { all = true })), 0
  for at = request.tokens // 2, request.tokens - 1 do
    sum = sum - logits[at]:logprob(window[at + 1])
  end
  out.windows[i], out.nll[i] = window, sum
end

for i, prompt in ipairs(request.prompts) do
  local cache <close> = assert(model:cache { dtype = "f32" })
  local prompt_ids = assert(model:encode(prompt))
  local logits, run = assert(cache:prefill(prompt_ids)), { ids = {}, gaps = {} }
  for step = 1, request.count do
    local top, logprobs = logits:top(2)
    run.ids[step], run.gaps[step] = top[1], logprobs[1] - logprobs[2]
    if step < request.count then logits = assert(cache:step(top[1])) end
  end
  out.prompts[i], out.greedy[i] = prompt_ids, run
end
print(assert(json.encode(out)))
