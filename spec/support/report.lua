-- What `make test` prints: a line for each spec file, what failed and why, and at the end, alone on
-- a line, "N passed, N failed" or "N passed, N failed, N pending". `-Xoutput FILE` has it as JSON,
-- too; with `-Xoutput part` behind it only the file's line is printed: spec/support/parts.lua has
-- the rest from there.
local busted = require "busted"
local base = require "busted.outputHandlers.base"
local cjson = require "cjson"
local core = require "pyramid.core"
local parts = require "spec.support.parts"
local now = require "system".monotime

return function(options)
  local handler = base()
  local passed, failed, skipped = 0, 0, 0
  local before   -- the same when the current file began
  local failures, pendings, files = {}, {}, {}
  local path, part = table.unpack(options.arguments or {})

  local function describe(element, message, trace)
    if type(message) == "table" and message.message then message = message.message end
    local where = trace or element.trace
    local lines = { handler.getFullName(element) }
    if where and where.short_src then
      lines[1] = ("%s:%d: %s"):format(where.short_src, where.currentline or 0, lines[1])
    end
    lines[2] = tostring(message or "")
    if options.verbose and where and where.traceback then lines[3] = where.traceback end
    return table.concat(lines, "\n"):gsub("\n", "\n    ")
  end

  local function name_of(file)
    return file.name:match "^spec/(.*)%.lua$" or file.name:match "([^/]*)%.lua$" or file.name
  end

  local function file_start(file)
    before = { passed = passed, failed = failed, skipped = skipped, time = now() }
    io.write(("%-36s "):format(name_of(file)))
    io.flush()
    return nil, true
  end

  local function file_end(file)
    files[#files + 1] = { name = name_of(file), passed = passed - before.passed,
      failed = failed - before.failed, pending = skipped - before.skipped,
        seconds = now() - before.time }
    local extra = failed > before.failed and (", %d FAILED"):format(failed - before.failed) or ""
    if skipped > before.skipped then
      extra = extra .. (", %d pending"):format(skipped - before.skipped)
    end
    io.write(("%4d passed%s  (%.1f s)\n"):format(passed - before.passed, extra,
      now() - before.time))
    return nil, true
  end

  local reasons = {}     -- element -> why it is pending, where its name does not say so

  local function test_end(element, _, status)
    if status == "success" then
      passed = passed + 1
    elseif status == "pending" then
      skipped = skipped + 1
      pendings[#pendings + 1] = handler.getFullName(element) .. (reasons[element] or "")
    end
    return nil, true
  end

  local function pending(element, _, message)
    if message then
      reasons[element] = (" (%s)"):format(type(message) == "table" and message.message or message)
    end
    return nil, true
  end

  -- also of what is no test: a file that does not load, a set-up that raises
  local function failure(element, _, message, trace)
    failed = failed + 1
    failures[#failures + 1] = describe(element, message, trace)
    return nil, true
  end

  local function suite_end()
    local record = { device = core.default_device(), passed = passed, failed = failed,
      pending = skipped, files = files, failures = failures, pendings = pendings }
    if not part then parts.finish(record) end
    if path then
      local out <close> = assert(io.open(path, "w"))
      assert(out:write(cjson.encode(record), "\n"))
    end
    return nil, true
  end

  busted.subscribe({ "file", "start" }, file_start)
  busted.subscribe({ "file", "end" }, file_end)
  busted.subscribe({ "test", "end" }, test_end, { predicate = handler.cancelOnPending })
  busted.subscribe({ "pending" }, pending)
  busted.subscribe({ "failure" }, failure)
  busted.subscribe({ "error" }, failure)
  busted.subscribe({ "suite", "end" }, suite_end)
  return handler
end
