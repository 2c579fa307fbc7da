-- JSON of other people's files: decoded by pyramid.json, and read through functions that name file
-- and field when a value is missing or of the wrong type. JSON's null is kept apart from absence
-- (json.null).
--
-- Configurations come from Python, whose json module writes a float that is no number as `NaN`,
-- `Infinity` or `-Infinity`. These three words are read; a field that wants a number refuses them
-- by its name, so that one nobody asks for ("time_step_limit": [0.0, Infinity]) does no harm.

local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local reader = require "pyramid.json"

local json = { null = reader.null }

local python = { nonfinite = true }

--- Decodes an object, as Python would; raises faults that name `what` (a file).
---@param text string
---@param what string
---@param strict? boolean  JSON alone: for formats that Python's json module does not write
---@return table
function json.decode(text, what, strict)
  local value, message = reader.decode(text, not strict and python or nil)
  if value == nil then
    fault.raise("format", "%s: not valid JSON: %s", what, fault.quote(message))
  end
  if type(value) ~= "table" or text:find("^[ \t\r\n]*%[") then
    fault.raise("format", "%s: not a JSON object", what)
  end
  return value
end

--- Reads a whole file of at most `limit` bytes.
---@return string
function json.read(path, limit) return fault.check(files.read(path, limit)) end

local MISSING = {}

--- The value of a field, which must be of a type: "integer", "number" (a finite one), "string",
--- "boolean", "table". Absent or null fields give `default`; without one they are a fault.
---@param object table
---@param key string
---@param kind string
---@param what string file, for messages
---@param default any
function json.field(object, key, kind, what, default)
  local value = object[key]
  if value == nil or value == json.null then
    if default == MISSING then fault.raise("format", "%s: %s is missing", what, key) end
    return default
  end
  if kind == "integer" then
    local integer = math.type(value) and math.tointeger(value)
    if not integer then fault.raise("format", "%s: %s is not an integer", what, key) end
    return integer
  end
  if type(value) ~= kind then fault.raise("format", "%s: %s is not a %s", what, key, kind) end
  if kind == "number" and not (value > -math.huge and value < math.huge) then
    fault.raise("format", "%s: %s is %s, where a finite number is wanted", what, key,
      value ~= value and "NaN" or value > 0 and "Infinity" or "-Infinity")
  end
  return value
end

--- As `field`, but the field must be there.
function json.required(object, key, kind, what)
  return json.field(object, key, kind, what, MISSING)
end

return json
