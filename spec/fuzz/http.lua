-- What is fuzzed of `pyramid serve`: what a client may put on a connection. A target as those of
-- targets.lua.
--
-- A case is what a client sends, with words for what it does in between, on lines of their own:
--
--   %%WAIT%%    nothing, for a hundredth of a second
--   %%GONE%%    closes the connection there, whatever was to come
--   %%SHUT%%    says that nothing more will come, and reads on
--
-- Server and client are in this process, in one loop. A find is an answer that is no HTTP or has
-- status 500, an error of the server's own, a request that goes on when its client has gone, and a
-- server that does not answer others afterwards.
local library = require "pyramid.serve.library"
local mutate = require "spec.fuzz.mutate"
local pyramid = require "pyramid"
local helper = require "spec.helper"

local R, pick = math.random, mutate.pick

local bodies = {
  completion = { "/v1/completions", { prompt = "Once upon a time", max_tokens = 4, n = 2,
    temperature = 0.5, top_p = 0.9, stop = { "x", "\n" }, logprobs = 2, echo = true, seed = 5,
    logit_bias = { ["17"] = 3, ["9"] = -100 }, presence_penalty = 0.5, user = "u" } },
  ids = { "/v1/completions", { prompt = { { 1, 2, 3 }, { 4, 5 } }, max_tokens = 3, stream = true,
    stream_options = { include_usage = true }, pyramid = { policy = "h2o",
      options = { ratio = 0.5, recent = 0.25 }, cache_dtype = "q8_0", budget = "4 MiB" } } },
  chat = { "/v1/chat/completions", { max_tokens = 4, stream = true, logprobs = true,
    top_logprobs = 2, messages = { { role = "system", content = "s" }, { role = "user",
      content = { { type = "text", text = "hi" } } }, { role = "assistant", content = "x",
      tool_calls = { { id = "c", type = "function", ["function"] = { name = "f",
        arguments = '{"a":1}' } } } }, { role = "tool", content = "1", tool_call_id = "c" } },
    tools = { { type = "function", ["function"] = { name = "f", description = "d",
      parameters = { type = "object" } } } }, tool_choice = "auto",
    chat_template_kwargs = { enable_thinking = true } } },
  schema = { "/v1/chat/completions", { max_tokens = 8, messages = { { role = "user",
    content = "x" } }, response_format = { type = "json_schema", json_schema = { name = "n",
      schema = { type = "object", properties = { a = { type = "integer" } },
        required = { "a" } } } } } },
  tokenize = { "/tokenize", { prompt = "a b c", add_special_tokens = true } },
  detokenize = { "/detokenize", { tokens = { 1, 2, 3 } } },
}

-- The server, once in a process.
local server, said
local function open()
  if server then return server end
  local model = assert(pyramid.model("models/tiny", { threads = 1 }))
  server = assert(require "pyramid.serve".open(model, { port = 0, template = "chatml",
    memory = "32 MiB", queue = 8, parallel = 4, kept = 4, body = "64 KiB", read_seconds = 0.3,
    idle_seconds = 0.3, write_seconds = 1, seconds = 2, max_tokens = 16,
    log = function(line) if line:find "error" then said = line end end }))
  return server
end

