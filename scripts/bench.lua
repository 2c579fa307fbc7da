-- bench.lua: how fast this machine reads and generates, next to its limits and to other engines.
local caches = require "pyramid.cache"
local cases = require "pyramid.tools.bench.cases"
local cli = require "pyramid.tools.cli"
local baselines = require "pyramid.tools.bench.baselines"
local core = require "pyramid.core"
local families = require "pyramid.families"
local probe = require "pyramid.probe"
local largest = require "pyramid.tools.bench.largest"
local machine = require "pyramid.tools.bench.machine"
local options = require "pyramid.options"
local peers = require "pyramid.tools.bench.peers"
local picture = require "pyramid.tools.picture"
local products = require "pyramid.tools.bench.products"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local report = require "pyramid.tools.bench.report"
local store = require "pyramid.tools.store"

-- What is measured where no option says otherwise.
local presets = {
  normal = { prefill = { 512, 2048, 7680 }, depth = { 0, 2048, 7680 }, batch = { 32 },
    prompt = 512, generated = 256, repeats = 7, steps = 32, patience = 120, limit = 600,
      probe = { bytes = 1 << 30, size = 2048, times = 3 } },
  quick = { prefill = { 128, 512 }, depth = { 0, 512 }, batch = { 1, 4 }, prompt = 64,
    generated = 32, repeats = 3, steps = 16, patience = 3, limit = 20,
      probe = { bytes = 1 << 28, size = 1024, times = 2 } },
}

-- ---- arguments ----------------------------------------------------------------------------------

local parser = cli.parser("[options]", [[
Measures this machine's limits (reading memory; oneDNN's products), then
prefill, decode at several depths, and batches, for each model, policy and
cache dtype: SmolLM2, where it was fetched. All take turns, also with other
engines, so that drift cancels, and what one is beside another is a ratio of
the same round. Without options it takes half an hour.]], [[
Examples:
   pyramid bench --quick
   pyramid bench -m model.gguf --policy full --policy snapkv --batch none
   pyramid bench --peer openvino --peer llama.cpp --peer transformers --neighbour \
      --python venv/bin/python --json bench.json --markdown bench.md
   pyramid bench --shape 134m,1.1b --weights bf16,q8_0,q4_k_m --peer llama.cpp
Lists are separated by commas; "none" is an empty one. What is not measured is
said, with the reason.]])

