--- The HTTP front of `pyramid serve`: connections, limits, and the loop that drives them and the
--- engine by turns. What is answered is routes.lua's.
---
---   while not over:  what has come of the network (every connection is a coroutine)
---                    one tick of the engine       (a piece of a prompt, a step of all texts)
---
--- The loop runs outside of all coroutines, so that it can also run where the engine is in the
--- middle of a prompt (engine.pump). Who reads an answer slowly keeps only its own coroutine: what
--- is written for it waits in its request's events, which are as many as the tokens it asked for.
---
--- Limits: bytes and headers of a request, seconds to send one, connections, seconds that a
--- reader may stand still, seconds of a request in all; the engine's queue has its own.
local json = require "pyramid.json"
local library = require "pyramid.serve.library"
local options = require "pyramid.options"

local http = {}

---@class pyramid.ServeOptions
---@field host? string          "127.0.0.1"
---@field port? integer         8080; 0: one that is free
---@field api_keys? string[]    who may ask; none: everybody who reaches the port
---@field body? integer|string  the most bytes of a request's body ("4 MiB")
---@field connections? integer  at once (256)
---@field read_seconds? number  that a client may take to send a request (30)
---@field idle_seconds? number  that a connection may be idle between requests (60)
---@field write_seconds? number that a client may take none of what is written for it (60)
---@field seconds? number       of a request in all (600)
---@field grace? number         seconds that requests may go on once it is to end (30)
---@field log? fun(line: string)
---@field signals? boolean      SIGINT and SIGTERM end it; they must be blocked before threads begin

local option_keys = { host = "string", port = "integer", api_keys = "table",
  body = "integer|string", connections = "integer", read_seconds = "number",
  idle_seconds = "number", write_seconds = "number", seconds = "number", grace = "number",
  log = "function", signals = "boolean" }

local HEADER_BYTES <const> = 16384     -- of a line
local ROUNDS <const> = 8               -- of the network between two of the engine's ticks

---@class pyramid.ServeServer
---@field host string
---@field port integer
---@field engine pyramid.ServeEngine
local Server = {}
Server.__index = Server

-- ---- a request and its answer -------------------------------------------------------------------

---One request of HTTP, as routes see it.
---@class pyramid.ServeCall
---@field method string
---@field path string
---@field query table<string, string>
---@field headers any           lua-http's
---@field body? string
---@field owner string          who asks
---@field began boolean         the answer's head has been written
local Call = {}
Call.__index = Call

