-- What `make test` prints: a line for each spec file, what failed and why, and at the end, alone on a line,
-- "N passed, N failed".
local busted = require "busted"
local base = require "busted.outputHandlers.base"
local now = require "system".monotime

return function(options)
  local handler = base()
  local passed, failed, skipped = 0, 0, 0
  local before   -- the same when the current file began
  local failures, pendings = {}, {}

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

  local function file_start(file)
    before = { passed = passed, failed = failed, skipped = skipped, time = now() }
    io.write(("%-36s "):format(file.name:match("([^/]*)%.lua$") or file.name))
    io.flush()
    return nil, true
  end

  local function file_end()
    local extra = failed > before.failed and (", %d FAILED"):format(failed - before.failed) or ""
    if skipped > before.skipped then extra = extra .. (", %d skipped"):format(skipped - before.skipped) end
    io.write(("%4d passed%s  (%.1f s)\n"):format(passed - before.passed, extra, now() - before.time))
    return nil, true
  end

  local function test_end(element, _, status)
    if status == "success" then
      passed = passed + 1
    elseif status == "pending" then
      skipped = skipped + 1
      pendings[#pendings + 1] = handler.getFullName(element)
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
    for _, text in ipairs(pendings) do io.write("skipped: ", text, "\n") end
    for _, text in ipairs(failures) do io.write("\nFAILED  ", text, "\n") end
    io.write(("\n%d passed, %d failed\n"):format(passed, failed))
    return nil, true
  end

  busted.subscribe({ "file", "start" }, file_start)
  busted.subscribe({ "file", "end" }, file_end)
  busted.subscribe({ "test", "end" }, test_end, { predicate = handler.cancelOnPending })
  busted.subscribe({ "failure" }, failure)
  busted.subscribe({ "error" }, failure)
  busted.subscribe({ "suite", "end" }, suite_end)
  return handler
end