local function list_option(name, argname, text, check)
  parser:option(name, text):argname(argname):convert(function(given)
    local out = {}
    if given == "none" then return out end
    for word in given:gmatch "[^,%s]+" do
      local value = check(word)
      if value == nil then return nil, ("option '%s': '%s' is not possible"):format(name, word) end
      out[#out + 1] = value
    end
    return #out > 0 and out or nil, ("option '%s' is an empty list"):format(name)
  end)
end

local function count(least)
  return function(word)
    local n = math.tointeger(tonumber(word))
    return n and n >= least and n or nil
  end
end

local function one_of(...)
  local known = {}
  for _, name in ipairs { ... } do known[name] = true end
  return function(word) return known[word:lower()] and word:lower() or nil end
end

local function collect_policy(is_file)
  return function(args, _, value)
    args.policies = args.policies or {}
    table.insert(args.policies, { text = value, file = is_file })
  end
end

local shape_names = {}
for name in pairs(random_model.shapes) do shape_names[#shape_names + 1] = name end
table.sort(shape_names)

parser:flag("--quick", "Few and short cases: about a minute.")
cli.option(parser, "--model", "PATH", "A model to measure with; may be repeated.",
  { short = "-m", many = true })
list_option("--shape", "NAMES",
  ("Random models of these shapes, made where --folder says: %s. (default: none; 134m, where "
    .. "neither a model is given nor SmolLM2 is there)")
  :format(table.concat(shape_names, ", ")), one_of(table.unpack(shape_names)))
list_option("--weights", "DTYPES",
  ("Weights of shapes: %s, q4_k_m (which the peer makes); of other models \"file\" or what they "
  .. "are converted to. (default: bf16, or file)"):format(table.concat(random_model.dtypes, ", ")),
  one_of("file", "q4_k_m", table.unpack(random_model.dtypes)))
cli.option(parser, "--policy", "NAME", "A policy, options follow as key=value; may be repeated. "
  .. "(default: full, and pyramidinfer preset=45)",
    { short = "-p", many = true }):action(collect_policy(false))
cli.option(parser, "--policy-file", "FILE", cli.policy_file_help, { many = true })
  :action(collect_policy(true))
list_option("--cache-dtype", "DTYPES",
  ("How rows are stored: %s. (default: f16)"):format(table.concat(caches.dtypes, ", ")),
    one_of(table.unpack(caches.dtypes)))
list_option("--prefill", "LENGTHS", "Tokens read. (default: 512,2048,7680)", count(1))
list_option("--depth", "LENGTHS", "Tokens before the steps of decode. (default: 0,2048,7680)",
  count(0))
list_option("--batch", "COUNTS", "Sequences of a batch. (default: 32)", count(1))
parser:option("--lengths",
  "What each sequence of a batch reads and makes. (default: 512+256)"):argname "PROMPT+MADE"
  :convert(function(given)
    local prompt, generated = given:match "^(%d+)%+(%d+)$"
    if tonumber(prompt or 0) < 1 or tonumber(generated) < 2 then
      return nil, "option '--lengths' looks like 512+256"
    end
    return { math.tointeger(prompt), math.tointeger(generated) }
  end)
list_option("--products", "SHAPES",
  "Nothing but products of 1, 8, 32 and 512 tokens with weights of these shapes, such as "
  .. "576x1536, rows first, for each quantised dtype.", function(word)
    local rows, cols = word:match "^(%d+)x(%d+)$"
    rows, cols = math.tointeger(tonumber(rows)), math.tointeger(tonumber(cols))
    return rows and rows > 0 and rows <= 1 << 20 and cols % 32 == 0 and cols > 0
      and cols <= 1 << 16 and { rows = rows, cols = cols } or nil
  end)
cli.option(parser, "--steps", "N", "Steps of decode that are timed. (default: 32)", { integer = 1 })
cli.option(parser, "--repeat", "N", "Rounds that count. (default: 7; with --quick 3)",
  { integer = 1 })
cli.option(parser, "--patience", "SECONDS",
  "Where a run takes longer than this there are three rounds. (default: 120)",
  { number = true })
cli.option(parser, "--limit", "SECONDS",
  "Runs that would take longer are left out. (default: 600)", { number = true })
cli.option(parser, "--batch-limit", "SECONDS", "The same for batches. (default: as --limit)",
  { number = true })
cli.option(parser, "--buffer", "SIZE",
  "What is read to learn how fast memory is: far more than the last cache. (default: 1 GiB)")
cli.option(parser, "--device", "NAME", cli.device_help)
cli.option(parser, "--memory", "SIZE",
  "Also finds the largest batch of --lengths, for each policy, that runs in this memory: "
  .. "weights, rows, scratch, as the runtime counts them.")
cli.option(parser, "--tries", "N", "How many batches may be run to find it.",
  { default = "5", integer = 1 })
parser:flag("--discard", "Remove the files of random models that this run made.")
cli.option(parser, "--threads", "N", "How many threads; 0: one for each processor.",
  { default = "0", integer = 0 })
cli.option(parser, "--precision", "P",
  "Of matrix products, where the processor has it: f32; bf16 for prompts; int8 for "
  .. "quantised weights too; auto: int8 for quantised weights, else f32. "
  .. "(default: PYRAMID_PRECISION, or auto)", { choices = { "auto", "f32", "bf16", "int8" } })
cli.option(parser, "--seed", "N", "Of weights and prompts.", { default = "1", integer = 0 })
cli.option(parser, "--folder", "DIR", "Where random models are kept.", { default = "build/bench" })
cli.option(parser, "--peer", "NAME",
  "Measures another engine in turns with Pyramid, in a process of its own; may be repeated: "
  .. "llama.cpp (llama-cpp-python) and openvino (openvino-genai) on the same GGUF files, "
  .. "transformers with PyTorch's own attention on the same folders and files.",
    { choices = peers.names, many = true })
parser:flag("--neighbour", "Measures all of Pyramid's also while another program keeps one "
  .. "processor busy, and says what that costs.")
cli.option(parser, "--python", "PATH", "The Python that has them.", { default = "python3" })
cli.option(parser, "--peer-flash", "WHICH",
  "llama.cpp's attention: on, off, or both, of which the faster counts.",
  { default = "both", choices = { "on", "off", "both" } })
cli.option(parser, "--json", "FILE", "Write the report as JSON.")
cli.option(parser, "--markdown", "FILE", "Write it as a Markdown table.")

local args = cli.parse(parser, arg)
local preset = args.quick and presets.quick or presets.normal
local settings = { quick = args.quick or false, steps = args.steps or preset.steps,
  repeats = args["repeat"] or preset.repeats, patience = args.patience or preset.patience,
    limit = args.limit or preset.limit, batch_limit = args.batch_limit or args.limit
      or preset.limit, seed = args.seed, probe = preset.probe,
        prompt = args.lengths and args.lengths[1] or preset.prompt,
          generated = args.lengths and args.lengths[2] or preset.generated }

if args.buffer then
  local ok, size = pcall(options.bytes, "--buffer", args.buffer)
  if not ok or size < 1 << 20 then
    cli.fail(("--buffer %s is no size of 1 MiB or more"):format(args.buffer))
  end
  settings.probe.bytes = size
end

local memory
if args.memory then
  local ok, size = pcall(options.bytes, "--memory", args.memory)
  if not ok or size == 0 then
    cli.fail(("--memory %s is no size, such as \"24 GiB\""):format(args.memory))
  end
  memory = size
end
-- transformers alone reads folders as well as GGUF files
local folders = #args.peer == 1 and args.peer[1] == "transformers"

local groups = cases.groups { prefill = args.prefill or preset.prefill,
  depth = args.depth or preset.depth, steps = settings.steps, batch = args.batch or preset.batch,
    prompt = settings.prompt, generated = settings.generated }
if #groups == 0 then
  cli.fail("nothing to measure", "At least one of --prefill, --depth and --batch must not be none.")
end
args.policies = args.policies or { { text = "full" }, { text = "pyramidinfer preset=45" } }
local policies = cli.policies(args)
local dtypes = args.cache_dtype or { "f16" }
if #dtypes == 0 then
  cli.fail("no --cache-dtype", ("Give at least one of %s."):format(table.concat(caches.dtypes,
    ", ")))
end

if args.products then
  local runtime <close> = cli.must(core.runtime { isa = args.precision ~= "f32"
    and args.precision ~= "auto" and args.precision or nil, threads = args.threads })
  local limits = machine.new_limits()
  machine.measure(limits, runtime, settings.probe)
  print(("%s, %d threads, %s; reads %.1f GB/s; int8 by oneDNN %.0f x 10^9 multiply-adds a second")
    :format(machine.describe().cpu, runtime:threads(), runtime:isa(),
      machine.most(limits.read) / 1e9, (machine.most(limits.int8) or 0) / 2e9))
  for _, shape in ipairs(args.products) do
    shape.tokens, shape.dtypes, shape.turns = { 1, 8, 32, 512 }, products.dtypes(),
      settings.repeats
    shape.bytes = args.quick and 1 << 25 or 3 * machine.last_cache()
    print(products.text(products.measure(runtime, shape), shape))
  end
  return
end

local progress <close> = picture.progress("measuring", { after = 0 })
local function note(text)
  progress.note = text
  progress.update(0, 1)
end

-- ---- models -------------------------------------------------------------------------------------

-- What is to be measured: { name, weights, path, as (conversion), shape, note }.
local function list_sources()
  local sources, paths, note_of = {}, args.model, nil
  if #paths == 0 and not args.shape then
    paths = { store.find "smollm2" }            -- a real model that is there
    if #paths == 0 then
      note_of = "random weights: `make models` or `pyramid get smollm2` fetches a real model"
    end
  end
  for _, path in ipairs(paths) do
    for _, weights in ipairs(args.weights or { "file" }) do
      sources[#sources + 1] = { name = (path:match "([^/]+)/*$" or path)
        .. (weights == "file" and "" or " as " .. weights), weights = weights,
          path = cli.need_model(path), as = weights ~= "file" and weights or nil }
    end
  end
  for _, shape in ipairs(args.shape or (#paths == 0 and { "134m" } or {})) do
    for _, weights in ipairs(args.weights or { "bf16" }) do
      sources[#sources + 1] = { name = shape .. " " .. weights, weights = weights, shape = shape,
        note = note_of, path = ("%s/random-%s-%s-%d%s"):format(args.folder, shape, weights,
          args.seed, folders and "" or ".gguf") }
    end
  end
  return sources
end

local function exists(path)
  local file = io.open(path, "rb")
  return file and file:close() or false
end

-- Makes a random model's file, if it is not there. true, or nil and why not.
local function make(source, started, threads)
  local file = source.path:find "%.gguf$" and source.path or source.path .. "/model.safetensors"
  if not source.shape or exists(file) then return true end
  source.made = true
  os.execute("mkdir -p " .. cli.quote(args.folder))
  if source.weights == "file" then
    return nil, "a shape has no file of its own: --weights says how it is stored"
  end
  note("writing " .. source.path)
  if source.weights ~= "q4_k_m" then
    if folders and source.weights:find "^q" then
      return nil, "the peer's safetensors hold no quantised weights"
    end
    return random_model.write(source.path, { shape = source.shape, dtype = source.weights,
      seed = args.seed })
  end
  local peer
  for _, one in ipairs(started) do peer = one.peer == "llama.cpp" and one or peer end
  if not peer then return nil, "K-quants are made by the peer's quantiser (--peer llama.cpp)" end
  local f16 = { shape = source.shape, weights = "f16",
    path = source.path:gsub("q4_k_m(%-%d+%.gguf)$", "f16%1") }
  local ok, message = make(f16, started, threads)
  if not ok then return nil, message end
  return peer:ask("quantize", { source = f16.path, target = source.path, type = source.weights,
    threads = threads })
end

-- Opens a model; with `again`, twice, so that its file has been read before (a device's copy would
-- only be made twice).
local function open(source, entry, again)
  machine.reset_peak()
  local began = core.clock()
  local model, message = pyramid.model(source.path,
    { weights = source.as, device = args.device, threads = args.threads,
      precision = args.precision })
  if not model then return nil, message end
  table.insert(entry.load_seconds, core.clock() - began)
  if again and entry.load_seconds[1] < 30 and not probe.device(model:runtime()) then
    model:close()
    return open(source, entry)
  end
  entry.load_peak_bytes = machine.peak()
  if #entry.load_seconds < 3 then cli.warn_of(model) end
  return model
end

local function parameters_of(config)
  local tied = config.tied and 1 or 2
  local heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
  local d, mlps = config.decoder, 3 * config.layers * config.ff
  for layer = 1, config.layers do
    if families.mixes(d, layer) then
      mlps = mlps + 3 * (d.experts * d.expert_ff + d.shared_ff - config.ff)
    end
  end
  return tied * config.vocab * config.width + config.width * (config.layers * (2 * heads + 2 * kv)
    + mlps)
end

-- How oneDNN, or the device's library, would multiply such weights.
local function kind_of(entry, device)
  if device then return entry.precision == "f32" and "f32" or "bf16" end
  local size = entry.bytes / entry.parameters
  return size > 3 and "f32" or size > 1.5 and "bf16" or "int8"
end

-- Called whenever something is known, so that a long run that is ended early leaves that.
local function save(run)
  if args.json then cli.write(args.json, report.json(run)) end
  if args.markdown then cli.write(args.markdown, report.markdown(run)) end
end

-- ---- one model ----------------------------------------------------------------------------------

local function enter_peer(list, peer, source, entry, model, ids)
  local runtime = model:runtime()
  local own, refused, seconds = peers.enter(peer, { path = source.path,
    converted = source.as ~= nil, threads = runtime:threads(), ids = ids,
      device = runtime:isa() == "cuda" and "cuda" or "cpu", context = model.config.context,
        dtypes = dtypes, flash = args.peer_flash })
  entry.peer_load_seconds[peer.name] = seconds
  table.move(own, 1, #own, #list + 1, list)
  table.move(refused, 1, #refused, #entry.left_out + 1, entry.left_out)
end

local function measure(source, entry, started, threads, run)
  local ok, message = make(source, started, threads)
  if not ok then return nil, message end
  note("opening " .. source.path)
  local model <close>, why = open(source, entry, true)
  if not model then return nil, why end
  entry.description, entry.parameters, entry.bytes = model.description,
    parameters_of(model.config), model:native():bytes()
  entry.products, entry.precision, entry.note = cli.products(model), model.precision, source.note
  note("measuring the limits")
  machine.measure(entry.limits, model:runtime(), settings.probe)
  local list, ids, all_ids = {}, baselines.ids(model.config.vocab, args.seed)
  for _, dtype in ipairs(dtypes) do
    for _, chosen in ipairs(policies) do
      list[#list + 1] = baselines.ours(model,
        { policy = chosen.policy, label = chosen.label, dtype = dtype, ids = ids })
    end
  end
  for i = 1, args.neighbour and #list or 0 do list[#list + 1] = baselines.beside(list[i]) end
  for _, peer in ipairs(started) do
    note(("%s opens %s"):format(peer.name, source.path))
    enter_peer(list, peer, source, entry, model, all_ids)
  end
  local device, before = probe.device(model:runtime()), entry.left_out
  local function conclude(results, left_out)
    entry.results, entry.left_out = results, table.move(left_out, 1, #left_out, #before + 1,
      table.move(before, 1, #before, 1, {}))
    for _, result in ipairs(results) do
      cases.add_fraction(result, entry.limits, kind_of(entry, device))
    end
    if device then entry.ways = assert(probe.device_ways(model:runtime())) end
    report.compare(results)
    save(run)
  end
  local function ceiling(case)
    local name = cases.limit_of(case, entry.limits, kind_of(entry, device))
    return name and machine.measure_one(entry.limits, model:runtime(), name, settings.probe)
  end
  local all, missing = cases.run(list, groups, { ceiling = not device and ceiling or nil,
    repeats = settings.repeats, patience = settings.patience, limit = settings.limit,
    batch_limit = settings.batch_limit, context = model.config.context, done = conclude,
    report = function(text) note(source.name .. ": " .. text) end })
  for _, peer in ipairs(started) do peer:ask "close" end
  note("measuring the limits")
  machine.measure(entry.limits, model:runtime(), settings.probe)
  conclude(all, missing)
  return true
end

-- Sequences whose rows should fit beside what the runtime held else, by the largest batch that was
-- run; 1 if none was.
local function guess_of(entry, label, dtype)
  local guess, most = 1, 0
  for _, result in ipairs(entry.results) do
    if result.case.kind == "batch" and result.label == label and result.cache_dtype == dtype
      and result.case.count > most then
      most = result.case.count
      local others = (result.peak_bytes or 0) - result.kv_bytes
      guess = math.floor((memory - others) / (result.kv_bytes / most))
    end
  end
  return math.max(1, guess)
end

-- The largest batches: in a runtime of their own, which has the limit, when the other one's memory
-- is free again.
local function measure_largest(source, entry)
  local function leave_out(reason)
    table.insert(entry.left_out, { label = "largest batch", reason = reason })
  end
  local model <close>, message = pyramid.model(source.path,
    { weights = source.as, device = args.device, threads = args.threads,
      precision = args.precision, memory = memory })
  if not model then return leave_out(message) end
  local ids = baselines.ids(model.config.vocab, args.seed)
  for _, dtype in ipairs(dtypes) do
    for _, chosen in ipairs(policies) do
      note(("%s: the largest batch in %s, %s"):format(source.name, args.memory, chosen.label))
      local one = baselines.ours(model, { policy = chosen.policy, label = chosen.label,
        dtype = dtype, ids = ids })
      local found
      found, message = largest.find(one, { memory = memory,
        guess = guess_of(entry, chosen.label, dtype), tries = args.tries, prompt = settings.prompt,
          generated = settings.generated })
      if found then
        found.cache_dtype = dtype
        table.insert(entry.largest, found)
      else leave_out(chosen.label .. ": " .. message) end
    end
  end
end

-- ---- the run ------------------------------------------------------------------------------------

-- The peers of --peer, each once; they end with the list.
local function start_peers()
  local started, seen = {}, {}
  for _, name in ipairs(args.peer) do
    if not seen[name] then
      local peer, message, hint = peers.start(name, args.python)
      if not peer then cli.fail(message, hint) end
      started[#started + 1], seen[name] = peer, true
    end
  end
  return setmetatable(started, { __close = function(list)
    for _, peer in ipairs(list) do peer:close() end
  end })
end

local sources = list_sources()
local started <close> = start_peers()
local described = {}
for i, peer in ipairs(started) do
  described[i] = { name = peer.name, version = peer.version, system = peer.system,
    kernels = peer.kernels }
end
local began = core.clock()
local run = { command = cli.command_line("bench"), date = os.date "!%Y-%m-%dT%H:%M:%SZ",
  machine = machine.describe(), settings = settings, load = { before = machine.load() },
    limits = machine.new_limits(), models = {}, threads = args.threads, peers = described }
do
  local runtime <close> = cli.must(core.runtime { device = args.device, threads = args.threads })
  run.threads, run.device = runtime:threads(), machine.device(runtime)
end
for _, source in ipairs(sources) do
  local entry = { name = source.name, path = source.path, weights = source.weights,
    load_seconds = {}, peer_load_seconds = {}, results = {}, largest = {}, left_out = {},
      limits = machine.new_limits() }
  run.models[#run.models + 1] = entry
  local ok, message = measure(source, entry, started, run.threads, run)
  if source.note then cli.warn(source.note) end
  if not ok then table.insert(entry.left_out, { reason = message })
  elseif memory then measure_largest(source, entry) end
  if args.discard and source.made then os.execute("rm -rf " .. cli.quote(source.path)) end
  for kind, samples in pairs(entry.limits) do
    table.move(samples, 1, #samples, #run.limits[kind] + 1, run.limits[kind])
  end
  progress:close()
  report.print(entry)
  run.seconds, run.load.after = core.clock() - began, machine.load()
  save(run)
end
report.print_end(run)
local measured = 0
for _, entry in ipairs(run.models) do measured = measured + #entry.results end
if measured == 0 then cli.fail "nothing could be measured" end