local function http_of(base)
  local path, value = bodies[base][1], bodies[base][2]
  local body = R(3) == 1 and mutate.bytes(mutate.encode(value))
    or R(8) == 1 and mutate.encode(value) or mutate.json(value)
  local head = { ("POST %s HTTP/1.1"):format(path), "Host: localhost",
    "Content-Type: application/json" }
  local how = R(5)
  if how == 1 then
    local pieces, at = {}, 1
    while at <= #body do
      local size = R(1, 60)
      local piece = body:sub(at, at + size - 1)
      pieces[#pieces + 1] = ("%x\r\n%s\r\n"):format(R(20) == 1 and R(0, 1 << 33) or #piece, piece)
      at = at + size
    end
    head[#head + 1] = "Transfer-Encoding: chunked"
    body = table.concat(pieces) .. (R(4) > 1 and "0\r\n\r\n" or "")
  else
    local length = R(8) == 1 and pick(mutate.integers) or #body
    head[#head + 1] = ("Content-Length: %d"):format(length)
  end
  if R(6) == 1 then
    head[#head + 1] = pick { "Expect: 100-continue", "Connection: close", "Connection: keep-alive",
      "Authorization: Bearer x", "Origin: http://localhost", "TE: gzip", "Upgrade: h2c",
      "Content-Encoding: gzip", "X: " .. ("y"):rep(R(20000)), "Transfer-Encoding: gzip, chunked",
      "Content-Length: 5" }
  end
  return table.concat(head, "\r\n") .. "\r\n\r\n" .. body
end

local function make(base)
  local text = http_of(base)
  if R(3) == 1 then text = mutate.bytes(text, R(2) == 1 and 200 or nil) end
  if R(6) == 1 then text = text .. http_of(base) end
  for _ = 1, R(0, 3) do
    local at = R(1, #text + 1)
    text = text:sub(1, at - 1) .. "\n%%WAIT%%\n" .. text:sub(at)
  end
  local last = R(5)
  if last == 1 then
    local at = R(1, #text + 1)
    text = text:sub(1, at - 1) .. "\n%%GONE%%\n" .. text:sub(at)
  elseif last == 2 then
    text = text .. "\n%%SHUT%%\n"
  end
  return text
end

-- A client that does as the case says; gives what came back.
local function client(cqueues, port, text, seconds)
  local socket = require "cqueues.socket"
  local s = assert(socket.connect { host = "127.0.0.1", port = port, nodelay = true })
  s:setmode("b", "bn")
  s:onerror(function(_, _, why) return why end)
  s:settimeout(seconds)
  s:connect(seconds)
  local at = 1
  while at <= #text do
    local first, last, word = text:find("\n%%%%(%u+)%%%%\n", at)
    local known = word == "WAIT" or word == "GONE" or word == "SHUT"
    s:xwrite(text:sub(at, known and first - 1 or last or #text), "bn", seconds)
    if word == "WAIT" then cqueues.sleep(0.01) end
    if word == "GONE" then
      s:close()
      return nil
    end
    if word == "SHUT" then s:shutdown "w" end
    at = (last or #text) + 1
  end
  local parts, deadline = {}, cqueues.monotime() + seconds
  while cqueues.monotime() < deadline do
    local part = s:xread(-4096, deadline - cqueues.monotime())
    if not part then break end
    parts[#parts + 1] = part
  end
  s:close()
  return table.concat(parts)
end

-- Runs the server until a client is through.
local function drive(seconds, work)
  local over, result, fault
  local clock = server.modules.cqueues.monotime
  local deadline = clock() + seconds
  server.queue:wrap(function()
    local ok, value = pcall(work)
    over, result, fault = true, ok and value, not ok and value
  end)
  while not over and clock() < deadline do
    local busy = server.engine:tick()
    server:network(busy and 0 or 0.005, 8)
  end
  if fault then error(fault) end
  if not over then error "nothing more comes" end
  return result
end

-- Seconds after which a server that does nothing is a find: sanitizers and a busy machine take
-- their time.
local PATIENCE = 20

local GOOD = 'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'

local function try(path)
  open()
  said = nil
  local cqueues = server.modules.cqueues
  local text = helper.read(path)
  local answer = drive(PATIENCE, function() return client(cqueues, server.port, text, 0.7) end)
  if said then error(said) end
  if answer and answer ~= "" then
    if not answer:find "^HTTP/1%.[01] %d%d%d " then error("no HTTP: " .. answer:sub(1, 80)) end
    for status in answer:gmatch "HTTP/1%.1 (5%d%d) " do
      if status == "500" then error("status 500: " .. answer:sub(-300)) end
    end
  end
  if said then error(said) end
  -- with its client gone, a request goes, too
  local deadline = cqueues.monotime() + PATIENCE
  while (next(server.engine.by_id) or server.calls > 0 or server.front.n_connections > 0)
    and cqueues.monotime() < deadline do
    server.engine:tick()
    server:network(0.005, 8)
  end
  if server.front.n_connections > 0 then error "a connection goes on without a client" end
  if next(server.engine.by_id) then error "a request goes on without a client" end
  if server.calls > 0 then error "a call goes on without a client" end
  local health = drive(PATIENCE, function()
    return client(cqueues, server.port, GOOD, PATIENCE)
  end)
  if not health:find("^HTTP/1.1 200") then error("not well: " .. health:sub(1, 80)) end
  if said then error(said) end
  return true
end

return {
  suffix = ".txt",
  bases = function()
    local names = {}
    for name in pairs(bodies) do names[#names + 1] = name end
    table.sort(names)
    return names
  end,
  make = make,
  try = try,
  missing = function() return not library.open() end,
}
