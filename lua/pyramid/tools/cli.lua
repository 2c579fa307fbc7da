--- What the scripts share: arguments, models and policies from them, failures, JSON.
---
--- A script's failures go to standard error in one line that says what is wrong and one that says
--- what to do, and end it with status 1.
local argparse = require "argparse"
local caches = require "pyramid.cache"
local core = require "pyramid.core"
local dtypes = require "pyramid.loaders.dtypes"
local files = require "pyramid.files"
local json = require "pyramid.json"
local model = require "pyramid.model"
local options = require "pyramid.options"
local picture = require "pyramid.tools.picture"
local policy = require "pyramid.policy"
local sampler = require "pyramid.sampler"
local screen = require "pyramid.tools.screen"
local sessions = require "pyramid.sessions"
local store = require "pyramid.tools.store"

-- A script is a program: from here on it reads and writes numbers and sorts as in the C locale,
-- whatever runs it.
core.plain_locale()

local cli = {}

--- Set by who wants to know a script's options and not to run it: is told the parser, and raises.
---@type fun(parser: table)?
cli.on_parser = nil

cli.default_model = "models/tiny"

local program = arg and arg[0] or "pyramid"   -- "pyramid generate"

-- ---- failures -----------------------------------------------------------------------------------

-- Messages name what stands in files, which may be anything.
local function safe(text) return core.terminal(io.stderr) and screen.safe(text) or text end

---Ends the program: what is wrong, and what to do about it.
---@param message string
---@param hint? string
function cli.fail(message, hint)
  io.stdout:flush()
  picture.clear_progress()
  io.stderr:write(program, ": ", safe(message), "\n")
  if hint then io.stderr:write(safe(hint), "\n") end
  os.exit(1, true)
end

---What to do about a failure, by its code; a script may know better.
cli.hints = {
  budget = "Raise --budget, store rows smaller (--cache-dtype q8_0), or keep fewer of them "
    .. "(--policy pyramidinfer).",
  context = "Shorten the text.",
  memory = "Close other programs, or take smaller weights (--weights q8_0).",
}

---A value, or the end of the program: assert for `nil, message, code`.
---@generic T
---@param value T?
---@param message? string
---@param code? string
---@return T
function cli.must(value, message, code)
  if value == nil then cli.fail(tostring(message), cli.hints[code]) end
  return value
end

-- What a function returns; what it raises is the user's mistake here, so its place in a source is
-- left out.
local function guarded(f, ...)
  local results = table.pack(pcall(f, ...))
  if results[1] then return table.unpack(results, 2, results.n) end
  cli.fail(options.without_place(results[2]))
end

-- ---- arguments ----------------------------------------------------------------------------------

---A parser whose mistakes end the program as all others do.
---@param usage string        what stands behind the program's name
---@param description string
---@param epilog? string
---@return table  an argparse parser
function cli.parser(usage, description, epilog)
  local parser = argparse(program, description, epilog and epilog .. "\n")
  parser:usage(("Usage: %s %s"):format(program,
    usage)):help_max_width(picture.new(io.stdout).width):help_description_margin(28)
  parser.error = function(_, message) cli.fail((message:gsub("\n", ". ")),
    ("%s --help lists the options."):format(program)) end
  return parser
end

---Adds an option with one argument.
---@param parser table
---@param name string       "--model"
---@param argname string
---@param text string
---@param more? { short?: string, default?: string, integer?: integer, number?: boolean, choices?: string[], many?: boolean }
---integer: the least it may be
---@return table
function cli.option(parser, name, argname, text, more)
  more = more or {}
  local option = parser:option(name, text, more.default):argname(argname)
  -- argparse would spend a line of the help on it
  if more.short then option:hidden_name(more.short) end
  if more.choices then option:choices(more.choices) end
  if more.many then option:count "*" end
  if more.integer or more.number then
    option:convert(function(given)
      local value = tonumber(given)
      if more.integer then value = math.tointeger(value) end
      if value and value >= (more.integer or -math.huge) then return value end
      return nil, more.integer
        and ("option '%s' must be an integer of %d or more, not '%s'"):format(name, more.integer,
          given)
        or ("option '%s' must be a number, not '%s'"):format(name, given)
    end)
  end
  return option
