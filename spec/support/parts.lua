-- parts.run(given): each spec file in a process of its own, several at once, and what they record
-- as one record (spec/support/report.lua). A file that leaves no record (it crashed, it exited, it
-- ran out of time) counts as one failure that names it, with the end of what it printed; all others
-- are still run.
--
-- The queue is xargs: whoever is free takes the next file. Its lines say who is done:
--
--   first.txt  ──►  xargs -P 2  ──►  run.lua ops/attention  │  run.lua core/cache, run.lua api/…
--   last.txt   ──►  xargs -P 1  ──►  run.lua core/guard
--
-- FOLDER/NAME.txt has what a file's process printed, .json what it recorded, .status how it ended.
local cjson = require "cjson"
local core = require "pyramid.core"
local shell = require "spec.support.shell"

local parts = {}

-- The files that take longest begin first, so that none of them is left alone at the end; the times
-- are those of a machine with two processors. Then come the others as they are sorted.
parts.LONGEST = { "ranks/machines_spec", "tools/readme_spec", "core/device_spec",
  "ops/attention_spec", "policies/matrix_spec", "tools/recall_spec", "tools/report_spec",
  "api/embedding_spec", "api/serve_page_spec", "text/jinja_spec", "core/evict_spec",
  "api/hosts_spec" }

-- What measures the time that passes, not what a process takes of it, wants the machine to itself:
-- these run one by one, when all others have ended.
parts.ALONE = { "core/guard_spec" }

