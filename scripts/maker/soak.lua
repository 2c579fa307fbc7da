-- soak.lua [--model PATH] [--clients N] [--seconds N] [--policy NAME]: `pyramid serve` under many
-- clients that stream, leave in the middle, read slowly, and send what is wrong or too large:
--
--   build/pyramid scripts/maker/soak.lua --seconds 600
--
-- Every stream must be whole (the tokens that it asked for, in order, and [DONE]), greedy ones the
-- text that they were at first, and every error the one that was asked for. Memory, as the server's
-- /metrics and the system say, is printed now and then, and at the end must not have grown since
-- the first half minute by more than a tenth and 16 MiB. Exits 1 where any of that fails.
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
local cqueues, socket = modules.cqueues, require "cqueues.socket"
local server = served.start(("--model %s --quiet --memory '512 MiB'"):format(given.model))
local queue, ends = cqueues.new(), cqueues.monotime() + tonumber(given.seconds)
local counts, wrong, texts = {}, {}, {}

local function count(what) counts[what] = (counts[what] or 0) + 1 end
local function fault(text)
  count "WRONG"
  if #wrong < 20 then wrong[#wrong + 1] = text end
end

local function connect()
  local s = socket.connect { host = "127.0.0.1", port = server.port, nodelay = true }
  s:setmode("b", "bn")
  s:onerror(function(_, _, why) return why end)
  s:settimeout(120)
  return s:connect(30) and s or nil
end

local function post(s, path, body, more)
  return s:xwrite(("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%s\r\n%s"):format(
    path, #body, more or "", body), "bn", 30)
end

-- The events of a stream, chunk by chunk of HTTP's; `each` may return false, to leave.
local function events(s, each)
  local status = tonumber((s:xread("*l", "b", 120) or ""):match "HTTP/1%.1 (%d+)")
  local length
  while true do
    local line = s:xread("*l", "b", 120)
    if not line then return status, false end
    if line == "" or line == "\r" then break end
    length = length or tonumber(line:lower():match "^content%-length: (%d+)")
  end
  if length then
    s:xread(length, "b", 120)
    return status, false
  end
  local rest, done = "", false
  while true do
    local size = tonumber((s:xread("*l", "b", 120) or ""):match "^%x+", 16)
    if not size then return status, false end
    if size == 0 then
      s:xread("*l", "b", 120)
      return status, done
    end
    rest = rest .. (s:xread(size, "b", 120) or "")
    s:xread("*l", "b", 120)
    while true do
      local data, after = rest:match "^data: ([^\n]*)\n\n()"
      if not data then break end
      rest = rest:sub(after)
      if data == "[DONE]" then done = true
      elseif each(cjson.decode(data)) == false then return status, done
      end
    end
  end
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
    local s = connect()
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
      post(s, "/v1/completions", '{"prompt": "a", "max_tokens": "x"}', "Connection: close\r\n")
      local status = events(s, function() end)
      if status ~= 400 then fault("a wrong request: " .. tostring(status)) end
      count "refused"
    elseif kind == 2 then
      s:xwrite("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n",
        "bn", 10)
      local status = events(s, function() end)
      if status ~= 413 then fault("an oversized request: " .. tostring(status)) end
      count "oversized"
    elseif kind == 3 then
      s:xwrite("GARBAGE\r\n\r\n", "bn", 10)
      count "garbage"
    else
      local leaves = kind <= 6 and math.random(10) or nil
      local slow = kind == 7
      local parts, written, usage = {}, 0, nil
      post(s, "/v1/completions", cjson.encode(body))
      local began, first = cqueues.monotime(), nil
      local status, done = events(s, function(event)
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
    if now >= 30 then base = base or last end
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