end

local option = cli.option

cli.device_help = "Where it runs: cpu, or cuda, where libpyramid_cuda.so and a GPU are. "
  .. "(default: PYRAMID_DEVICE, or cpu)"

---@param parser table
---@param measures? boolean
---  it measures quality, so that its figures are f32's, alike on all processors, unless it is told
function cli.add_model(parser, measures)
  option(parser, "--model", "PATH",
    "A Hugging Face folder, a .gguf file, or a name that `pyramid models` lists.",
    { short = "-m", default = cli.default_model })
  option(parser, "--weights", "DTYPE",
    ("Convert the weights: %s."):format(table.concat(dtypes.writable, ", ")))
  option(parser, "--device", "NAME", cli.device_help)
  option(parser, "--threads", "N", "How many threads; 0: one for each processor.", { integer = 0 })
  option(parser, "--max-context", "N",
    "How many positions, instead of those the model was made for.", { integer = 1 })
  option(parser, "--scaling", "KIND",
    "How RoPE makes room for more of them: none (default), linear, yarn.",
      { choices = { "none", "linear", "yarn" } })
  option(parser, "--precision", "P",
    "Of matrix products, where the processor has it: f32; bf16 for prompts; int8 for quantised "
      .. "weights too; auto: int8 for models of quantised weights, f32 for others."
      .. (measures and "" or " (default: PYRAMID_PRECISION, or auto)"),
    { default = measures and "f32" or nil, choices = { "auto", "f32", "bf16", "int8" } })
  option(parser, "--ranks", "KIND",
    "This is one of several processes that mpirun started, all with the same arguments: tensor "
      .. "gives each a part of every layer, pipeline layers of its own (pipeline:18+12 says how "
      .. "many), pipeline:2,tensor:2 both.")
  parser:flag("--no-map",
    "Read the weights instead of mapping their file: for files on a network, or that others may "
      .. "shorten.")
end

cli.policy_file_help = "A policy of your own: the file is run as Lua, with all rights of this "
  .. "program. Options as for --policy."

---@param parser table
---@param many? boolean  several policies
function cli.add_policy(parser, many)
  local function collect(is_file)
    return function(args, _, value)
      args.policies = args.policies or {}
      table.insert(args.policies, { text = value, file = is_file })
    end
  end
  local text = ("What of the KV cache is kept: %s; options follow as key=value.%s"):format(
    table.concat(policy.list(), ", "), many and " Several may be given." or "")
  option(parser, "--policy", "NAME", text, { short = "-p", many = true }):action(collect(false))
  option(parser, "--policy-file", "FILE", cli.policy_file_help,
    { many = true }):action(collect(true))
end

---@param parser table
function cli.add_cache_dtype(parser)
  option(parser, "--cache-dtype", "DTYPE",
    ("How rows are stored: %s; or K and V apart, as k=q8_0,v=q4."):format(
      table.concat(caches.dtypes, ", ")), { default = "f16" }):convert(function(text)
    local format, message = caches.row_format(text)
    if format then return text end
    return nil, message
  end)
end

-- "hot=f16,warm=q4:64 MiB,cold=q2:1GiB@FILE": nil and what is wrong, or tiers.
local function tiers_of(text)
  local tiers = {}
  for part in text:gmatch "[^,]+" do
    local name, dtype, rest = part:match "^%s*(%a+)%s*=%s*([%w_]+)(.*)$"
    local size, file = (rest or ""):match "^:?([^@]*)@?(.*)$"
    local known = false
    for _, one in ipairs(caches.dtypes) do known = known or one == dtype end
    if not name or not ({ hot = true, warm = true, cold = true })[name] or not known
      or (rest ~= "" and not rest:find "^[:@]") then
      return nil, ("--tiers takes TIER=DTYPE[:SIZE][@FILE] for hot, warm and cold, with commas "
        .. "between, not '%s' (dtypes: %s)"):format(part, table.concat(caches.dtypes, ", "))
    end
    tiers[name] = { dtype = dtype, bytes = size ~= "" and size or nil,
      file = file ~= "" and file or nil }
  end
  return tiers