--- The same files in the order in which they are to begin, and those of them that run alone.
---@param files string[]  as spec/support/files.lua has them
---@return string[] first, string[] alone
function parts.order(files)
  local first, alone, left = {}, {}, {}
  for _, name in ipairs(files) do left[name] = true end
  local function take(from, to)
    for _, name in ipairs(from) do
      if left[name] then to[#to + 1], left[name] = name, nil end
    end
  end
  take(parts.ALONE, alone)
  take(parts.LONGEST, first)
  take(files, first)
  return first, alone
end

-- One file, as xargs starts it: $1 is the folder, $2 the file, the rest the command. A status of
-- 255 would end xargs, so it is written down instead.
local EACH = 'folder=$1 name=$2; shift 2; '
  .. '"$@" "--record=$folder/$name.json" "spec/$name.lua" >"$folder/$name.txt" 2>&1 </dev/null; '
  .. 'echo $? >"$folder/$name.status"; echo "$name"'

local function read(path)
  local file = io.open(path, "rb")
  local text = file and file:read "a"
  if file then file:close() end
  return text
end

local function how(status, limit)
  if status == 124 and limit then return ("more than %d s"):format(limit) end
  if status and status > 128 then return ("ended by signal %d"):format(status - 128) end
  return ("ended with status %s"):format(status or "unknown")
end

-- What a file recorded, with one failure more where its end is none of a run whose specs passed.
local function part_of(folder, name, limit)
  local path = folder .. "/" .. name
  local status = tonumber((read(path .. ".status") or ""):match "%d+")
  local text = read(path .. ".txt") or ""
  local ok, part = pcall(cjson.decode, read(path .. ".json") or "")
  if not ok then
    part = { passed = 0, failed = 0, pending = 0, failures = {}, pendings = {},
      files = { { name = name, passed = 0, failed = 0, pending = 0 } } }
  end
  if not ok or (status ~= 0 and part.failed == 0) then
    part.failed, part.files[1].failed = part.failed + 1, part.files[1].failed + 1
    part.failures[1] = ("%s: %s\n%s"):format(name, how(status, limit), text:sub(-600))
  end
  part.name, part.text = name, text
  return part
end

--- Prints what is pending, what failed and why, and alone on a line how many there are of each.
---@param record table
function parts.finish(record)
  for _, text in ipairs(record.pendings) do io.write("pending: ", text, "\n") end
  for _, text in ipairs(record.failures) do io.write("\nFAILED  ", text, "\n") end
  io.write(("\n%d passed, %d failed%s\n"):format(record.passed, record.failed,
    record.pending > 0 and (", %d pending"):format(record.pending) or ""))
end

--- Runs the files. Returns the record of all: passed, failed, pending, files, failures, pendings,
--- those of the files in their order.
---@param given { first: string[], alone: string[]?, folder: string, jobs: integer, limit: integer?, options: string[]?, done: fun(part: table) }
---`folder` is emptied; `limit` is in seconds, of a file; `done` is told of each file as it ends
---@return table
function parts.run(given)
  local folder, alone = given.folder, given.alone or {}
  local all = table.move(alone, 1, #alone, #given.first + 1, table.move(given.first, 1,
    #given.first, 1, {}))
  local quoted, rooms, ended = shell.quote(folder), { folder }, {}
  for i, name in ipairs(all) do rooms[i + 1] = folder .. "/" .. name:match "^(.*)/" end
  for i, room in ipairs(rooms) do rooms[i] = shell.quote(room) end
  assert(os.execute(("rm -rf %s && mkdir -p %s"):format(quoted, table.concat(rooms, " "))))

  local command = { given.limit and "timeout " .. given.limit or "", shell.quote(shell.program),
    "spec/run.lua", "--part" }
  for _, option in ipairs(given.options or {}) do command[#command + 1] = shell.quote(option) end
  for queue, names in pairs { first = given.first, alone = alone } do
    local list <close> = assert(io.open(("%s/%s.list"):format(folder, queue), "w"))
    assert(list:write(table.concat(names, "\n"), #names > 0 and "\n" or ""))
  end
  for _, queue in ipairs { "first", "alone" } do
    local line = ("xargs -P %d -I{name} sh -c %s sh %s {name} %s <%s/%s.list"):format(
      queue == "first" and given.jobs or 1, shell.quote(EACH), quoted,
      table.concat(command, " "), quoted, queue)
    local names <close> = assert(io.popen(line))
    for name in names:lines() do
      ended[name] = part_of(folder, name, given.limit)
      given.done(ended[name])
    end
  end

  local record = { passed = 0, failed = 0, pending = 0, files = {}, failures = {}, pendings = {} }
  for _, name in ipairs(all) do
    local part = ended[name] or part_of(folder, name, given.limit)
    for _, key in ipairs { "passed", "failed", "pending" } do
      record[key] = record[key] + part[key]
    end
    for _, key in ipairs { "files", "failures", "pendings" } do
      table.move(part[key], 1, #part[key], #record[key] + 1, record[key])
    end
  end
  return record
end

--- What run.lua does with several files: runs them, prints a line for each in the order in which
--- they began, then the end. Returns whether all passed.
---@param given { files: string[], jobs: integer, options: string[], record: string? }
---@return boolean
function parts.main(given)
  local first, alone = parts.order(given.files)
  local order = table.move(alone, 1, #alone, #first + 1, table.move(first, 1, #first, 1, {}))
  local folder, columns = shell.folder(), core.terminal(io.stdout) or 0
  local ended, count, printed = {}, 0, 0
  local record = parts.run { first = first, alone = alone, folder = folder, jobs = given.jobs,
    options = given.options, done = function(part)
    ended[part.name], count = part.text, count + 1
    if columns > 0 then io.write "\r\27[K" end
    while ended[order[printed + 1]] do
      printed = printed + 1
      local text = ended[order[printed]]
      io.write(text, text:find "\n$" and "" or "\n")
    end
    if columns > 0 then io.write(("%d of %d files"):format(count, #order)) end
    io.flush()
  end }
  shell.remove(folder)
  if columns > 0 then io.write "\r\27[K" end
  parts.finish(record)
  if given.record then
    local out <close> = assert(io.open(given.record, "w"))
    record.device = core.default_device()
    assert(out:write(cjson.encode(record), "\n"))
  end
  return record.failed == 0
end

return parts
