-- book.lua: reads a book by cache:read, and asks for facts that were planted in it, so many tokens
-- after they were read. Prints what is held, how fast it goes, and what was answered.
--
--   build/pyramid scripts/examples/book.lua MODEL BOOK TOKENS ROWS POLICY [key=value …]
--
-- The policy gets `rows=ROWS`, and its cuts leave keys at the positions within the cache
-- (policy.endless), so that the book may be longer than the model's context. TOKENS: the most that
-- are read of it.
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local words = require "pyramid.tools.eval.words"

local BLOCK, DISTANCES = 512, { 512, 1536, 3584, 7680 }
local path, book, tokens, rows, name = table.unpack(arg)
if not name then error("usage: book.lua MODEL BOOK TOKENS ROWS POLICY [key=value …]", 0) end

local model = assert(pyramid.model(path, { threads = 2 }))
local given = assert(policy.parse_options(assert(policy.load(name)), { table.unpack(arg, 6) }))
given.rows = math.tointeger(tonumber(rows))
local cache <close> = assert(model:cache { policy = policy.endless(policy.load(name, given)) })

-- A fact in every block, or of a long book in every 16th.
local EVERY = math.tointeger(tonumber(tokens)) > 16384 and 16 or 1

-- ---- the book, and facts in it ------------------------------------------------------------------

local file <close> = assert(io.open(book, "rb"))
local facts, read_blocks, left = {}, 0, math.tointeger(tonumber(tokens))

-- A word and a number of the block's own: the same in every run.
local function fact_of(block)
  local key = words.adjectives[block * 7 % #words.adjectives + 1] .. "-"
    .. words.nouns[block * 13 % #words.nouns + 1]
  return { key = key, value = ("%d"):format(1000000 + block * 7368787 % 9000000) }
end

-- Blocks of ids, some of which begin with a fact.
local waiting = {}
local function next_block()
  if left <= 0 then return nil end
  while #waiting < BLOCK do
    local text = file:read(1 << 14)
    if not text then left = 0 break end
    local more = file:read "L"                          -- to a line's end, where tokens end, too
    local ids = assert(model:encode(text .. (more or ""), { add = false }))
    table.move(ids, 1, #ids, #waiting + 1, waiting)
  end
  local out, block = {}, read_blocks + 1
  if block % EVERY == 0 then
    local fact = fact_of(block)
    facts[block] = fact
    out = assert(model:encode(("\nOne of the special magic numbers for %s is: %s.\n"):format(
      fact.key, fact.value), { add = false }))
  end
  local taken = math.min(BLOCK - #out, #waiting)
  table.move(waiting, 1, taken, #out + 1, out)
  waiting = table.move(waiting, taken + 1, #waiting, 1, {})
  read_blocks, left = block, left - #out
  return #out > 0 and out or nil
end

-- ---- questions ----------------------------------------------------------------------------------

local asked, right, spent = {}, {}, 0

local function ask(fact)
  local fork <close> = assert(cache:fork())
  local ids = assert(model:encode(("\nWhat is the special magic number for %s mentioned in the "
    .. "text? The special magic number for %s mentioned in the text is: "):format(fact.key, fact.key),
    { add = false }))
  local run <close> = assert(model:generate(ids, { cache = fork, max_tokens = 12, prune = false }))
  local text = {}
  for piece in run do text[#text + 1] = piece end
  return table.concat(text):find(fact.value, 1, true) ~= nil
end

local function after_block(_, blocks)
  local began = os.clock()
  for i, distance in ipairs(DISTANCES) do
    local fact = facts[blocks - distance // BLOCK + 1]
    if fact then
      asked[i], right[i] = (asked[i] or 0) + 1, (right[i] or 0) + (ask(fact) and 1 or 0)
    end
  end
  spent = spent + os.clock() - began
end

-- ---- reading ------------------------------------------------------------------------------------

local function resident()                               -- bytes of the process, on Linux
  local status = io.open "/proc/self/status"
  return status and tonumber(status:read "a":match "VmRSS:%s+(%d+)") or 0
end

local least, most, first_rss, last_rss = math.huge, 0, nil, 0
local began = os.time()
local clock = os.clock()
local done = assert(cache:read(next_block, { block = BLOCK, progress = function(n, blocks)
  if blocks * BLOCK > 2 * given.rows then
    least, most = math.min(least, cache:bytes()), math.max(most, cache:bytes())
    first_rss, last_rss = first_rss or resident(), resident()
  end
  after_block(n, blocks)
end }))
local seconds = os.clock() - clock - spent
print(("%s rows=%d: %d tokens in %d blocks; %.1f tokens a second of a processor (%d s in all)")
  :format(name, given.rows, done.tokens, done.blocks, done.tokens / seconds, os.time() - began))
print(("held after each block: %.2f to %.2f MiB; the process: %.0f MiB early, %.0f at the end")
  :format(least / 2 ^ 20, most / 2 ^ 20, (first_rss or 0) / 1024, last_rss / 1024))
for i, distance in ipairs(DISTANCES) do
  print(("told %5d tokens before: %d of %d"):format(distance, right[i] or 0, asked[i] or 0))
end
