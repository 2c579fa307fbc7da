--- Jinja, as far as chat templates use it: the language that models carry their prompt formats in.
---
---   local jinja = require "pyramid.jinja"
---   local template = assert(jinja.compile "{% for m in messages %}{{ m.role }}: {{ m.content
---   }}\n{% endfor %}")
---   local prompt = assert(template:render { messages = { { role = "user", content = "Hello" } } })
---
--- It renders what jinja2 does as transformers sets it up (trim_blocks, lstrip_blocks, loop
--- controls, an immutable sandbox; tojson, raise_exception and strftime_now are transformers' own),
--- or refuses by name what it does not know. Not there: other templates (include, import, extends),
--- translations, line statements, and letter case beyond ASCII.
---
--- A template comes with a model, so it is a stranger: its work, memory and depth are bounded
--- (evaluate.lua says by how much), it reaches nothing outside of its variables, and whatever it
--- does the answer is a text or nil, message, code.
---
--- Rooms: lexer and parser make the tree, evaluate walks it; values, text, methods and filters are
--- what Python and Jinja bring along. https://jinja.palletsprojects.com/en/stable/templates/ is the
--- language's own page.
local core = require "pyramid.core"
local evaluate = require "pyramid.jinja.evaluate"
local fault = require "pyramid.jinja.fault"
local parser = require "pyramid.jinja.parser"
local values = require "pyramid.jinja.values"

local jinja = {}

--- Python's None, for variables; JSON's null is it as well.
jinja.none = values.none

--- A template's text; the longest published ones have some 50 KB.
local TEXT <const> = 256 << 10

---@class pyramid.jinja.Template
local Template = {}
Template.__index = Template

-- Runs a function that may raise faults. What else it raises is a mistake of ours, and still no
-- reason to end a host.
local function protected(what, run, ...)
  local ok, result = pcall(run, ...)
  if ok then return result end
  if fault.is(result) then
    return nil, ("%s: %s"):format(what, fault.message(result)), result.code
  end
  -- not Lua's, nor ours: what a hook raised to end it all
  if type(result) ~= "string" then error(result, 0) end
  if result:find("stack overflow", 1, true) then result = "nested too deeply" end
  local code = result == "not enough memory" and "memory" or "unsupported"
  return nil, ("%s: cannot be rendered: %s"):format(what, result), code
end

---Reads a template's text.
---@param source string
---@param what? string   names it in messages; "template" otherwise
---@return pyramid.jinja.Template?
---@return string? message
---@return "format"|"unsupported"|nil code
function jinja.compile(source, what)
  local _ <close> = core.plain_locale()
  if type(source) ~= "string" then error("jinja.compile: a text is wanted", 2) end
  what = what or "template"
  if #source > TEXT then
    return nil, ("%s: longer than %d bytes"):format(what, TEXT), "unsupported"
  end
  local body, message, code = protected(what, parser.parse, source)
  if not body then return nil, message, code end
  return setmetatable({ body = body, what = what }, Template)
end

---Renders a template. Variables are texts, numbers, booleans, sequences and tables by text; the
---keys of a table that is printed stand in the order that messages and tools usually have. An empty
---table is a sequence.
---@param variables table<string, any>
---@param now? table   the time, as os.date("*t") makes it; the present otherwise
---@return string?
---@return string? message
---@return "argument"|"unsupported"|nil code   "argument": the template refuses these variables
function Template:render(variables, now)
  if type(variables) ~= "table" then error("template:render: a table of variables is wanted", 2) end
  return protected(self.what, evaluate.render, self.body, variables, now or os.date "*t")
end

return jinja
