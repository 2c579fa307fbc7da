-- A report's entries, made up at random: of as many policies as asked for, some with long names.
local compare = require "pyramid.tools.compare"
local comparison = require "pyramid.tools.report.comparison"

local made = {}

local known = { "h2o", "snapkv", "pyramidinfer preset=45", "expected_attention", "scissorhands",
  "duo heads=8:1,8:2", "duo heads=8:1,8:2,5:1,7:1,7:2",
  "duo heads=8:1,8:2,5:1,7:1,7:2,2:2,2:1,6:1,3:2,4:2,6:2,5:2,4:1", "pyramid_plus", "streaming",
  "a_policy_of_somebody_with_a_long_name", "snapkv window=64 kernel=7", "tova", "keydiff", "knorm" }
local kinds = { "attribute", "code", "gift", "moved", "verse", "chain" }
local budgets = { 0.2, 0.35, 0.45, 0.6, 0.8 }

local function kept_of(tokens)
  local kept = { tokens = tokens, layers = {}, rows = {}, marks = { { first = 3, last = 9,
    kind = "code", question = "What is it?", answer = "4821", text = "It is 4821." } } }
  for layer = 1, 4 do
    local digits = {}
    for i = 1, tokens do digits[i] = ("%x"):format(math.random() < 0.4 and 15 or 0) end
    kept.layers[layer], kept.rows[layer] = table.concat(digits), math.random(1, tokens)
  end
  return kept
end

local function entry_of(series, budget, length, mode, quality)
  local right = math.floor(30 * quality * (budget or 1) ^ 0.4 + 0.5)
  local kl = budget and (1.05 - quality * budget ^ 0.3) * 0.8 or 0
  local each = {}
  for i = 1, 4 do each[i] = kl * (0.5 + math.random()) end
  local entry = { series = series, length = length, mode = mode, budget = budget, asked = budget,
    label = budget and ("%s target=%g"):format(series, budget) or series,
    fraction = budget or 1, silent = false, front = math.random() < 0.1,
    missed = budget ~= nil and math.random() < 0.1, bytes = 1 << 20, tasks = {},
    recall = { asked = 30, right = right, found = right, kinds = {}, survival = { 1, 1, 1, 1 },
      evidence = budget or 1, accuracy = right / 30, uncertainty = compare.uncertainty(right, 30) },
    pooled = { share = right / 30, half = 0.1, p = 0.03 },
    document = { perplexity = 2 * math.exp(kl), bits_per_byte = 0.5, kl = kl, top1 = 0.9,
      fraction = budget or 1, context_fraction = budget or 1, cache_bytes = 1 << 20, computed = 1,
      prefill_seconds = 0.1, decode_rate = 100, tokens = 8, kl_each = each, loss_each = each },
    kept = budget and kept_of(200) }
  for _, kind in ipairs(kinds) do
    entry.recall.kinds[kind] = { asked = 5, right = math.min(5, right // 6) }
  end
  return entry
end

--- A page of so many policies at five budgets, for every length and mode.
---@param policies integer
---@param given? { lengths?: integer[], modes?: string[], eval?: boolean }
---@return string
function made.page(policies, given)
  given = given or {}
  local lengths, modes = given.lengths or { 1024, 2048 }, given.modes or { "agnostic", "aware" }
  local entries, names, quality = {}, {}, {}
  for i = 1, policies do
    names[i] = known[i] or ("policy%d"):format(i)
    quality[i] = 0.5 + 0.5 * math.random()
    if math.random() < 0.3 then quality[i] = 0.9 end                     -- curves that lie together
  end
  for _, length in ipairs(lengths) do
    for _, mode in ipairs(modes) do
      entries[#entries + 1] = entry_of("full", nil, length, mode, 1)
      for i, name in ipairs(names) do
        for _, budget in ipairs(budgets) do
          entries[#entries + 1] = entry_of(name, budget, length, mode, quality[i])
          if given.eval then entries[#entries].document = nil end
        end
      end
    end
  end
  if given.eval then for _, entry in ipairs(entries) do entry.document = nil end end
  return comparison.render(entries, { command = "pyramid compare " .. ("--policy x "):rep(policies),
    date = "today", model = "A model", path = "models/made-up", version = "0",
    machine = { cpu = "a processor", onednn = "3" }, threads = 1, isa = "avx2", measured = 1,
    seconds = 1, kinds = kinds,
    protocol = given.eval and { chat = true, per_context = 4, nats = {} } or nil,
    settings = { lengths = lengths, modes = modes, budgets = budgets, questions = 5, documents = 2,
      predict = 8, first_seed = 0, cache_dtype = "f16", precision = "f32" } })
end

return made