end

---@param parser table
function cli.add_tiers(parser)
  option(parser, "--tiers", "TIERS", "Where rows may lie, such as "
    .. "\"hot=f16,warm=q4,cold=q2:1GiB@FILE\": a policy's losers go there if it says so "
    .. "(--policy demote).")
    :convert(tiers_of)
  option(parser, "--pressure", "HOW", "Where --budget is full: fail, or demote the oldest rows.",
    { choices = { "fail", "demote" } })
end

---@param parser table
function cli.add_cache(parser)
  cli.add_cache_dtype(parser)
  cli.add_tiers(parser)
  option(parser, "--budget", "SIZE",
    "The most bytes that rows may take, such as \"64 MiB\"."):convert(function(size)
    local ok, value = pcall(options.bytes, "--budget", tonumber(size) or size)
    if ok then return value end
    return nil, options.without_place(value)
  end)
  option(parser, "--policy-seconds", "SECONDS",
    "How long a policy may think at a time (default: 10; 0: no limit).")
    :convert(function(text)
      local seconds = tonumber(text)
      if seconds and seconds >= 0 then return seconds end
      return nil, ("--policy-seconds must be a number from 0, not '%s'"):format(text)
    end)
end

---@param parser table
function cli.add_sessions(parser)
  option(parser, "--sessions", "DIR", "Keep what is read in this folder, and begin with what is "
    .. "there of a prompt. `pyramid sessions DIR` lists it.")
  option(parser, "--sessions-bytes", "SIZE", "The most that its files may take; what was used "
    .. "longest ago goes. (default: 4 GiB; 0: any)")
end

---The store of --sessions, opened once; nil where it was not given.
---@param args table
---@return pyramid.Sessions?
function cli.sessions(args)
  if args.sessions_bytes and not args.sessions then
    cli.fail("--sessions-bytes goes with --sessions", "Name the folder, too.")
  end
  if type(args.sessions) == "string" then
    args.sessions = cli.must(guarded(sessions.open, args.sessions,
      { bytes = tonumber(args.sessions_bytes) or args.sessions_bytes, warn = cli.warn }))
  end
  return args.sessions
end

---@param parser table
function cli.add_trace(parser)
  option(parser, "--trace", "FILE", "Write what each plan of a policy was and did: a line of JSON "
    .. "for each layer. `pyramid inspect --trace FILE` draws it.")
end

---@param parser table
---@param defaults? { temperature: number, top_p: number }  then the seed differs from run to run, too
function cli.add_sampler(parser, defaults)
  local temperature, top_p, seed = "0", "", "so runs repeat unless you change it. (default: 0)"
  if defaults then
    temperature, top_p = tostring(defaults.temperature), (" (default: %g)"):format(defaults.top_p)
    seed = "so runs repeat. (default: another one each time)"
  end
  option(parser, "--temperature", "X",
    "0: always the most probable token, and the next four options do nothing.",
      { short = "-t", default = temperature, number = true })
  option(parser, "--top-k", "K", "Picks only from the k most probable; 0: off.", { integer = 0 })
  option(parser, "--top-p", "P", "Only from the fewest that hold this much probability; 0: off."
    .. top_p, { number = true })
  option(parser, "--min-p", "P",
    "Only from those at least this many times as probable as the most probable; 0: off.",
      { number = true })
  option(parser, "--seed", "N",
    "The same seed picks the same tokens, " .. seed,
      { integer = 0 })
  option(parser, "--repeat-penalty", "X", "Makes what was said less probable; 1: off.",
    { number = true })
  option(parser, "--grammar", "FILE", "Writes only texts of this grammar (GBNF).")
  option(parser, "--schema", "FILE", "Writes only JSON of this JSON Schema.")
