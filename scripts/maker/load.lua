-- load.lua NAME=PORT[,JSON] … : servers that speak OpenAI's API, side by side under the same load:
--
--   build/pyramid scripts/maker/load.lua --text FILE full=8080 'preset45=8080,{"pyramid":
--     {"policy":"pyramidinfer","options":{"preset":45}}}' llama.cpp=8081
--
-- Each NAME is asked at its port of this machine, with the fields of JSON beside what all are
-- asked. All take turns in every round, with the same ids, so that what the machine does besides
-- hits all of them; the first is what the others are held against. Prompts are cut from FILE by the
-- first server's /tokenize. `--scene` says what is measured:
--
--   clients   so many clients at once (--clients 1,8,32), each of which reads a prompt of --prompt
--             tokens and writes --write; tokens a second over all that is written, from the first
--             request to the last token, and seconds to a client's first token.
--   reading   8 clients write while a prompt of --long tokens comes: milliseconds between two
--             tokens of a client, before it came and until its first token was there.
--   agent     --requests short requests after one another, which all begin with the same --shared
--             tokens and end with 32 of their own: seconds to the first token.
local cjson = require "cjson"
local cli = require "pyramid.tools.cli"
local picture = require "pyramid.tools.picture"

local parser = cli.parser("[options] NAME=PORT[,JSON] …",
  "Holds servers that speak OpenAI's API against each other under the same load.")
parser:argument("servers", "A name, its port here, and fields of its own."):args "+"
cli.option(parser, "--text", "FILE", "What prompts are cut from.")
cli.option(parser, "--scene", "NAME", "What is measured.",
  { default = "clients", choices = { "clients", "reading", "agent" } })
cli.option(parser, "--clients", "N,…", "How many at once.", { default = "1,8,32" })
cli.option(parser, "--prompt", "N", "Tokens of a prompt.", { default = "512", integer = 1 })
cli.option(parser, "--write", "N", "Tokens of an answer.", { default = "128", integer = 1 })
cli.option(parser, "--long", "N", "Tokens of the prompt that comes between.",
  { default = "4000", integer = 1 })
cli.option(parser, "--shared", "N", "Tokens that requests share.",
  { default = "2000", integer = 1 })
cli.option(parser, "--requests", "N", "How many of those.", { default = "50", integer = 2 })
cli.option(parser, "--repeat", "N", "Rounds.", { default = "3", integer = 1 })
local args = cli.parse(parser, arg)
if not args.text then cli.fail("prompts are cut from a text", "--text FILE names it.") end

local library = require "pyramid.serve.library"
local modules, missing = library.open()
if not modules then cli.fail(missing, library.HINT) end
package.path = "./?.lua;" .. package.path
local cqueues, streams = modules.cqueues, require "spec.support.streams"

local servers = {}
for i, words in ipairs(args.servers) do
  local name, port, more = words:match "^([^=]+)=(%d+),?(.*)$"
  local ok, fields = pcall(cjson.decode, more ~= "" and more or "{}")
  if not name or not ok then cli.fail(words .. ": is not NAME=PORT or NAME=PORT,JSON") end
  servers[i] = { name = name, port = math.tointeger(tonumber(port)), fields = fields }
end

-- ---- asking -------------------------------------------------------------------------------------

-- Runs each function as a coroutine of its own, until all have ended.
local function together(functions)
  local queue = cqueues.new()
  for _, each in ipairs(functions) do
    queue:wrap(function()
      local ok, why = xpcall(each, debug.traceback)
      if not ok then cli.fail(why) end
    end)
  end
  assert(queue:loop())
end