local function unescape(text)
  return (text:gsub("+", " "):gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

local function query_of(text)
  local query = {}
  for key, value in (text or ""):gmatch "([^&=]+)=?([^&]*)" do
    query[unescape(key)] = unescape(value)
  end
  return query
end

local types = { json = "application/json", html = "text/html; charset=utf-8",
  text = "text/plain; charset=utf-8", metrics = "text/plain; version=0.0.4; charset=utf-8",
  events = "text/event-stream" }

-- Writes the answer's head; `whole` where no body follows.
local function head(self, status, kind, more, length)
  local headers = self.server.modules.headers.new()
  headers:append(":status", tostring(status))
  headers:append("content-type", types[kind])
  if length then headers:append("content-length", tostring(length)) end
  headers:append("cache-control", "no-store")
  headers:append("x-content-type-options", "nosniff")
  for name, value in pairs(more or {}) do headers:append(name, value) end
  if self.closes then headers:append("connection", "close") end
  self.began = true
  self.status = status
  return self.stream:write_headers(headers, false, self.server.write_seconds)
end

---Answers at once.
---@param status integer
---@param kind "json"|"html"|"text"|"metrics"
---@param body string
---@param more? table<string, string>   further headers
function Call:answer(status, kind, body, more)
  if not head(self, status, kind, more, #body) then return nil end
  if self.method == "HEAD" then body = "" end
  return self.stream:write_chunk(body, true, self.server.write_seconds)
end

---@param status integer
---@param value any
---@param more? table<string, string>
function Call:json(status, value, more)
  return self:answer(status, "json", json.encode(value), more)
end

local kinds = { [400] = "invalid_request_error", [401] = "authentication_error",
  [403] = "permission_error", [404] = "invalid_request_error", [405] = "invalid_request_error",
  [413] = "invalid_request_error", [429] = "rate_limit_error", [501] = "not_implemented_error" }

---The body of an error in OpenAI's form.
---@param status integer
---@param message string
---@param code? string
---@param param? string   the field that is wrong
---@return table
function http.fault(status, message, code, param)
  return { error = { message = message, type = kinds[status] or "server_error",
    code = code or json.null, param = param or json.null } }
end

Call.fault = http.fault

---Answers with an error.
---@param status integer
---@param message string
---@param code? string
---@param param? string
function Call:fail(status, message, code, param)
  if self.began then return nil end
  local more = {}
  if status == 429 or status == 503 then more["retry-after"] = "1" end
  if status == 401 then more["www-authenticate"] = "Bearer" end
  return self:json(status, http.fault(status, message, code, param), more)
end

---Begins a stream of events.
---@return boolean
function Call:stream_events() return head(self, 200, "events") and true or false end

---Writes an event: one line of data. False: whoever listened has gone, or stands still.
---@param data string
---@return boolean
function Call:event(data)
  return self.stream:write_chunk("data: " .. data .. "\n\n", false,
    self.server.write_seconds) and true or false
end

---Ends a stream.
function Call:over() return self.stream:write_chunk("", true, self.server.write_seconds) end

-- Where a client says "connection: close", lua-http shuts the reading side once the request is
-- whole. It would then look as if the client had gone: that side stays open instead.
local function keep_reading(connection)
  local shutdown = connection.shutdown
  if connection.reads_on then return end
  connection.reads_on = true
  connection.shutdown = function(self, how) return how == "r" or shutdown(self, how) end
end

---Whether whoever asked has gone.
---@return boolean
function Call:gone()
  local socket = self.stream.connection and self.stream.connection.socket
  return not socket or socket:eof "r" or socket:error "w" ~= nil
end

---Waits until somebody signals the condition, or for so many seconds.
---@param condition any
---@param seconds number
function Call:wait(condition, seconds) self.server.modules.cqueues.poll(condition, seconds) end

-- ---- reading a request --------------------------------------------------------------------------

-- lua-http takes room for a whole chunk of a chunked body as soon as its length is said: so its
-- length is looked at first.
local function bound_chunks(call, most)
  local connection = call.stream.connection
  local read = getmetatable(connection).__index.read_body_chunk
  local left = most
  connection.read_body_chunk = function(self, timeout)
    local line, message, errno = self.socket:xread("*L", timeout)
    if not line then return nil, message, errno end
    local size = tonumber(line:match "^(%x+)" or "", 16)
    if not size or size > left then
      call.oversized = size ~= nil
      return nil, "a chunk that is too large, or none", call.server.modules.errno.E2BIG
    end
    left = left - size
    if not self.socket:unget(line) then return nil, "unget" end
    return read(self, timeout)
  end
end

-- lua-http reads on when an answer is through, to leave the connection clean; where a client has
-- gone in the middle of a body, it would do so for ever: nothing more comes, and that is no error
-- to it. And where a stream ends that is not the first of its connection, before it has come to
-- anything, it takes the first one off instead, which then waits for ever: such a stream is taken
-- off here, and the connection closed.
local function bound_shutdown(stream)
  local shutdown, step = stream.shutdown, stream.step
  local function bounded(self, timeout)
    local before = self.stats_recv
    -- it raises on lengths that are none
    local fine, ok, message, errno = pcall(step, self, timeout)
    if not fine then return nil, tostring(ok) end
    if ok and self.stats_recv == before then return nil, "nothing more" end
    return ok, message, errno
  end
  function stream:shutdown()
    local connection = self.connection
    local pipeline = connection.pipeline
    self.step = bounded
    local first = self.state ~= "idle" or pipeline:peek() == self
    if first and pcall(shutdown, self) then return true end
    self.state = "closed"
    if connection.req_locked == self then
      connection.req_locked = nil
      connection.req_cond:signal(1)
    end
    for at = pipeline:length(), 1, -1 do
      if pipeline:peek(at) == self then pipeline:remove(at) end
    end
    if connection.socket then connection.socket:shutdown() end
    local following = pipeline:peek()
    if following then following.pipeline_cond:signal() else connection:onidle()(connection) end
    return true
  end
end

-- The body; nil, status, message.
local function read_body(call)
  local server, stream, headers = call.server, call.stream, call.headers
  local length = headers:get "content-length"
  local chunked = headers:get "transfer-encoding"
  local clock = server.modules.cqueues.monotime
  local until_then = clock() + server.read_seconds
  if not length and not chunked then return "" end
  if length and (chunked or not length:find "^%d+$") then
    return nil, 400, "content-length is no number, or is not alone"
  end
  if length and (#length > 15 or tonumber(length) > server.body) then
    return nil, 413, ("a body may have %d bytes"):format(server.body)
  end
  if chunked and chunked:lower() ~= "chunked" then
    return nil, 400, "transfer-encoding is chunked, or none"
  end
  if chunked then bound_chunks(call, server.body) end
  if (headers:get "expect" or ""):lower() == "100-continue" then stream:write_continue(5) end
  local parts, bytes = {}, 0
  while true do
    local left = until_then - clock()
    if left <= 0 then return nil, 408, "the request took too long to come" end
    local chunk, message = stream:get_next_chunk(left)
    if not chunk then
      if call.oversized then
        return nil, 413, ("a body may have %d bytes"):format(server.body)
      end
      if message then
        if clock() >= until_then then return nil, 408, "the request took too long to come" end
        return nil, 400, "the body ends before its end, or is none"
      end
      break
    end
    parts[#parts + 1], bytes = chunk, bytes + #chunk
    if bytes > server.body then
      return nil, 413, ("a body may have %d bytes"):format(server.body)
    end
  end
  if length and bytes ~= tonumber(length) then
    return nil, 400, "the body ends before its end"
  end
  return table.concat(parts)
end

-- Whether two texts are equal, in a time that does not tell where they differ.
local function equal(one, other)
  local off = #one ~ #other
  for i = 1, #one do
    off = off | (one:byte(i) ~ (other:byte((i - 1) % math.max(#other, 1) + 1) or 0))
  end
  return off == 0
end

-- Whether a request may be answered: its key, and, where there is none, that no page of another
-- site sends it through somebody's browser (by its own name, or by one that it gave this machine).
local function check_sender(call)
  local server, headers = call.server, call.headers
  local host = (headers:get ":authority" or ""):lower()
  local origin = headers:get "origin"
  if origin and origin:lower():gsub("^%a+://", "") ~= host then
    return 403, "a page of another origin may not ask"
  end
  if #server.api_keys == 0 then
    local name = host:match "^%[.-%]" or host:match "^[^:]*"
    if server.loopback and not (name == "localhost" or name == "[::1]" or name:find "^127%."
      or name == server.host) then
      return 403, "without an API key only requests to localhost are answered"
    end
    return nil
  end
  if call.open then return nil end
  local given = (headers:get "authorization" or ""):match "^[Bb]earer%s+(.-)%s*$" or ""
  for _, key in ipairs(server.api_keys) do
    if equal(key, given) then
      call.owner = key
      return nil
    end
  end
  return 401, given == "" and "an API key is wanted (Authorization: Bearer …)"
    or "the API key is not known"
end

-- ---- the server ---------------------------------------------------------------------------------

local function handle(self, stream, call)
  -- it raises on transfer-encodings that it does not know
  local fine, headers = pcall(stream.get_headers, stream, self.read_seconds)
  if not fine then
    call.closes = true
    return call:fail(400, "the request is no HTTP that is known here")
  end
  if not headers then return end
  local target = headers:get ":path" or "/"
  local path, query = target:match "^([^?#]*)%??([^#]*)"
  local began = self.modules.cqueues.monotime()
  call.headers, call.method, call.path, call.query = headers, headers:get ":method", path,
    query_of(query)
  call.open = self.routes.is_open(path)
  keep_reading(stream.connection)
  local status, message = check_sender(call)
  if status then
    call.closes = true
    call:fail(status, message, status == 401 and "invalid_api_key" or nil)
  else
    local known, method = self.routes.find(call)
    if not known then
      call.closes = call.method ~= "GET"
      call:fail(method and 405 or 404, method and ("%s wants %s"):format(path, method)
        or ("there is no %s"):format(path))
    else
      local body
      body, status, message = read_body(call)
      if not body then
        call.closes = true
        call:fail(status, message)
      else
        call.body = body
        known(self, call)
      end
    end
  end
  self.answered[call.status or 0] = (self.answered[call.status or 0] or 0) + 1
  if self.log then
    self.log(("%s %s %s %.3f s"):format(call.method, path, call.status or "gone",
      self.modules.cqueues.monotime() - began))
  end
end

-- Runs protected; lua-http raises where a connection is closed under what is written to it, and
-- that is nobody's error. Any other is told to the client, as far as that goes.
local function serve_stream(self, stream)
  bound_shutdown(stream)
  stream.use_zlib = false       -- a few bytes may be inflated to any number
  local call = setmetatable({ server = self, stream = stream, owner = "", began = false }, Call)
  self.calls = self.calls + 1
  local ok, fault = xpcall(handle, debug.traceback, self, stream, call)
  self.calls = self.calls - 1
  if ok or call:gone() then return end
  if self.log then self.log("error: " .. fault:gsub("%s*\n%s*", " | ")) end
  if not call.began then
    call.closes = true
    pcall(call.fail, call, 500, "the server failed at this request")
  end
end

-- The address and port that a socket got.
local function local_name(server)
  local _, host, port = server.socket:localname()
  return host, port
end

---A server in front of an engine; it listens from here on, and answers while `run` runs.
---@param engine pyramid.ServeEngine
---@param routes table     find(call), is_open(path)
---@param given? pyramid.ServeOptions
---@return pyramid.ServeServer?
---@return string? message
---@return string? code
function http.listen(engine, routes, given)
  given = options.check("serve", given, option_keys)
  local modules, message, code = library.open()
  if not modules then return nil, message, code end
  local cqueues = modules.cqueues
  local self = setmetatable({ modules = modules, engine = engine, routes = routes,
    host = given.host or "127.0.0.1", port = given.port or 8080, api_keys = given.api_keys or {},
    body = options.bytes("serve", given.body or "4 MiB"),
    connections = given.connections or 256, read_seconds = given.read_seconds or 30,
    idle_seconds = given.idle_seconds or 60, write_seconds = given.write_seconds or 60,
    seconds = given.seconds or 600, grace = given.grace or 30, log = given.log,
    queue = cqueues.new(), answered = {}, calls = 0 }, Server)
  self.loopback = self.host:find "^127%." ~= nil or self.host == "localhost" or self.host == "::1"
  local front, why = modules.server.listen { host = self.host, port = self.port, tls = false,
    version = 1.1, cq = self.queue, max_concurrent = self.connections,
    connection_setup_timeout = self.read_seconds, intra_stream_timeout = self.idle_seconds,
    onstream = function(_, stream) serve_stream(self, stream) end,
    onerror = function() end }              -- what a client did to its connection is nobody's error
  local bound
  if front then bound, why = front:listen() end
  if not front or not bound then
    return nil, ("cannot listen on %s, port %d: %s"):format(self.host, self.port, tostring(why)),
      "io"
  end
  self.front = front
  local _, port = local_name(front)
  self.port = port or self.port
  front.socket:setmaxline(HEADER_BYTES)
  if given.signals then self:on_signals() end
  engine.pump = function() self:network(0, 1) end
  return self
end

---Signals that end it; the second time at once.
function Server:on_signals()
  local signal = self.modules.signal
  local listener = signal.listen(signal.SIGINT, signal.SIGTERM)
  self.queue:wrap(function()
    while true do
      listener:wait()
      if self.ending then self.ended = true end
      self:stop()
    end
  end)
end

---Ends it: no more connections, and what was asked may take `grace` seconds more.
function Server:stop()
  if self.ending then return end
  self.ending = self.engine.clock()
  self.front:pause()
  self.front.socket:close()
end

---What has come of the network, in some rounds: a request takes several until it is whole.
---@param seconds? number   how long to wait for anything to happen (nil: until it does)
---@param rounds integer
function Server:network(seconds, rounds)
  for _ = 1, rounds do
    local ok, why = self.queue:step(seconds)
    if not ok and self.log and why then self.log("error: " .. tostring(why)) end
    seconds = 0
  end
end

---Answers until it is stopped.
function Server:run()
  while not self.ended do
    local ok, busy = xpcall(self.engine.tick, debug.traceback, self.engine)
    if not ok then
      if self.log then self.log("error: " .. busy:gsub("%s*\n%s*", " | ")) end
      self.engine:recover "the server failed while it worked at this request"
    end
    self:network(busy and 0 or self.ending and 0.05 or 1, ROUNDS)
    if self.ending then
      local late = self.engine.clock() - self.ending > self.grace
      if late or self.calls == 0 then
        if late then self.engine:cancel_all() end
        self.engine:tick()
        self:network(0, ROUNDS)
        break
      end
    end
  end
end

---Closes connections and the port.
function Server:close()
  if self.front then pcall(self.front.close, self.front) end
  self.front = nil
  self.engine.pump = nil
  self.engine:close()
end

Server.__close = Server.close

return http
