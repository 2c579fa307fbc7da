-- `pyramid serve` as clients see it: OpenAI's routes, by curl; what is refused, and in which words;
-- limits; how it ends. What the engine does is in serve_engine_spec.lua, what others' clients make
-- of it in serve_clients_spec.lua.
local helper = require "spec.helper"
local pyramid = require "pyramid"
local served = require "spec.support.served"
local shell = require "spec.support.shell"

local missing = served.missing()
if missing then
  describe("pyramid serve", function() it("answers", function() pending(missing) end) end)
  return
end

local function text_of(run)
  local parts, ids = {}, {}
  for piece, id in run do
    parts[#parts + 1], ids[#ids + 1] = piece, id
  end
  return table.concat(parts), ids, run.finish
end

describe("pyramid serve", function()
  local server, model

  setup(function()
    server = served.start "--model models/tiny --precision f32 --threads 2 --template chatml"
    model = assert(pyramid.model("models/tiny", { threads = 2, precision = "f32" }))
  end)
  teardown(function()
    server:stop()
    model:close()
  end)

  local prompt = "Once upon a time"
  local function complete(more)
    local body = { prompt = prompt, max_tokens = 12, temperature = 0 }
    for key, value in pairs(more or {}) do body[key] = value end
    return body
  end
  local function alone(given)
    given.max_tokens = given.max_tokens or 12
    return text_of(assert(model:generate(given.prompt or prompt,
      { max_tokens = given.max_tokens, policy = given.policy, dtype = given.dtype,
        sampler = given.sampler, stop = given.stop })))
  end

  it("completes texts as generation does", function()
    local answer, status = server:ask("/v1/completions", complete())
    assert.equal(200, status)
    assert.equal("text_completion", answer.object)
    assert.equal(alone {}, answer.choices[1].text)
    assert.equal("length", answer.choices[1].finish_reason)
    assert.equal(0, answer.choices[1].index)
    assert.equal("tiny", answer.model)
    local usage = answer.usage
    assert.equal(12, usage.completion_tokens)
    assert.equal(usage.prompt_tokens + 12, usage.total_tokens)
    local config = model.config
    assert.equal((usage.total_tokens - 1) * config.layers * config.kv_heads, usage.rows_kept)
    assert.equal(0, usage.rows_evicted)
    assert.is_true(usage.cache_bytes > 0)
  end)

  it("streams the same, piece by piece, and what was used if it is asked", function()
    local events, done = server:stream("/v1/completions",
      complete { stream_options = { include_usage = true } })
    assert.is_true(done)
    local text = {}
    for i = 1, #events - 1 do text[i] = events[i].choices[1].text end
    assert.equal(alone {}, table.concat(text))
    assert.is_true(#text > 5)
    assert.equal("length", events[#events - 1].choices[1].finish_reason)
    assert.same({}, events[#events].choices)
    assert.equal(12, events[#events].usage.completion_tokens)
    events, done = server:stream("/v1/completions", complete())
    assert.is_true(done)
    assert.is_nil(events[#events].usage)
  end)

  it("follows the policy, rows' dtype and budget that a request names", function()
    local long = ("The cat sat on the mat. "):rep(12)
    for _, name in ipairs { "h2o", "snapkv", "pyramidinfer" } do
      local options = { ratio = name ~= "pyramidinfer" and 0.4 or nil }
      local answer = server:ask("/v1/completions", complete { prompt = long,
        pyramid = { policy = name, options = next(options) and options or nil,
          cache_dtype = "q8_0", budget = "32 MiB" } })
      assert.equal((alone { prompt = long, dtype = "q8_0",
        policy = assert(pyramid.policy(name, options)) }), answer.choices[1].text)
      assert.is_true(answer.usage.rows_evicted > 0)
    end
    local answer, status = server:ask("/v1/completions", complete { prompt = long,
      pyramid = { budget = 1000 } })
    assert.equal(400, status)
    assert.equal("budget", answer.error.code)
    answer, status = server:ask("/v1/completions", complete { pyramid = { policy = "./x.lua" } })
    assert.equal(400, status)
    assert.matches("unknown policy", answer.error.message)
    assert.equal("pyramid.policy", answer.error.param)
    answer, status = server:ask("/v1/completions", complete { pyramid = { policy = "h2o",
      options = { shares = 1 } } })
    assert.equal(400, status)
    assert.matches("shares", answer.error.message)
    answer, status = server:ask("/v1/completions", complete { pyramid = { policy = "kvzap",
      options = { map = "/etc/passwd" } } })
    assert.equal(400, status)
    assert.matches("operator's", answer.error.message)
    answer, status = server:ask("/v1/completions", complete { prompt = long,
      pyramid = { budget = "1000 GiB" } })
    assert.equal(200, status, answer)
  end)

  it("moves rows of a request down where its budget is full, if it says so", function()
    local long = ("The cat sat on the mat. "):rep(60)
    local function ask(extension, n)
      return server:ask("/v1/completions", complete { prompt = long, pyramid = extension, n = n })
    end
    local bytes = ask { cache_dtype = "f32" }.usage.cache_bytes
    local budget, tiers = bytes * 7 // 10, { warm = "q8_0" }
    local answer, status = ask { cache_dtype = "f32", budget = budget, tiers = tiers }
    assert.same({ 400, "budget" }, { status, answer.error.code })
    for n = 1, 2 do
      answer, status = ask({ tiers = { hot = "f32", warm = "q8_0" }, budget = n * budget,
        pressure = "demote" }, n)
      assert.equal(200, status, answer)
      assert.is_true(n > 1 or answer.usage.cache_bytes <= budget)    -- forks share pages
      assert.equal(0, answer.usage.rows_evicted)
      assert.equal(n, #answer.choices)
    end
    -- a policy that moves its losers down has somewhere to put them
    answer, status = ask { policy = "demote", budget = "64 MiB", tiers = tiers }
    assert.equal(200, status, answer)
    local null = served.null
    answer, status = ask { policy = null, options = null, cache_dtype = null, budget = "64 MiB",
      tiers = { hot = null, warm = "q4" }, pressure = null }
    assert.equal(200, status, answer)
    answer, status = ask { budget = "64 MiB", tiers = null }
    assert.equal(200, status, answer)
    for field, extension in pairs { ["pyramid.tiers"] = { tiers = tiers },
      ["pyramid.pressure"] = { pressure = "demote", budget = "1 MiB" },
      ["pyramid.tiers.warm"] = { tiers = { warm = "q5" }, budget = "1 MiB" },
      ["pyramid.tiers.lukewarm"] = { tiers = { lukewarm = "q4" }, budget = "1 MiB" },
      ["pyramid.tiers.hot"] = { tiers = { hot = "f16" }, cache_dtype = "f16",
        budget = "1 MiB" } } do
      answer, status = ask(extension)
      assert.same({ 400, field }, { status, answer.error.param })
    end
  end)

  it("takes texts, lists of them, and ids; gives n of each; echoes", function()
    local ids = assert(model:encode(prompt))
    local answer = server:ask("/v1/completions", complete { prompt = ids })
    assert.equal(alone {}, answer.choices[1].text)
    answer = server:ask("/v1/completions", complete { prompt = { prompt, "The dog" } })
    assert.equal(alone {}, answer.choices[1].text)
    assert.equal(alone { prompt = "The dog" }, answer.choices[2].text)
    answer = server:ask("/v1/completions", complete { prompt = { ids, ids }, n = 2, echo = true,
      temperature = 1, seed = 7 })
    assert.equal(4, #answer.choices)
    for i, choice in ipairs(answer.choices) do
      assert.equal(i - 1, choice.index)
      assert.equal(prompt .. alone { sampler = { temperature = 1, seed = 7 + (i - 1) % 2 } },
        choice.text)
    end
    answer = server:ask("/v1/completions", complete { echo = true, max_tokens = 0 })
    assert.equal(prompt, answer.choices[1].text)
    assert.equal(0, answer.usage.completion_tokens)
  end)

  it("stops before texts, and bans and favours ids", function()
    local text = alone { max_tokens = 40 }
    local stop = text:sub(12, 15)
    local answer = server:ask("/v1/completions", complete { stop = stop, max_tokens = 40 })
    assert.equal(text:sub(1, text:find(stop, 1, true) - 1), answer.choices[1].text)
    assert.equal("stop", answer.choices[1].finish_reason)
    local id = assert(model:encode("dog", { add = false }))[1]
    answer = server:ask("/v1/completions", complete { logit_bias = { [tostring(id)] = 100 },
      max_tokens = 4 })
    assert.equal(assert(model:decode { id, id, id, id }), (answer.choices[1].text:gsub("^ ", "")))
  end)

  it("gives log-probabilities of what is written, and of the prompt", function()
    local answer = server:ask("/v1/completions", complete { logprobs = 2, echo = true,
      pyramid = { cache_dtype = "f32" } })
    local found = answer.choices[1].logprobs
    local ids = assert(model:encode(prompt))
    assert.equal(#ids + 12, #found.tokens)
    assert.equal(served.null, found.token_logprobs[1])
    local _, written = alone { dtype = "f32" }
    local all = table.move(written, 1, 12, #ids + 1, table.move(ids, 1, #ids, 1, {}))
    local score = assert(model:score({ all[1] }, table.move(all, 2, #all, 1, {}),
      { dtype = "f32" }))
    for i = 2, #all do
      assert.near(score.logprobs[i - 1], found.token_logprobs[i], 1e-3)
      assert.near(found.token_logprobs[i], found.top_logprobs[i][found.tokens[i]], 1e-9)
    end
    local text = answer.choices[1].text
    for i, token in ipairs(found.tokens) do
      if i > 1 then
        assert.equal(token, text:sub(found.text_offset[i] + 1, found.text_offset[i] + #token))
      end
    end
  end)

  local chat = { { role = "user", content = "Name a colour." } }
  local function reply(given)
    given.format = "chatml"
    given.max_tokens = given.max_tokens or 12
    return text_of(assert(model:chat(given.messages or chat, given)))
  end

  it("answers chats in the model's format", function()
    local answer = server:ask("/v1/chat/completions", { messages = chat, max_tokens = 12,
      temperature = 0 })
    assert.equal("chat.completion", answer.object)
    assert.equal("assistant", answer.choices[1].message.role)
    assert.equal(reply {}, answer.choices[1].message.content)
    local events, done = server:stream("/v1/chat/completions", { messages = chat,
      max_completion_tokens = 12, temperature = 0, stream_options = { include_usage = true } })
    assert.is_true(done)
    assert.same({ role = "assistant", content = "" }, events[1].choices[1].delta)
    local text = {}
    for _, event in ipairs(events) do
      assert.equal("chat.completion.chunk", event.object)
      text[#text + 1] = event.choices[1] and event.choices[1].delta.content or ""
    end
    assert.equal(reply {}, table.concat(text))
    assert.is_true(events[#events].usage.prompt_tokens > 5)
    -- parts are texts, too
    answer = server:ask("/v1/chat/completions", { max_tokens = 12, temperature = 0,
      messages = { { role = "user", content = { { type = "text", text = "Name a colour." } } } } })
    assert.equal(reply {}, answer.choices[1].message.content)
  end)

  it("writes JSON of a schema, and what a grammar says", function()
    local schema = { type = "object", properties = { colour = { enum = { "red", "blue" } } },
      required = { "colour" }, additionalProperties = false }
    local answer = server:ask("/v1/chat/completions", { messages = chat, max_tokens = 60,
      response_format = { type = "json_schema", json_schema = { name = "c", schema = schema } } })
    local text = answer.choices[1].message.content
    assert.is_true(text == '{"colour":"red"}' or text == '{"colour":"blue"}'
      or text:gsub("%s", "") == '{"colour":"red"}' or text:gsub("%s", "") == '{"colour":"blue"}',
      text)
    assert.equal("stop", answer.choices[1].finish_reason)
    answer = server:ask("/v1/completions", complete { grammar = [[root ::= "no" | "yes"]] })
    assert.is_true(answer.choices[1].text == "no" or answer.choices[1].text == "yes")
    local status
    answer, status = server:ask("/v1/completions", complete { grammar = "root := nothing" })
    assert.equal(400, status)
    assert.equal("grammar", answer.error.param)
    answer, status = server:ask("/v1/chat/completions", { messages = chat,
      response_format = { type = "json_schema", json_schema = { schema = {
        type = "string", contentEncoding = "base64", unevaluatedItems = {} } } } })
    assert.equal(400, status, tostring(answer))
    assert.equal("response_format", answer.error.param)
  end)

  it("says what it is and has", function()
    assert.same({ status = "ok" }, (server:ask "/health"))
    local list = server:ask "/v1/models"
    assert.equal("tiny", list.data[1].id)
    assert.equal(model.config.context, list.data[1].max_model_len)
    assert.equal("tiny", (server:ask "/v1/models/tiny").id)
    assert.equal(404, (select(2, server:ask "/v1/models/other")))
    local ids = server:ask("/tokenize", { prompt = "a cat", add_special_tokens = false })
    assert.same(assert(model:encode("a cat", { add = false })), ids.tokens)
    assert.equal(#ids.tokens, ids.count)
    assert.equal(assert(model:decode(ids.tokens)),
      (server:ask("/detokenize", { tokens = ids.tokens })).prompt)
    assert.same({}, (server:ask("/tokenize", { prompt = "", add_special_tokens = false })).tokens)
    local policies = server:ask("/pyramid/policies").policies
    local names = {}
    for i, one in ipairs(policies) do names[i] = one.name end
    assert.same(require "pyramid.policy".list(), names)
    local metrics = select(3, server:ask "/metrics")
    assert.matches('\npyramid_requests_total{end="finished"} %d+\n', metrics)
    assert.matches("\npyramid_cache_bytes %d+\n", metrics)
    for line in metrics:gmatch "[^\n]+" do
      assert.is_true(line:find "^# %u+ pyramid_[%w_]+ " ~= nil
        or line:find '^pyramid_[%w_]+[^ ]* [%d.e+-]+$' ~= nil, line)
    end
  end)

  it("refuses what is wrong, by the field's name", function()
    local cases = {
      { "/v1/completions", "{", 400, "JSON" }, { "/v1/completions", "[]", 400, "object" },
      { "/v1/completions", "", 400, "JSON" },
      { "/v1/completions", {}, 400, "prompt" },
      { "/v1/completions", { prompt = {} }, 400, "prompt" },
      { "/v1/completions", { prompt = 5 }, 400, "'prompt' must be" },
      { "/v1/completions", { prompt = { 1, 1e9 } }, 400, "stands at 2" },
      { "/v1/completions", { prompt = { 1.5 } }, 400, "stands at 1" },
      { "/v1/completions", complete { max_tokens = -1 }, 400, "max_tokens" },
      { "/v1/completions", complete { max_tokens = 1.5 }, 400, "max_tokens" },
      { "/v1/completions", complete { n = 0 }, 400, "'n'" },
      { "/v1/completions", complete { n = 1e9 }, 400, "'n'" },
      { "/v1/completions", complete { temperature = "hot" }, 400, "temperature" },
      { "/v1/completions", complete { temperature = -1 }, 400, "temperature" },
      { "/v1/completions", complete { top_p = 2 }, 400, "top_p" },
      { "/v1/completions", complete { logit_bias = { x = 1 } }, 400, "logit_bias" },
      { "/v1/completions", complete { logit_bias = { ["1"] = "x" } }, 400, "logit_bias" },
      { "/v1/completions", complete { stop = { "" } }, 400, "stop" },
      { "/v1/completions", complete { stop = { 5 } }, 400, "stop" },
      { "/v1/completions", complete { wibble = 5 }, 400, "unknown field 'wibble'" },
      { "/v1/completions", complete { pyramid = { x = 5 } }, 400, "unknown field 'pyramid.x'" },
      { "/v1/completions", complete { pyramid = { cache_dtype = "f17" } }, 400, "f17" },
      { "/v1/completions", complete { pyramid = { budget = "much" } }, 400, "much" },
      { "/v1/completions", complete { model = "gpt" }, 404, "no model 'gpt'" },
      { "/v1/completions", complete { prompt = ("cat "):rep(9000) }, 400, "context is" },
      { "/v1/completions", complete { best_of = 3 }, 400, "best_of" },
      { "/v1/completions", complete { logprobs = 2, echo = true, pyramid = { policy = "h2o" } },
        400, "h2o" },
      { "/v1/chat/completions", {}, 400, "messages" },
      { "/v1/chat/completions", { messages = { {} } }, 400, "message 1" },
      { "/v1/chat/completions", { messages = { { role = "user",
        content = { { type = "image_url" } } } } }, 400, "part 1" },
      { "/v1/chat/completions", { messages = chat, tool_choice = "required" }, 400, "tool_choice" },
      { "/v1/chat/completions", { messages = chat, top_logprobs = 2 }, 400, "top_logprobs" },
      { "/v1/chat/completions", { messages = chat, response_format = { type = "xml" } }, 400,
        "response_format" },
      { "/tokenize", {}, 400, "prompt" }, { "/detokenize", { tokens = { -1 } }, 400, "no id" },
      { "/nowhere", complete(), 404, "/nowhere" }, { "/health", complete(), 405, "GET" },
      { "/v1/completions", nil, 405, "POST" },
    }
    for _, case in ipairs(cases) do
      local answer, status, text = server:ask(case[1], case[2])
      local what = ("%s: %s"):format(case[1], text)
      assert.equal(case[3], status, what)
      assert.is_true(answer.error.message:find(case[4], 1, true) ~= nil, what)
      assert.equal("string", type(answer.error.type))
    end
    assert.equal(200, (select(2, server:ask("/v1/completions", complete()))))
  end)

  it("holds its ground against what is no HTTP", function()
    local function status(text, seconds)
      return tonumber(server:raw(text, seconds):match "^HTTP/1%.1 (%d+)")
    end
    local head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    assert.equal(413, status(head .. "Content-Length: 99999999999\r\n\r\n"))
    assert.equal(400, status(head .. "Content-Length: -5\r\n\r\n"))
    assert.equal(413, status(head .. "Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"))
    assert.equal(413, status(head .. "Transfer-Encoding: chunked\r\n\r\n300000\r\n"
      .. ("x"):rep(0x300000) .. "\r\n300000\r\n" .. ("x"):rep(0x300000)))
    assert.equal(400, status(head .. "Transfer-Encoding: chunked\r\n\r\nxyz\r\n"))
    for _, wrong in ipairs { "\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", ("x"):rep(100000),
      "GET / HTTP/1.1\r\nno header\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "\22\3\1\2\0\1\0\1\252\3\3", "GET /" .. ("a"):rep(70000) .. " HTTP/1.1\r\n\r\n" } do
      local answer = server:raw(wrong, 0.5)
      assert.is_true(answer == "" or answer:find "^HTTP/1%.1 4" ~= nil, answer:sub(1, 80))
    end
    -- a body that comes in chunks is one
    local body = '{"prompt":"a","max_tokens":1}'
    assert.equal(200, status(head .. "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
      .. ("%x\r\n%s\r\n0\r\n\r\n"):format(#body, body)))
    assert.equal(200, (select(2, server:ask "/health")))
  end)

  it("answers no page of another site, and no name that somebody else made up", function()
    local _, status = server:ask("/v1/models", nil, "-H 'Origin: http://evil.example'")
    assert.equal(403, status)
    _, status = server:ask("/v1/models", nil, "-H 'Host: evil.example'")
    assert.equal(403, status)
    _, status = server:ask("/v1/models", nil, ("-H 'Origin: %s'"):format(server.url))
    assert.equal(200, status)
  end)

  it("lets nobody wait for a reader who stands still, and ends what nobody waits for", function()
    local slow = server:connect()
    local body = require "cjson".encode(complete { max_tokens = 400, stream = true,
      ignore_eos = true })
    slow:write(("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s")
      :format(#body, body))
    local gone = server:connect()
    gone:write(("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s")
      :format(#body, body))
    os.execute "sleep 0.3"
    gone:close()
    local answer = server:ask("/v1/completions", complete())
    assert.equal(alone {}, answer.choices[1].text)
    local function counted(name)
      return tonumber(select(3, server:ask "/metrics"):match("\npyramid_" .. name .. " ([%d.]+)\n"))
    end
    for _ = 1, 100 do
      if counted "writing" == 0 then break end
      os.execute "sleep 0.1"
    end
    assert.equal(0, counted "writing")
    local text = slow:read(-1000000) or ""
    slow:close()
    assert.is_true(#text > 1000)
  end)

  it("answers clients that want their connection closed, and notices when they leave", function()
    local answer, status = server:ask("/v1/completions", complete { max_tokens = 60 },
      "-H 'Connection: close'")
    assert.equal(200, status)
    assert.equal(60, answer.usage.completion_tokens)
    local body = '{"prompt": "Once", "max_tokens": 5}'
    local text = server:raw(("POST /v1/completions HTTP/1.0\r\nHost: localhost\r\n"
      .. "Content-Length: %d\r\n\r\n%s"):format(#body, body))
    assert.matches("^HTTP/1%.[01] 200", text)
    body = '{"prompt": "Once upon a time", "max_tokens": 1500, "stream": true, "ignore_eos": true}'
    local connection = server:connect()
    connection:write(("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
      .. "Content-Length: %d\r\n\r\n%s"):format(#body, body))
    assert.matches("200", connection:read "*l")
    connection:close()
    assert.is_true(server:rests(5))
  end)

  it("can be looked at while it writes, by a request's name", function()
    if not pcall(require, "pyramid.serve.microscope") then pending "there is no microscope" end
    local answer = server:ask("/v1/completions", complete { pyramid = { policy = "streaming",
      options = { rows = 6 } } })
    local _, status = server:ask("/pyramid/memory?id=" .. answer.id)
    assert.equal(200, status)
    assert.equal(404, (select(2, server:ask "/pyramid/memory?id=none")))
  end)
end)

describe("pyramid serve", function()
  it("asks for a key, and keeps what users read apart", function()
    local server = served.start "--model models/tiny --api-key one --api-key two --threads 1"
    local long = ("The cat sat on the mat. "):rep(20)
    local function ask(key, path, body)
      return server:ask(path, body, key and ("-H 'Authorization: Bearer %s'"):format(key))
    end
    local body = { prompt = long, max_tokens = 2, temperature = 0 }
    local answer, status = ask(nil, "/v1/completions", body)
    assert.equal(401, status)
    assert.equal("invalid_api_key", answer.error.code)
    assert.equal(401, (select(2, ask("three", "/v1/models"))))
    assert.equal(401, (select(2, ask("on", "/metrics"))))
    assert.equal(200, (select(2, ask(nil, "/health"))))
    local function reused(key)
      return ask(key, "/v1/completions", body).usage.prompt_tokens_details.cached_tokens
    end
    assert.equal(0, reused "one")
    assert.is_true(reused "one" > 100)
    assert.equal(0, reused "two")
    server:stop()
  end)

  it("finds what was read before it was killed, whole, and for the same user", function()
    local folder = shell.folder()
    local words = ("--model models/tiny --threads 1 --kept 0 --sessions %s/s --api-key one "
      .. "--api-key two"):format(folder)
    local body = { prompt = ("The cat sat on the mat. "):rep(40), max_tokens = 6, temperature = 0 }
    local function ask(server, key)
      local answer = server:ask("/v1/completions", body, "-H 'Authorization: Bearer " .. key .. "'")
      return answer.usage.prompt_tokens_details.cached_tokens, answer.choices[1].text
    end
    local server = served.start(words)
    local reused, text = ask(server, "one")
    assert.equal(0, reused)
    server:signal "KILL"
    server:ends(5)
    shell.remove(server.folder)
    server = served.start(words)
    local again, same = ask(server, "one")
    assert.is_true(again > 200)
    assert.equal(text, same)
    assert.equal(0, (ask(server, "two")))
    body.pyramid = { policy = "snapkv" }
    again = ask(server, "one")
    assert.is_true(again > 200)
    server:stop()
    shell.remove(folder)
  end)

  it("says 429 and when to come again, once too many wait", function()
    local server = served.start "--model models/tiny --queue 1 --parallel 1 --threads 1"
    local body = { prompt = "a", max_tokens = 1500, ignore_eos = true, temperature = 0 }
    local file = helper.tmp ".json"
    helper.write(file, require "cjson".encode(body))
    local out = shell.run(([[for i in 1 2 3 4 5 6; do
      curl -s -m 60 -D - -o /dev/null --data-binary @%s %s/v1/completions & done; wait]])
      :format(file, server.url))
    os.remove(file)
    local counts = {}
    for status in out:gmatch "HTTP/1%.1 (%d+)" do counts[status] = (counts[status] or 0) + 1 end
    assert.is_true((counts["429"] or 0) >= 1, out)
    assert.is_true((counts["200"] or 0) >= 2, out)
    assert.equal(6, counts["429"] + counts["200"])
    assert.matches("retry%-after: %d+", out:lower())
    server:stop()
  end)

  it("ends when it is told to: what goes on is answered, what is new is not", function()
    for _, name in ipairs { "INT", "TERM" } do
      local server = served.start "--model models/tiny --threads 1"
      local file, out = helper.tmp ".json", helper.tmp ".out"
      helper.write(file, require "cjson".encode { prompt = "a", max_tokens = 600, stream = true,
        ignore_eos = true, temperature = 0 })
      helper.write(out, "")
      os.execute(("curl -sN -m 60 --data-binary @%s %s/v1/completions >%s &"):format(file,
        server.url, out))
      for _ = 1, 100 do
        if helper.read(out):find "data" then break end
        os.execute "sleep 0.05"
      end
      server:signal(name)
      os.execute "sleep 0.2"
      local _, status = server:ask "/health"
      assert.is_true(status == 0 or status == 503)
      assert.is_true(server:ends(30))
      assert.matches("data: %[DONE%]\n\n$", helper.read(out))
      os.remove(file)
      os.remove(out)
      shell.remove(server.folder)
    end
  end)

  it("ends at once at the second signal", function()
    local server = served.start "--model models/tiny --threads 1"
    local file = helper.tmp ".json"
    helper.write(file, require "cjson".encode { prompt = "a", max_tokens = 2000, stream = true,
      ignore_eos = true })
    os.execute(("curl -sN -m 60 --data-binary @%s %s/v1/completions >/dev/null &"):format(file,
      server.url))
    os.execute "sleep 0.5"
    server:signal "INT"
    os.execute "sleep 0.2"
    server:signal "INT"
    assert.is_true(server:ends(5))
    os.remove(file)
    shell.remove(server.folder)
  end)

  it("says why it cannot serve", function()
    local server = served.start "--model models/tiny --threads 1"
    local _, err, status = shell.pyramid("serve", "--model", "models/tiny", "--port",
      tostring(server.port))
    assert.equal(1, status)
    assert.matches("cannot listen on 127.0.0.1", err)
    server:stop()
    _, err, status = shell.pyramid("serve", "--model", "models/tiny", "--memory", "much")
    assert.equal(1, status)
    assert.matches("much", err)
    _, err, status = shell.pyramid("serve", "--model", "models/none")
    assert.equal(1, status)
    assert.matches("there is no model", err)
  end)
end)
