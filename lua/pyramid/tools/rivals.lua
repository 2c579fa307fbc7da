--- What programs that measure policies against each other have alike: their options, which
--- policies at which budgets, the file of results, and what results depend on. A part of the
--- programs: failures end them.
local cli = require "pyramid.tools.cli"
local core = require "pyramid.core"
local engine = require "pyramid.tools.engine"
local machine = require "pyramid.tools.bench.machine"
local page = require "pyramid.tools.report.comparison"
local picture = require "pyramid.tools.picture"
local results = require "pyramid.tools.results"

local rivals = {}

---Adds --shard.
---@param parser table
function rivals.add_shard(parser)
  cli.option(parser, "--shard", "I/N",
    "Measure what falls to worker I of N, which share --out; the same command without it joins "
      .. "what they have, and measures what is missing."):convert(
    function(text)
      local index, count = text:match "^(%d+)/(%d+)$"
      index, count = math.tointeger(index), math.tointeger(count)
      if index and count and index >= 1 and index <= count then
        return { index = index, count = count }
      end
      return nil, ("option '--shard' must be a worker and how many there are, such as 2/8, not '%s'")
        :format(text)
    end)
end

---Adds the options that say who is measured, and where results go.
---@param parser table
---@param out string      the folder, unless said
function rivals.add_options(parser, out)
  cli.add_policy(parser, true)
  cli.option(parser, "--budgets", "LIST", "Shares of the rows to keep.",
    { default = "0.2,0.35,0.45,0.6,0.8" })
  cli.add_cache_dtype(parser)
  cli.add_tiers(parser)
  cli.add_trace(parser)
  cli.option(parser, "--out", "DIR", "Where results and report go.", { default = out })
  rivals.add_shard(parser)
end

---A list of what `convert` makes of its words; `wanted` says what a word should be.
---@param option string
---@param text string
---@param convert fun(word: string): any
---@param wanted string
---@return any[]
function rivals.list_of(option, text, convert, wanted)
  local list, seen = {}, {}
  for word in (text .. ","):gmatch "([^,]*)," do
    local value = convert(word)
    if value == nil then cli.fail(("%s: '%s' is not %s"):format(option, word, wanted)) end
    if not seen[value] then list[#list + 1] = value end
    seen[value] = true
  end
  return list
end

local function budget(word)
  local value = tonumber(word)
  return value and value > 0 and value <= 1 and value or nil
end

---The budgets of --budgets, ascending.
---@param args table
---@return number[]
function rivals.budgets(args)
  local list = rivals.list_of("--budgets", args.budgets, budget,
    "a share of the rows, more than 0 and at most 1")
  table.sort(list)
  return list
end

---Policies that are measured if none is named.
rivals.usual = { "streaming", "h2o", "snapkv", "pyramidinfer", "pyramidinfer preset=45" }

---The policies of the arguments at their budgets, the full cache first.
---@param args table
---@param budgets number[]
---@param usual? string[]
---@return pyramid.Variant[]
function rivals.variants(args, budgets, usual)
  if not args.policies then
    args.policies = {}
    for i, name in ipairs(usual or rivals.usual) do args.policies[i] = { text = name } end
  end
  local list = cli.policies(args)
  for i, given in ipairs(args.policies) do
    if given.file then list[i].source = cli.read(given.text:match "^[^\n]+") end
  end
  return cli.must(engine.variants(list, budgets))
end

---The results of --out, which need not be there yet.
---@param args table
---@param format string
---@param path? string    results.jsonl in the folder --out, unless said
---@param model? pyramid.Model     of several ranks the first alone writes
---@return pyramid.Results
function rivals.store(args, format, path, model)
  path = path or args.out .. "/results.jsonl"
  -- opening the file says what is wrong
  os.execute("mkdir -p " .. cli.quote(path:match "^(.*)/[^/]*$" or ".") .. " 2>/dev/null")
  local store, message, code = results.open(path, format, args.shard,
    model and model:ranks().rank > 0)
  if store then return store end
  cli.fail(message, code == "format" and "It is left as it is; give another --out." or nil)
end

-- "f16", or "hot f16 warm q8_0:64 MiB": what rows are held as; where a tier's file lies makes no
-- difference.
local function rows_of(args)
  local words = {}
  for _, name in ipairs { "hot", "warm", "cold" } do
    local tier = (args.tiers or {})[name]
    if tier then
      words[#words + 1] = ("%s %s%s"):format(name, tier.dtype, tier.bytes and ":" .. tier.bytes
        or "")
    end
  end
  if args.pressure then words[#words + 1] = "pressure " .. args.pressure end
  if not (args.tiers or {}).hot then table.insert(words, 1, args.cache_dtype) end
  return table.concat(words, " ")
end

-- What results depend on besides policies and texts, without rows and threads; what is as ever is
-- left out, so that results of former versions are found.
local function bound_to(model, args)
  local words = { cli.must(engine.fingerprint(model.path)),
    "weights " .. (args.weights or "as they are"), "precision " .. model.precision }
  local device = args.device or core.default_device()
  if args.scaling and args.scaling ~= "none" then words[#words + 1] = "scaling " .. args.scaling end
  if args.max_context then words[#words + 1] = "context " .. args.max_context end
  if device ~= "cpu" then words[#words + 1] = "device " .. device end
  return words
end

---What results depend on besides policies and texts. Threads are among it for the sake of times.
---@param model pyramid.Model
---@param args table
---@return string
function rivals.circumstances(model, args)
  local runtime, words = model:runtime(), bound_to(model, args)
  words[#words + 1] = "rows " .. rows_of(args)
  words[#words + 1] = runtime:isa()
  words[#words + 1] = runtime:threads() .. " threads"
  return table.concat(words, ", ") .. ", pyramid " .. core.version
end

---The same of what is measured without times, on rows that are held as a cache holds them.
---@param model pyramid.Model
---@param args table
---@return string
function rivals.untimed_circumstances(model, args)
  return ("%s, %s, pyramid %s"):format(table.concat(bound_to(model, args), ", "),
    model:runtime():isa(), core.version)
end

---What a page says of a run, but for its kinds and settings: a function of how many results are
---new and, before the end, the share of the work that is done. Seconds count from this call.
---@param name string         the program's
---@param model pyramid.Model
---@return fun(measured: integer, share?: number): table
function rivals.describe(name, model)
  local began, described = core.clock(), machine.describe()
  return function(measured, share)
    return { command = cli.command_line(name), date = os.date "!%Y-%m-%d %H:%M UTC",
      model = model.description, path = model.path, version = core.version, machine = described,
      threads = model:runtime():threads(), isa = model:runtime():isa(), load = machine.load(),
      measured = measured, seconds = core.clock() - began, share = share }
  end
end

---Measures what the store lacks. A long run can be looked at, and leaves a page if it is ended:
---once a minute what is there is written to `path`.
---@param tool { run: function, summary: function }   compare or eval
---@param plan table
---@param model pyramid.Model
---@param store pyramid.Results
---@param path string
---@param about fun(measured: integer, share?: number): table   what the page says of the run
---@return integer            how many results are new
function rivals.measure(tool, plan, model, store, path, about)
  local progress <close> = picture.progress "measuring"
  local written, there = core.clock(), store.count
  return cli.must(tool.run(plan, model, store, function(done, total, what)
    progress.note = what
    progress.update(done, total)
    if core.clock() - written > 60 then
      local entries = tool.summary(plan, store)
      if #entries > 0 then
        cli.write(path, page.render(entries, about(store.count - there, done / total)))
      end
      written = core.clock()
    end
  end))
end

return rivals
