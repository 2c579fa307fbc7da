--- Faults of templates: what is raised inside the engine and caught at its border (init.lua), never
--- beyond.
---
---   "format"       the template's text is malformed
---   "unsupported"  it uses what this engine does not know, or passes a limit; the message names it
---   "argument"     it refuses these messages (raise_exception), or cannot be carried out on them
local fault = {}

local Fault = { __name = "pyramid.jinja.fault" }

---@param code "format"|"unsupported"|"argument"
---@param line integer?
---@param text string
function fault.raise(code, line, text, ...)
  if select("#", ...) > 0 then text = text:format(...) end
  error(setmetatable({ code = code, line = line, text = text }, Fault), 0)
end

function fault.is(value) return getmetatable(value) == Fault end

--- The message of a fault, with the line it happened at.
function fault.message(value)
  return value.line and ("line %d: %s"):format(value.line, value.text) or value.text
end

return fault
