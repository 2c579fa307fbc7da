-- soak.lua [--model PATH] [--clients N] [--seconds N] [--policy NAME]: `pyramid serve` under many
-- clients that stream, leave in the middle, read slowly, and send what is wrong or too large:
--
--   build/pyramid scripts/maker/soak.lua --seconds 600
--
-- Every stream must be whole (the tokens that it asked for, in order, and [DONE]), and every error
-- the one that was asked for; how many greedy texts are not what they were at first is said.
-- Memory, as /metrics and the system say, is printed now and then. At the end it must not have
-- grown by more than a tenth and 16 MiB since a fifth of the time, half a minute at least: by then
-- as many caches are kept as may be. Exits 1 where any of that fails.
package.path = "./?.lua;" .. package.path
local cjson = require "cjson"
local served = require "spec.support.served"

local given = { model = "models/tiny", clients = "32", seconds = "120", policy = "mixed" }
for i = 1, #arg, 2 do
  local key = arg[i]:match "^%-%-(%l+)$"
  if not given[key] or not arg[i + 1] then
    io.stderr:write "usage: soak.lua [--model PATH] [--clients N] [--seconds N] [--policy NAME]\n"
    os.exit(1)
  end
  given[key] = arg[i + 1]
end
local missing = served.missing()
if missing then
  io.stderr:write(missing, "\n")
  os.exit(1)
end

local modules = require "pyramid.serve.library".open()
local cqueues, streams = modules.cqueues, require "spec.support.streams"
local server = served.start(("--model %s --quiet --memory '512 MiB'"):format(given.model))
local queue, ends = cqueues.new(), cqueues.monotime() + tonumber(given.seconds)
local counts, wrong, texts = {}, {}, {}

local function count(what) counts[what] = (counts[what] or 0) + 1 end
local function fault(text)
  count "WRONG"
  if #wrong < 20 then wrong[#wrong + 1] = text end
end

local words = { "cat", "dog", "house", "river", "mountain", "bread", "lamp", "garden", "king" }
local policies = { "full", "h2o", "snapkv", "streaming", "pyramidinfer", "tova" }
local function prompt_of(n, seed)
  local parts, state = {}, seed
  for i = 1, n do
    state = (state * 1103515245 + 12345) % 2147483648
    parts[i] = words[state // 65536 % #words + 1]
  end
  return table.concat(parts, " ")
end

local function client(which)
  while cqueues.monotime() < ends do
    local kind = math.random(20)
    local s = streams.connect(server.port)
    if not s then
      fault "no connection"
      return
    end
    local seed = math.random(12)
    local length = ({ 10, 40, 200, 600 })[seed % 4 + 1]
    local policy = given.policy == "mixed" and policies[seed % #policies + 1] or given.policy
    local body = { prompt = prompt_of(length, seed), max_tokens = 10 + seed * 4, stream = true,
      temperature = 0, ignore_eos = true, pyramid = { policy = policy },
      stream_options = { include_usage = true } }
    if kind == 1 then
      streams.post(s, "/v1/completions", '{"prompt": "a", "max_tokens": "x"}',
        "Connection: close\r\n")
      local status = streams.events(s, function() end)
      if status ~= 400 then fault("a wrong request: " .. tostring(status)) end
      count "refused"
    elseif kind == 2 then
      s:xwrite("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n",
        "bn", 10)
      local status = streams.events(s, function() end)
      if status ~= 413 then fault("an oversized request: " .. tostring(status)) end
      count "oversized"
    elseif kind == 3 then
      s:xwrite("GARBAGE\r\n\r\n", "bn", 10)
      count "garbage"
    else
      local leaves = kind <= 6 and math.random(10) or nil
      local slow = kind == 7
      local parts, written, usage = {}, 0, nil
      streams.post(s, "/v1/completions", cjson.encode(body))
      local began, first = cqueues.monotime(), nil
      local status, done = streams.events(s, function(event)
        first = first or cqueues.monotime() - began
        usage = type(event.usage) == "table" and event.usage or usage
        if event.choices[1] then
          parts[#parts + 1], written = event.choices[1].text, written + 1
        end
        if slow then cqueues.sleep(0.1) end
        if leaves and written >= leaves then return false end
      end)
      if leaves then count "left"
      elseif status == 429 then
        count "busy"
        cqueues.sleep(1)
      elseif status ~= 200 or not done then
        fault(("client %d: status %s, done %s, %d pieces"):format(which, tostring(status),
          tostring(done), written))
      elseif not usage or usage.completion_tokens ~= body.max_tokens then
        fault(("client %d: %s tokens instead of %d"):format(which,
          usage and usage.completion_tokens or "no", body.max_tokens))
      else
        count(slow and "slow" or "whole")
        counts.tokens = (counts.tokens or 0) + usage.completion_tokens
        counts.first = (counts.first or 0) + first
        local text = table.concat(parts)
        texts[seed] = texts[seed] or text
        if texts[seed] ~= text then count "another text" end
      end
    end
    s:close()
  end
end

local function resident()
  for line in io.lines(("/proc/%d/status"):format(server.pid)) do
    local kilobytes = line:match "^VmRSS:%s*(%d+)"
    if kilobytes then return tonumber(kilobytes) << 10 end
  end
  return 0
end

local base, last
for which = 1, tonumber(given.clients) do
  queue:wrap(function()
    local ok, why = xpcall(client, debug.traceback, which)
    if not ok then fault(why) end
  end)
end
local began, said = cqueues.monotime(), 0
while not queue:empty() do
  queue:step(1)
  local now = cqueues.monotime() - began
  if now - said >= 10 then
    said, last = now, resident()
    if now >= math.max(30, tonumber(given.seconds) / 5) then base = base or last end
    io.write(("%4.0f s: %.1f MiB resident; %s\n"):format(now, last / 2 ^ 20, cjson.encode(counts)))
    io.stdout:flush()
  end
end
local metrics = select(3, server:ask "/metrics")
last = resident()
server:stop()
for _, name in ipairs { "lua_bytes", "memory_bytes", "memory_peak_bytes", "cache_bytes",
  "reused_tokens_total", "prompt_tokens_total", "generated_tokens_total", "connections" } do
  io.write(("%s %s\n"):format(name, metrics:match("\npyramid_" .. name .. " (%S+)") or "?"))
end
for _, text in ipairs(wrong) do io.write("WRONG: ", text, "\n") end
local grown = base and last - base or 0
io.write(("%d whole streams, %.1f tokens a second, first after %.2f s on average; memory grew by %.1f MiB\n")
  :format((counts.whole or 0) + (counts.slow or 0),
    (counts.tokens or 0) / (cqueues.monotime() - began),
    (counts.first or 0) / math.max((counts.whole or 0) + (counts.slow or 0), 1), grown / 2 ^ 20))
local bad = (counts.WRONG or 0) > 0 or (base and grown > base / 10 + (16 << 20))
os.exit(bad and 1 or 0, true)
