--- What a cache holds, as a table that becomes JSON: which tokens are still there, in how many
--- lanes, layer by layer, and in how many bytes. The page of the server draws it.
---
--- It stays small and quick whatever the context is. Layers x positions are drawn in at most 256
--- bins of equally many tokens, and tokens are named one by one in a window of at most 8,192 of
--- them, the last ones unless asked otherwise; counting is native (cache:held). 8,000 tokens in 30
--- layers of 3 heads are 100 kB of JSON and some 30 ms:
---
---   { layers = 2, heads = 2, tokens = 5, rows = 14, evicted = 6, fraction = 0.7,
---     bytes = { total = 10240, hot = 10240 },
---     map = { bin = 1, shares = { { 100, 100, 50, 100, 100 }, { 100, 50, 0, 0, 100 } } },
---     text = { first = 0, ids = { 1, 17, 9, 4, 8 }, texts = { "The", " cat", … },
---       held = { 4, 3, 1, 2, 4 } } }
local options = require "pyramid.options"

local COLUMNS, WINDOW = 256, 8192
local TIERS = { "hot", "warm", "cold" }

---@class pyramid.Microscope
---@field policy? string     its name, as it was given
---@field prompt? integer    tokens of the prompt, likewise
---@field layers integer
---@field heads integer      K/V heads
---@field tokens integer     seen; the last id that was picked is not, until it is read
---@field rows integer       held, of all layers and heads
---@field evicted integer    dropped, or never stored
---@field fraction number    rows of those a full cache would hold
---@field bytes table<string, integer>   total, and of each tier that there is
---@field tiers? table<string, integer>  rows of each, where there is more than the hot one
---@field window? integer[]  tokens that a layer looks back by itself, 0: all (models with sliding
---  windows)
---@field map { bin: integer, shares: integer[][] }
---  of each layer, the share in percent of the rows of `bin` positions that its heads hold: 0 is
---  none and 100 all, exactly
---@field text { first: integer, ids: integer[], texts: string[], held: integer[] }
---  tokens from position `first` on: their ids, what each adds to the text (nothing, where a later
---  one completes a character), and how many lanes hold it, of layers * heads

-- Percent of `count` of `all`, where only none is 0 and only all is 100.
local function percent(count, all)
  if count <= 0 then return 0 end
  if count >= all then return 100 end
  return math.max(1, math.min(99, math.floor(100 * count / all + 0.5)))
end

local function whole(x) return math.floor(x + 0.5) end

-- One layer's bins, from shares of f32, which tell any count of rows from the next.
local function shares(held, heads, tokens, bin)
  local row = held:totable()
  for i, share in ipairs(row) do
    local all = math.min(bin, tokens - (i - 1) * bin) * heads
    row[i] = percent(whole(share * all), all)
  end
  return row
end

-- What each of ids[first + 1 … past] adds to the text. What ends in the middle of a character is of
-- the last.
local function texts_of(model, ids, first, past)
  local list = {}
  local decoder = model.tokenizer and model.tokenizer:decoder { continues = first > 0 }
  for i = first + 1, past do
    list[#list + 1] = decoder and ids[i] and decoder:push(ids[i]) or ""
  end
  if decoder then
    if #list > 0 then list[#list] = list[#list] .. (decoder:finish() or "") end
    decoder:close()
  end
  return list
end

local given_keys = { policy = "string", prompt = "integer", first = "integer", count = "integer" }

---@class pyramid.MicroscopeOptions
---@field policy? string     the name to say …
---@field prompt? integer    … and how many of the ids are the prompt's
---@field first? integer     the window's first position; the last tokens, if not given
---@field count? integer     and its tokens, at most 8,192

---What a cache holds of the ids that it was given.
---@param cache pyramid.Cache
---@param ids integer[]   the prompt's and what was generated; may be longer than what was read
---@param model pyramid.Model
---@param given? pyramid.MicroscopeOptions
---@return pyramid.Microscope?
---@return string? message
---@return string? code
local function look(cache, ids, model, given)
  given = options.check("microscope", given, given_keys)
  local config, tokens = model.config, cache:tokens()
  local layers, heads = config.layers, config.kv_heads
  local count = math.max(0, math.min(given.count or WINDOW, WINDOW, tokens))
  local first = math.max(0, math.min(given.first or tokens - count, tokens))
  local past = math.min(tokens, first + count)
  local bin = math.max(1, (tokens + COLUMNS - 1) // COLUMNS)
  local found = { policy = given.policy, prompt = given.prompt, layers = layers, heads = heads,
    tokens = tokens, rows = 0, evicted = cache:evicted(), fraction = cache:fraction(),
    bytes = { total = cache:bytes() }, window = config.window,
    map = { bin = bin, shares = {} } }
  local tiers = {}
  for _, tier in ipairs(TIERS) do
    if cache:has_tier(tier) then
      found.bytes[tier] = cache:bytes(tier)
      tiers[#tiers + 1] = tier
    end
  end
  if #tiers > 1 then found.tiers = {} else tiers = {} end
  for layer = 1, layers do
    local held, message, code = cache:held(layer, nil, bin)
    if not held then return nil, message, code end
    found.map.shares[layer] = shares(held, heads, tokens, bin)
    for head = 1, heads do
      found.rows = found.rows + cache:rows(layer, head)
      for _, tier in ipairs(tiers) do
        found.tiers[tier] = (found.tiers[tier] or 0) + cache:rows(layer, head, tier)
      end
    end
  end
  local all, message, code = cache:held()
  if not all then return nil, message, code end
  local counts = past > first and all:slice(first + 1, past):totable() or {}
  for i, share in ipairs(counts) do counts[i] = whole(share * layers * heads) end
  found.text = { first = first, ids = table.move(ids, first + 1, past, 1, {}),
    texts = texts_of(model, ids, first, past), held = counts }
  return found
end

return look