end

---@param parser table
---@param default integer
function cli.add_length(parser, default)
  option(parser, "--max-tokens", "N", "How many tokens at most; -1: up to the context's end.",
    { short = "-n", default = tostring(default) }):convert(function(given)
      local value = math.tointeger(tonumber(given))
      if value == -1 then return math.maxinteger end
      if value and value >= 0 then return value end
      return nil, ("option '--max-tokens' must be an integer of 0 or more, or -1, not '%s'"):format(
        given)
    end)
  option(parser, "--stop", "TEXT", "End before this text (\\n is a new line); may be repeated.",
    { many = true })
    :convert(function(given)
      if given ~= "" then return cli.unescape(given) end
      return nil, "option '--stop' must not be empty"
    end)
end

---@param parser table
function cli.add_speculation(parser)
  option(parser, "--speculate", "WHAT", "Guess what follows and verify several tokens at once: the "
    .. "same text, sooner. lookup: guesses come from the text so far; a model: a smaller one of "
    .. "the same vocabulary guesses.")
end

---A text with \n, \t, \r and \\ as people type them in a shell.
---@param text string
---@return string
function cli.unescape(text)
  return (text:gsub("\\([ntr\\])", { n = "\n", t = "\t", r = "\r", ["\\"] = "\\" }))
end