-- One request: when it was sent, and when each piece of its answer came.
local function ask(server, ids, write)
  local body = { prompt = ids, max_tokens = write, temperature = 0,
    ignore_eos = true, stream = true, stream_options = { include_usage = true } }
  for key, value in pairs(server.fields) do body[key] = value end
  local s = assert(streams.connect(server.port), server.name .. " does not answer")
  local times, usage = {}, nil
  local sent = cqueues.monotime()
  streams.post(s, "/v1/completions", cjson.encode(body))
  local status, done = streams.events(s, function(event)
    if type(event.choices) == "table" and event.choices[1] then
      times[#times + 1] = cqueues.monotime()
    end
    usage = type(event.usage) == "table" and event.usage or usage
  end)
  s:close()
  if status ~= 200 or not done or not usage or usage.completion_tokens ~= write then
    cli.fail(("%s: status %s, %s of %d tokens"):format(server.name, tostring(status),
      usage and tostring(usage.completion_tokens) or "an unknown number", write))
  end
  return sent, times
end

local stock
do                                                    -- the text's ids
  local text = cli.read(args.text):sub(1, 2 << 20)
  together { function()
    local s = assert(streams.connect(servers[1].port), servers[1].name .. " does not answer")
    streams.post(s, "/tokenize", cjson.encode { content = text, add_special = false })
    local answer, status = streams.answer(s)
    stock = answer and answer.tokens
    if not stock then cli.fail("/tokenize: status " .. tostring(status)) end
  end }
end

-- So many ids of the text that no other call gets, as long as it lasts.
local at = 0
local function cut(n)
  if at + n > #stock then at = (at + n) % 97 end
  if at + n > #stock then cli.fail(args.text .. ": is too short") end
  at = at + n
  return table.move(stock, at - n + 1, at, 1, {})
end

-- ---- scenes -------------------------------------------------------------------------------------

local function quantile(values, q)
  table.sort(values)
  return values[math.max(1, math.ceil(q * #values))]
end

local function clients(server, prompts)
  local functions, firsts, last, written = {}, {}, 0, 0
  local began = cqueues.monotime()
  for i, ids in ipairs(prompts) do
    functions[i] = function()
      local sent, times = ask(server, ids, args.write)
      firsts[#firsts + 1], written = times[1] - sent, written + args.write
      last = math.max(last, times[#times])
    end
  end
  together(functions)
  return { written / (last - began), quantile(firsts, 0.5), quantile(firsts, 0.95) }
end

local function reading(server, prompts)
  local functions, streams_of, from, to = {}, {}, nil, nil
  local going = #prompts - 1
  for i = 1, going do
    functions[i] = function()
      local _, times = ask(server, prompts[i], args.write)
      streams_of[i] = times
    end
  end
  functions[going + 1] = function()
    ask(server, cut(32), 16)                          -- by then all of them write
    from = cqueues.monotime()
    local _, times = ask(server, prompts[going + 1], 1)
    to = times[1]
  end
  together(functions)
  local before, during = {}, {}
  for _, times in ipairs(streams_of) do
    for j = 2, #times do
      local gap = 1000 * (times[j] - times[j - 1])
      if times[j] < from then before[#before + 1] = gap
      elseif times[j - 1] < to then during[#during + 1] = gap
      end
    end
  end
  if #before == 0 or #during == 0 then cli.fail "--write is too short for the long prompt" end
  local usual = quantile(before, 0.5)
  return { to - from, usual, quantile(during, 0.5), quantile(during, 0.95),
    quantile(during, 0.95) / usual }
end

local function agent(server, prompts)
  local firsts = {}
  together { function()
    for i, ids in ipairs(prompts) do
      local sent, times = ask(server, ids, 16)
      firsts[i] = times[1] - sent
    end
  end }
  local sum = 0
  for _, seconds in ipairs(firsts) do sum = sum + seconds end
  return { sum / #firsts, firsts[1], quantile(table.move(firsts, 2, #firsts, 1, {}), 0.5),
    quantile(table.move(firsts, 2, #firsts, 1, {}), 0.95) }
end

local scenes = {
  clients = { run = clients, columns = { "tokens/s", "first token, median s", "95 % s" } },
  reading = { run = reading, seconds = true, columns = { "prompt s", "step before ms",
    "while read: median ms", "95 % ms", "95 % of the median before" } },
  agent = { run = agent, seconds = true, columns = { "mean s", "first request s",
    "others: median s", "95 % s" } },
}

local function prompts_of(count)
  local prompts = {}
  if args.scene == "agent" then
    local shared = cut(args.shared)
    for i = 1, args.requests do
      prompts[i] = table.move(cut(32), 1, 32, args.shared + 1, table.move(shared, 1, args.shared, 1,
        {}))
    end
  else
    for i = 1, count do prompts[i] = cut(args.prompt) end
    if args.scene == "reading" then prompts[count + 1] = cut(args.long) end
  end
  return prompts
end

-- ---- the table ----------------------------------------------------------------------------------

local scene = scenes[args.scene]
local counts = {}
for count in (args.scene == "clients" and args.clients or "8"):gmatch "%d+" do
  counts[#counts + 1] = math.tointeger(tonumber(count))
end
for _, count in ipairs(counts) do
  local got, ratios = {}, {}
  for i = 1, #servers do got[i], ratios[i] = {}, {} end
  for round = 1, args["repeat"] do
    local prompts = prompts_of(count)
    for i, server in ipairs(servers) do
      got[i][round] = scene.run(server, prompts)
      local ratio = got[1][round][1] / got[i][round][1]
      ratios[i][round] = scene.seconds and 1 / ratio or ratio
      io.stderr:write(("%s, round %d, %s: %s\n"):format(
        args.scene == "clients" and count .. " clients" or args.scene, round, server.name,
        table.concat(got[i][round], "  ")))
    end
  end
  local rows = { { args.scene == "clients" and count .. " clients" or args.scene,
    table.unpack(scene.columns) } }
  rows[1][#rows[1] + 1] = servers[1].name .. " is so many times as fast"
  for i, server in ipairs(servers) do
    local row = { server.name }
    for column = 1, #scene.columns do
      local values = {}
      for round, figures in ipairs(got[i]) do values[round] = figures[column] end
      row[#row + 1] = ("%.3g"):format(quantile(values, 0.5))
    end
    row[#row + 1] = ("%.2f× (%.2f–%.2f)"):format(quantile(ratios[i], 0.5), ratios[i][1],
      ratios[i][#ratios[i]])
    rows[#rows + 1] = row
  end
  for _, line in ipairs(picture.table(rows, "<")) do print(line) end
end
