--- What a bench says: a table for the terminal, one in Markdown, and JSON.
local cases = require "pyramid.tools.bench.cases"
local cli = require "pyramid.tools.cli"
local json = require "pyramid.json"
local machine = require "pyramid.tools.bench.machine"
local options = require "pyramid.options"
local picture = require "pyramid.tools.picture"

local report = {}

local null = json.null

local function number(x)
  if x >= 9.95 then return ("%.0f"):format(x) end
  return (x >= 0.995 and "%.1f" or "%.2f"):format(x)
end

local function percent(share) return share and ("%.0f %%"):format(share * 100) or "" end
local function bytes(n) return n and cli.bytes(n) or "" end
local function times(x) return x and ("%.2f×"):format(x) or "" end

-- The operations that took longest, as shares of all that were timed.
local function where(profile)
  if not profile then return "" end
  local total, parts = 0, {}
  for _, entry in ipairs(profile) do total = total + entry.seconds end
  for i = 1, math.min(4, #profile) do
    local share = profile[i].seconds / total
    if share >= 0.01 then
      parts[#parts + 1] = ("%s %.0f %%"):format(profile[i].name, share * 100)
    end
  end
  return table.concat(parts, ", ")
end

-- ---- comparisons --------------------------------------------------------------------------------

local function same(a, b) return cases.name(a.case) == cases.name(b.case) end

---Sets in each result of Pyramid's how many times as fast it is as each other engine (`against`, by
---the engine's name), as the first policy with the same rows (`against_first`), and, beside a busy
---neighbour, as it is without (`against_quiet`): ratios of the same rounds.
---@param results pyramid.BenchResult[]
function report.compare(results)
  for _, result in ipairs(results) do
    result.against, result.against_first, result.against_quiet = {}, nil, nil
    for _, other in ipairs(result.engine == "pyramid" and results or {}) do
      local alike = same(result, other) and other.cache_dtype == result.cache_dtype
      if same(result, other) and other.engine ~= "pyramid" and not result.quiet then
        result.against[other.engine] = cases.ratio(result.seconds, other.seconds)
      elseif alike and not result.quiet and not other.quiet and not result.against_first then
        result.against_first = cases.ratio(result.seconds, other.seconds)
      elseif alike and result.quiet == other.label then
        result.against_quiet = cases.ratio(result.seconds, other.seconds)
      end
    end
  end
end

-- ---- columns ------------------------------------------------------------------------------------

local function ratio(r)
  if not r then return "" end
  if r.least == r.most then return times(r.median) end
  return ("%.2f× %.2f–%.2f"):format(r.median, r.least, r.most)
end

-- What a neighbour takes away: of a speed of 100, one of 55 has lost 45.
local function cost(r)
  return r and ("%.0f %% %.0f–%.0f"):format(100 - 100 * r.median, 100 - 100 * r.most,
    100 - 100 * r.least) or ""
end

-- The share of the limit, and the limit in those minutes.
local function of_limit(result)
  if not result.of_limit then return "" end
  local known = {}
  for _, ceiling in ipairs(result.ceilings or {}) do
    if ceiling then known[#known + 1] = ceiling end
  end
  local limit = #known > 0 and (" of %.0f"):format(cases.median(known) / 1e9) or ""
  return percent(result.of_limit) .. limit .. " " .. result.limit
end

-- A list of columns: heading, alignment, and what stands in it.
local function columns_of(results)
  local list = {
    { "case", "<", function(r) return cases.name(r.case) end },
    { "policy", "<", function(r) return r.label end },
    { "rows as", "<", function(r) return r.cache_dtype end },
    { "tok/s", ">", function(r) return number(r.rate) end },
    { "±", ">", function(r) return percent(r.spread) end },
    { "rounds", ">", function(r) return tostring(#r.seconds) end },
    { "of limit", ">", of_limit },
    { "vs first", ">", function(r) return ratio(r.against_first) end },
  }
  local seen = {}
  for _, result in ipairs(results) do
    if result.engine ~= "pyramid" and not seen[result.engine] then
      seen[result.engine] = true
      list[#list + 1] = { "vs " .. result.engine, ">",
        function(r) return ratio(r.against and r.against[result.engine]) end }
    end
  end
  for _, column in ipairs {
    { "neighbour costs", ">", function(r) return cost(r.against_quiet) end },
    { "first token", ">", function(r) return r.first and picture.seconds(r.first) or "" end },
    { "rows", ">", function(r) return percent(r.kept) end },
    { "computed", ">", function(r) return percent(r.computed) end },
    { "evicting", ">", function(r) return r.evicting and ("%.1f %%"):format(100 * r.evicting) or ""
    end },
    { "KV", ">", function(r) return bytes(r.kv_bytes) end },
    { "resident", ">", function(r) return bytes(r.peak_bytes) end },
    { "where time goes", "<", function(r) return where(r.profile) end },
  } do list[#list + 1] = column end
  return list
end

-- Columns that say the same of all where they say nothing.
local quiet_if_alike = { ["rows as"] = true, rounds = true }

-- Whether a column tells anything: not if it is empty, nor if it is one of those that may be alike.
local function telling(name, cells)
  for i = 2, #cells do
    if cells[i] ~= cells[1] then return true end
  end
  return cells[1] and cells[1] ~= "" and not quiet_if_alike[name]
end

-- Rows of the columns that tell something, the headings first, and how these are aligned.
-- `profiles`: with the last column, where time goes.
local function rows_of(results, profiles)
  local out, sides = { {} }, ""
  for i in ipairs(results) do out[i + 1] = {} end
  for _, column in ipairs(columns_of(results)) do
    local cells = {}
    for i, result in ipairs(results) do cells[i] = column[3](result) end
    if telling(column[1], cells) and (profiles or column[1] ~= "where time goes") then
      table.insert(out[1], column[1])
      for i, cell in ipairs(cells) do table.insert(out[i + 1], cell) end
      sides = sides .. column[2]
    end
  end
  return out, sides
end

local function left_out_line(entry)
  local what = {}
  if entry.case then what[1] = cases.name(entry.case) end
  what[#what + 1] = entry.label or entry.engine
  if entry.cache_dtype then what[#what + 1] = entry.cache_dtype .. " rows" end
  return ("left out: %s: %s"):format(#what > 0 and table.concat(what, ", ") or "the model",
    entry.reason)
end

---One line of what a machine can do.
---@param limits pyramid.Limits
---@return string
function report.limits(limits)
  local parts = {}
  local read = machine.most(limits.read)
  if read then parts[1] = ("reads %.1f GB/s"):format(read / 1e9) end
  for _, kind in ipairs { "f32", "bf16", "int8" } do
    local most = machine.most(limits[kind])
    parts[#parts + 1] = most and ("%s %.0f GFLOP/s"):format(kind, most / 1e9) or "no " .. kind
  end
  return table.concat(parts, ", ")
end

local function title(entry)
  return entry.parameters and ("%s: %.0f million weights, %s; %s"):format(entry.name,
    entry.parameters / 1e6, cli.bytes(entry.bytes), entry.products)
    or entry.name
end

local function loading(entry)
  if #entry.load_seconds == 0 then return nil end
  local parts = { ("loads in %s"):format(picture.seconds(entry.load_seconds[#entry.load_seconds])) }
  for _, name in ipairs(options.sorted_keys(entry.peer_load_seconds)) do
    parts[#parts + 1] = ("%s in %s"):format(name, picture.seconds(entry.peer_load_seconds[name]))
  end
  if entry.load_peak_bytes then
    parts[#parts + 1] = ("%s resident then"):format(cli.bytes(entry.load_peak_bytes))
  end
  return table.concat(parts, ", ")
end

local function print_where(pic, results)
  local rows, named = { { pic:paint("where time goes", "dim") } }, nil
  for _, result in ipairs(results) do
    if result.profile then
      local name = cases.name(result.case)
      rows[#rows + 1] = { name == named and "" or name, result.label, where(result.profile) }
      named = name
    end
  end
  if #rows > 1 then print(table.concat(picture.table(rows, "<"), "\n")) end
end

local function largest_line(found)
  local edge = found.fails and (", %d do not"):format(found.fails) or ", and more were not tried"
  return ("largest batch in %s: %s, %s rows: %d sequences%s%s"):format(cli.bytes(found.memory),
    found.label, found.cache_dtype, found.fits,
      found.rate and (" at %s tok/s, KV %s"):format(number(found.rate), cli.bytes(found.kv_bytes))
        or "", edge)
end

---Prints what came out for one model.
---@param entry table
function report.print(entry)
  local pic = picture.new(io.stdout)
  print(pic:paint(title(entry), "bold"))
  if #entry.limits.read > 0 then
    print(pic:paint("limits: " .. report.limits(entry.limits), "dim"))
  end
  if loading(entry) then print(pic:paint(loading(entry), "dim")) end
  if #entry.results > 0 then
    local rows, sides = rows_of(entry.results)
    for i, cell in ipairs(rows[1]) do rows[1][i] = pic:paint(cell, "dim") end
    for i = #rows, 3, -1 do
      if rows[i][1] == rows[i - 1][1] then rows[i][1] = "" end        -- a case is named once
    end
    print(table.concat(picture.table(rows, sides), "\n"))
    print_where(pic, entry.results)
  end
  for _, found in ipairs(entry.largest) do print(largest_line(found)) end
  for _, left in ipairs(entry.left_out) do print(pic:paint(left_out_line(left), "warn")) end
  print()
  io.stdout:flush()
end

-- How busy the machine was with other things; nil where nothing says so.
local function load_line(run)
  local before, after = run.load.before, run.load.after
  return before and ("load %.1f before, %.1f after"):format(before, after or before) or nil
end

-- Which engines were measured, and what their products are made of.
local function peer_lines(run)
  local lines = {}
  for i, peer in ipairs(run.peers) do
    lines[i] = ("%s: %s; kernels: %s"):format(peer.name, peer.version, peer.kernels or "not said")
  end
  return lines
end

---Prints what all of it was measured on.
---@param run table
function report.print_end(run)
  local pic = picture.new(io.stdout)
  print(pic:paint(("%s; %d threads; oneDNN %s; %s"):format(run.machine.cpu, run.threads,
    run.machine.onednn, load_line(run) or "load unknown"), "dim"))
  for _, line in ipairs(peer_lines(run)) do print(pic:paint(line, "dim")) end
  if (run.load.before or 0) > 0.5 then
    print(pic:paint("Other programs were running: these timings are not reliable.", "warn"))
  end
end

-- ---- Markdown -----------------------------------------------------------------------------------

local function machine_line(m)
  local parts = { m.cpu }
  if m.processors then parts[#parts + 1] = ("%d processors"):format(m.processors) end
  if m.l3 then parts[#parts + 1] = "L3 " .. m.l3 end
  if m.memory then parts[#parts + 1] = cli.bytes(math.floor(m.memory)) end
  return table.concat(parts, ", ")
end

---The report as Markdown: one table for all models.
---@param run table
---@return string
function report.markdown(run)
  local lines = {}
  local function add(...) lines[#lines + 1] = (...):format(select(2, ...)) end
  add("Machine: %s; %s.", machine_line(run.machine), table.concat(run.machine.flags, " "))
  if run.device then
    add("Device: %s, %s; driver %s, CUDA %s; %s.", run.device.name, run.device.arch,
      run.device.module or "not known", run.device.runtime,
        run.device.state or "its state is not known")
  end
  add("Pyramid %s%s, oneDNN %s; %d threads; medians of up to %d runs, ± half the distance of the "
    .. "extremes; ratios are of runs of one round, their median and range%s.", run.machine.pyramid,
      run.machine.commit and " (" .. run.machine.commit .. ")" or "", run.machine.onednn,
        run.threads, run.settings.repeats, load_line(run) and "; " .. load_line(run) or "")
  add ""
  for _, line in ipairs(peer_lines(run)) do add("- %s", line) end
  for _, entry in ipairs(run.models) do
    if entry.products then
      add("- %s%s; %s", title(entry), entry.note and "; " .. entry.note or "",
        report.limits(entry.limits))
    end
  end
  add("\n    %s\n", run.command)
  local all, names = {}, { "model" }
  for _, entry in ipairs(run.models) do
    for _, result in ipairs(entry.results) do
      all[#all + 1], names[#names + 1] = result, entry.name
    end
  end
  for i, row in ipairs((rows_of(all, true))) do
    lines[#lines + 1] = "| " .. names[i] .. " | " .. table.concat(row, " | ") .. " |"
    if i == 1 then lines[#lines + 1] = "|" .. (" --- |"):rep(#row + 1) end
  end
  for _, entry in ipairs(run.models) do
    for _, found in ipairs(entry.largest) do
      lines[#lines + 1] = ("\n%s, %s"):format(entry.name, largest_line(found))
    end
    for _, left in ipairs(entry.left_out) do
      lines[#lines + 1] = ("\n%s, %s"):format(entry.name, left_out_line(left))
    end
  end
  return table.concat(lines, "\n") .. "\n"
end

-- ---- JSON ---------------------------------------------------------------------------------------

-- Reports are kept and compared, so keys are sorted and each result has lines of its own.
local List = {}

local function list(values) return setmetatable(values, List) end

local function or_null(value)
  if value == nil then return null end
  return value
end

local function encode(value, indent)
  if type(value) == "number" then
    if math.type(value) == "integer" then return ("%d"):format(value) end
    return value == value and math.abs(value) < math.huge and ("%.9g"):format(value) or "null"
  end
  if type(value) ~= "table" then return json.encode(value) end
  local is_list, inner, parts, plain = getmetatable(value) == List, indent .. "  ", {}, true
  for _, v in pairs(value) do plain = plain and type(v) ~= "table" end
  if is_list then
    for i, v in ipairs(value) do parts[i] = encode(v, inner) end
  else
    for i, key in ipairs(options.sorted_keys(value)) do
      parts[i] = json.quote(key) .. ": " .. encode(value[key], inner)
    end
  end
  local first, last = is_list and "[" or "{", is_list and "]" or "}"
  if plain then return first .. table.concat(parts, ", ") .. last end
  return first .. "\n" .. inner .. table.concat(parts, ",\n" .. inner) .. "\n" .. indent .. last
end

local function limits_json(limits)
  local out = {}
  for kind, samples in pairs(limits) do
    out[kind] = { most = or_null(machine.most(samples)), samples = list(samples) }
  end
  return out
end

local function machine_json(m)
  local out = { flags = list(m.flags) }
  for _, key in ipairs { "cpu", "architecture", "processors", "cores_per_socket", "sockets",
    "threads_per_core", "l2", "l3", "hypervisor", "memory", "kernel", "pyramid", "commit",
      "onednn", "lua" } do
    out[key] = or_null(m[key])
  end
  return out
end

local function policy_json(policy)
  if not policy then return null end
  return { name = policy.name, options = next(policy.options) and policy.options or null }
end

-- What bounds the case, as it was around each run; null where it was not measured.
local function limits_of(result)
  local out = {}
  for i, ceiling in ipairs(result.ceilings or {}) do out[i] = ceiling or null end
  return out
end

local function result_json(result)
  return {
    case = result.case, name = cases.name(result.case), engine = result.engine,
      label = result.label,
    policy = policy_json(result.policy), flash_attention = or_null(result.flash),
      cache_dtype = result.cache_dtype,
    seconds = list(result.seconds), median_seconds = result.median, spread = result.spread,
      tokens_per_second = result.rate,
    first_token_seconds = or_null(result.first), limit = or_null(result.limit),
      of_limit = or_null(result.of_limit),
    against_first = or_null(result.against_first), against = result.against or {},
      against_quiet = or_null(result.against_quiet), limits = list(limits_of(result)),
      ways = result.ways and list(result.ways) or null,
      kv_bytes = or_null(result.kv_bytes),
    kept = or_null(result.kept), computed = or_null(result.computed),
      evicting = or_null(result.evicting),
    peak_bytes = or_null(result.peak_bytes),
    profile = result.profile and list(result.profile) or null,
  }
end

local function left_out_json(entry)
  return { case = or_null(entry.case), name = entry.case and cases.name(entry.case) or null,
    engine = or_null(entry.engine), label = or_null(entry.label),
      cache_dtype = or_null(entry.cache_dtype), reason = entry.reason }
end

local function map(values, f)
  local out = {}
  for i, value in ipairs(values) do out[i] = f(value) end
  return list(out)
end

local function largest_json(found)
  return { label = found.label, cache_dtype = found.cache_dtype, memory = found.memory,
    fits = found.fits, fails = or_null(found.fails), tokens_per_second = or_null(found.rate),
      kv_bytes = or_null(found.kv_bytes), runs = list(found.runs) }
end

local function model_json(entry)
  return {
    name = entry.name, path = entry.path, weights = entry.weights,
      description = or_null(entry.description),
    parameters = or_null(entry.parameters), bytes = or_null(entry.bytes),
      load_seconds = list(entry.load_seconds),
    load_peak_bytes = or_null(entry.load_peak_bytes),
      peer_load_seconds = entry.peer_load_seconds, products = or_null(entry.products),
      note = or_null(entry.note),
    limits = limits_json(entry.limits), results = map(entry.results, result_json),
      left_out = map(entry.left_out, left_out_json),
    largest = map(entry.largest, largest_json),
  }
end

---A value as JSON: keys sorted, an empty table an object, unless it is a list.
function report.encode(value) return encode(value, "") .. "\n" end

---Marks a sequence as one, so that it is an array even if it is empty.
report.list = list

---The report as JSON. What does not apply is null, and nothing is missing.
---@param run table
---@return string
function report.json(run)
  return encode({
    command = run.command, date = run.date, seconds = run.seconds,
      machine = machine_json(run.machine), threads = run.threads,
    load = run.load, settings = run.settings, limits = limits_json(run.limits),
      peers = list(run.peers),
    models = map(run.models, model_json), device = or_null(run.device),
  }, "") .. "\n"
end

return report