-- What the parser takes as one argument: `--policy NAME key=value key=value`, its words on lines;
-- an option and a negative number, which would look like an option of its own; `-n=5` as `-n5`.
-- What follows `--` is left alone.
local function join(words)
  local joined, at = {}, 1
  while at <= #words and words[at] ~= "--" do
    local word = words[at]
    local head, name = word:match "^(%-%-?[%w-]+)=(.*)$"
    if head ~= "--policy" and head ~= "--policy-file" and head ~= "-p" then head = nil end
    if word == "--policy" or word == "-p" or word == "--policy-file" then
      head, name, at = word, words[at + 1], at + 1
    end
    if head and name then
      while words[at + 1] and words[at + 1]:find "^[%a_][%w_]*=%S*$" do
        at, name = at + 1, name .. "\n" .. words[at + 1]
      end
      joined[#joined + 1], joined[#joined + 2] = head, name
    else
      local following = words[at + 1]
      if word:find "^%-%-?%a[%w-]*$" and following and following:find "^%-"
        and tonumber(following) then
        at, word = at + 1, word .. (word:find "^%-%-" and "=" or "") .. following
      end
      joined[#joined + 1] = word:gsub("^(%-%a)=", "%1")
    end
    at = at + 1
  end
  return table.move(words, at, #words, #joined + 1, joined)
end

---The parsed arguments.
---@param parser table
---@param words string[]
---@return table
function cli.parse(parser, words)
  if cli.on_parser then cli.on_parser(parser) end
  return parser:parse(join(words))
end

-- ---- from arguments to things -------------------------------------------------------------------

local exists = files.exists

---Where a model is: as it is named, in one of the folders that scripts and policies are found in,
---or among those that were fetched.
---@param path string
---@return string
function cli.find_model(path)
  if exists(path) or path:find "^/" then return path end
  for _, root in ipairs(require "pyramid.paths") do
    if exists(root .. "/" .. path) then return root .. "/" .. path end
  end
  return store.find(path) or path
end

-- Names of what was fetched, for a message.
local function fetched_names()
  local names = {}
  for i, entry in ipairs(store.list()) do names[i] = entry.name end
  return #names == 0 and "none so far" or table.concat(names, ", ", 1, math.min(#names, 12))
    .. (#names > 12 and ", …" or "")
end

---The same, or the end of the program.
---@param path string
---@param how? string  how a script is told its model: "--model PATH"
---@return string
function cli.need_model(path, how)
  local found = cli.find_model(path)
  if not exists(found) then
    cli.fail(("there is no model '%s'"):format(path), (path == cli.default_model
        and "The default model lies in Pyramid's repository: run this there, or set PYRAMID_PATH to its folder.\n" or "")
      .. ("Give %s: a Hugging Face folder (config.json, tokenizer.json, model.safetensors), a .gguf "
        .. "file,\nor a name that `pyramid models` lists (%s). `pyramid get` fetches: %s, "
        .. "ORG/REPO, or a URL."):format(how or "--model PATH", fetched_names(),
          table.concat(store.names(), ", ")))
  end
  return found
end

---A warning: a line on standard error.
---@param message string
function cli.warn(message)
  io.stdout:flush()
  picture.clear_progress()
  io.stderr:write(program, ": warning: ", safe(message), "\n")
end

---What a model's user should know, a line each.
---@param opened pyramid.Model|pyramid.Inspection
function cli.warn_of(opened)
  for _, message in ipairs(opened.warnings) do cli.warn(message) end
end

---Opens the model of --model, or the one that is named, with a bar while its weights are converted.
---@param args table
---@param name? string
---@return pyramid.Model
function cli.open_model(args, name)
  local path = cli.need_model(name or args.model)
  local progress <close> = picture.progress(args.weights and "converting weights"
    or "reading weights")
  local opened = cli.must(guarded(model.open, path,
    { weights = args.weights, device = args.device, threads = args.threads,
      precision = args.precision, context = args.max_context, scaling = args.scaling,
        map = not args.no_map, ranks = args.ranks, progress = progress.update }))
  if opened:ranks().rank > 0 then              -- of several ranks the first speaks
    progress:close()
    require "pyramid.probe".mute()
  end
  cli.warn_of(opened)
  return opened
end

---The same, for scripts that read or write text.
---@param args table
---@param name? string
---@return pyramid.Model
function cli.open_text_model(args, name)
  local opened = cli.open_model(args, name)
  if not opened.tokenizer then
    cli.fail(("the model '%s' has no tokenizer, and this script needs one"):format(name
      or args.model),
      "A Hugging Face folder has it in tokenizer.json, a .gguf file in its metadata.")
  end
  return opened
end

---What --speculate asks for, as generate takes it, and the draft model, which the caller closes.
---@param args table
---@return true|pyramid.SpeculateOptions|nil
---@return pyramid.Model?
function cli.speculation(args)
  local what = args.speculate
  if what == nil or what == "lookup" then return what and true end
  local draft = cli.open_text_model(args, what)
  return { draft = draft }, draft
end

---A policy from a text: its name or path, then key=value words, on lines or separated by spaces.
---@param text string
---@param file? boolean  the name is a path
---@return pyramid.Policy?
---@return string label  as the user wrote it; or what is wrong
---@return string? hint
function cli.find_policy(text, file)
  local words = {}
  -- Joined words are on lines. A text with spaces is split there, unless it is the path of a file.
  local pattern = (file or text:find "\n") and "[^\n]+" or "[^%s,]+"
  for word in text:gmatch(pattern) do words[#words + 1] = word end
  local name = table.remove(words, 1)
  if not name then
    return nil, "an empty policy name", "Known: " .. table.concat(policy.list(), ", ") .. "."
  end
  local found, message = policy.load(file and not name:find "[/\\]" and "./" .. name or name)
  if not found then return nil, message end
  local given, with
  given, message = policy.parse_options(found, words)
  if given then with, message = policy.load(found, given) end
  if not with then
    local stray = message:find("unknown option", 1, true) and text:find "\n"
    return nil, message, stray
      and "A prompt that looks like key=value goes before --policy or after --." or nil
  end
  return with, table.concat({ found.name, table.unpack(words) }, " ")
end

---The same, or the end of the program.
---@param text string
---@param file? boolean
---@return pyramid.Policy
---@return string label
function cli.policy(text, file)
  local found, label, hint = cli.find_policy(text, file)
  if not found then cli.fail(label, hint) end
  return found, label
end

---All policies of the arguments; `full` if there is none.
---@param args table
---@return { policy: pyramid.Policy, label: string }[]
function cli.policies(args)
  local list = {}
  for i, given in ipairs(args.policies or { { text = "full" } }) do
    local found, label = cli.policy(given.text, given.file)
    list[i] = { policy = found, label = label }
  end
  return list
end

---The one policy of the arguments.
---@param args table
---@return pyramid.Policy
---@return string label
function cli.one_policy(args)
  local list = cli.policies(args)
  if #list > 1 then cli.fail("more than one policy", "pyramid perplexity compares policies.") end
  return list[1].policy, list[1].label
end

---What --trace asks for: a cache's `trace`, which writes a line of JSON for each plan. nil where it
---was not given. All caches of a program write into the one file.
---@param args table
---@return (fun(record: pyramid.Trace))?
function cli.trace(args)
  if args.trace and not args.traced then
    local file, message = io.open(args.trace, "w")
    if not file then cli.fail(message, "Name a file that can be written behind --trace.") end
    args.traced = function(record)
      if not next(record.options or {}) then record.options = nil end
      local ok, why = file:write(json.encode(record), "\n")
      if not ok then error(("%s: %s"):format(args.trace, why), 0) end
    end
  end
  return args.traced
end

---Cache options out of the arguments.
---@param args table
---@param chosen? pyramid.Policy
---@return pyramid.CacheOptions
function cli.cache_options(args, chosen)
  local hot = args.tiers and args.tiers.hot
  return { policy = chosen, dtype = hot and hot.dtype or args.cache_dtype, budget = args.budget,
    policy_seconds = args.policy_seconds, tiers = args.tiers, pressure = args.pressure,
    trace = cli.trace(args), sessions = cli.sessions(args) }
end

---What the arguments say of sampling.
---@param args table
---@param defaults? { temperature: number, top_p: number }  as given to add_sampler
---@return pyramid.SamplerOptions
function cli.sampling(args, defaults)
  if args.temperature == 0 then
    local idle = {}
    for _, key in ipairs { "top_k", "top_p", "min_p", "seed" } do
      if args[key] then idle[#idle + 1] = "--" .. key:gsub("_", "-") end
    end
    if #idle > 0 then
      io.stderr:write(("%s: at temperature 0 the most probable token is always taken; ignored: "
        .. "%s (-t 0.8 would draw)\n")
        :format(program, table.concat(idle, ", ")))
    end
  end
  if args.grammar and args.schema then
    cli.fail("both --grammar and --schema", "Leave one out.")
  end
  local grammar = args.grammar and { file = args.grammar }
    or args.schema and { schema_file = args.schema } or nil
  return { grammar = grammar, temperature = args.temperature, top_k = args.top_k,
    top_p = args.top_p or defaults and defaults.top_p, min_p = args.min_p,
    repeat_penalty = args.repeat_penalty, seed = args.seed }
end

---The sampler that they ask for.
---@param args table
---@param defaults? { temperature: number, top_p: number }
---@return pyramid.Sampler
function cli.sampler(args, defaults)
  return cli.must(guarded(sampler, cli.sampling(args, defaults)))
end

---A file's bytes; "-" is standard input.
---@param path string
---@return string
function cli.read(path)
  if path == "-" then return io.read "a" end
  local file, message = io.open(path, "rb")
  local text
  if file then
    text, message = file:read "a"
    if not text then message = ("%s: %s"):format(path, message) end
    file:close()
  end
  return cli.must(text, message)
end

---A JSON file that is to be a list, whose objects keep the order of their keys.
---@param path string
---@return table
function cli.read_list(path)
  local list, message, code = json.decode(cli.read(path), { ordered = true })
  if message then cli.must(nil, ("%s: %s"):format(path, message), code) end
  if type(list) ~= "table" or json.keys(list) then
    cli.fail(path .. ": the JSON is no list", "A list begins with [.")
  end
  return list
end

---Options of what a chat format is told beside the messages.
---@param parser table
function cli.add_tools(parser)
  option(parser, "--tools", "FILE",
    "Functions that the model may call: a JSON list of their descriptions.")
  option(parser, "--thinking", "on|off", "For models that can be told whether to think first.",
    { choices = { "on", "off" } })
end

---What they say, as options of model:chat and model:conversation.
---@param args table
---@param into table
---@return table into
function cli.tools(args, into)
  into.tools = args.tools and cli.read_list(args.tools) or nil
  if args.thinking then into.thinking = args.thinking == "on" end
  return into
end

---A word as a shell takes it.
---@param word string
---@return string
function cli.quote(word)
  return word:find "^[%w%-_./+=,:]+$" and word or "'" .. word:gsub("'", "'\\''") .. "'"
end

---How this run was called, to be called so again.
---@param script string              "bench"
---@return string
function cli.command_line(script)
  local words = { "pyramid", script }
  for _, word in ipairs(arg) do words[#words + 1] = cli.quote(word) end
  return table.concat(words, " ")
end

---Writes a file whole, or ends the program. What is no file but a device or a pipe, such as
---/dev/stdout, is written to.
---@param path string
---@param text string
function cli.write(path, text)
  if files.kind(path) ~= "other" then return cli.must(files.write(path, text)) end
  local file <close>, message = io.open(path, "wb")
  if not file then cli.fail(message) end
  cli.must(file:write(text))
end

-- ---- what is said -------------------------------------------------------------------------------

---Bytes as people read them.
---@param n integer
---@return string
function cli.bytes(n)
  local units, i = { "B", "KiB", "MiB", "GiB", "TiB" }, 1
  while n >= 1024 and i < #units do n, i = n / 1024, i + 1 end
  return i == 1 and ("%d B"):format(n) or (n < 99.95 and "%.1f %s" or "%.0f %s"):format(n, units[i])
end

---A whole number in groups of three digits.
---@param n integer
---@return string
function cli.count(n)
  local text = ("%d"):format(n):reverse():gsub("(%d%d%d)", "%1 "):reverse()
  return (text:gsub("^ ", ""))
end

---How many a second; nothing happens in no time.
---@param count number
---@param seconds number
---@return number
function cli.rate(count, seconds) return seconds > 0 and count / seconds or 0 end

---A share as a percentage.
---@param share number
---@return string
function cli.percent(share) return ("%.1f %%"):format(share * 100) end

---Prints a value as JSON on one line.
---@param value any
function cli.json(value) print(json.encode(value)) end

---Rows of each layer, averaged over KV heads.
---@param cache pyramid.Cache
---@param config pyramid.Config
---@return number[]
function cli.layer_rows(cache, config)
  local rows = {}
  for layer = 1, config.layers do
    local sum = 0
    for head = 1, config.kv_heads do sum = sum + cache:rows(layer, head) end
    rows[layer] = sum / config.kv_heads
  end
  return rows
end

---How a model's matrices are multiplied, in a few words: "int8 by avx512int8, 2 threads".
---@param opened pyramid.Model
---@return string
function cli.products(opened)
  local runtime = opened:runtime()
  return ("%s by %s, %d threads"):format(opened.precision, runtime:isa(), runtime:threads())
end

---What a run was made with, for JSON.
---@param opened pyramid.Model
---@param chosen pyramid.Policy
---@return table
function cli.description(opened, chosen)
  local runtime = opened:runtime()
  return { model = opened.description, path = opened.path, device = runtime:isa(),
    precision = opened.precision, threads = runtime:threads(), policy = { name = chosen.name,
      options = next(chosen.options) and chosen.options or nil }, version = core.version }
end

return cli
