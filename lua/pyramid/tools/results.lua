--- Results of long measurements: a file of JSON lines that grows as they come, so that a run that
--- was ended goes on.
---
--- Each line is one object with `format`, which says whose results these are, and a `key`, which
--- says what was measured under which circumstances. A line that was cut off by the end of a run is
--- measured again; anything else that does not belong there is refused, so that no other file is
--- ever written into.
local core = require "pyramid.core"
local files = require "pyramid.files"
local json = require "pyramid.json"

local results = {}

---@class pyramid.Results
---@field path string
---@field count integer                  results in the file
---@field package records table<string, table>
---@field package format string
local Results = {}
Results.__index = Results
Results.__name = "pyramid.tools.results"

local function decode(line)
  local value = json.decode(line)
  return type(value) == "table" and value or nil
end

local function read(path)
  if not files.exists(path) then return "" end
  local file <close>, size = files.open(path)
  if not file then return nil, size end
  local text, message = file:read "a"
  if not text then return nil, ("%s: %s"):format(path, message) end
  return text
end

---Opens a file of results, which need not be there yet.
---@param path string
---@param format string
---@return pyramid.Results?
---@return string? message
---@return string? code
function results.open(path, format)
  local _ <close> = core.plain_locale()
  local text, message = read(path)
  if not text then return nil, message, "io" end
  local self = setmetatable({ path = path, format = format, records = {}, count = 0 }, Results)
  local whole, number = 0, 0
  while true do  -- each byte once, however long a last line without an end is
    local at = text:find("\n", whole + 1, true)
    if not at then break end
    local record = decode(text:sub(whole + 1, at - 1))
    number, whole = number + 1, at
    if not record then
      return nil, ("%s, line %d: no JSON object"):format(path, number), "format"
    end
    if record.format ~= format or type(record.key) ~= "string" then
      return nil, ("%s, line %d: not a result of %s"):format(path, number, format), "format"
    end
    if not self.records[record.key] then self.count = self.count + 1 end
    self.records[record.key] = record
  end
  -- What follows the last new line was being written when a run ended; but a file of one line may
  -- be somebody else's.
  if whole < #text and whole == 0 and not text:find(('"format":"%s"'):format(format), 1, true) then
    return nil, ("%s, line 1: not a result of %s"):format(path, format), "format"
  end
  if whole < #text then
    local ok
    ok, message = files.write(path, text:sub(1, whole))
    if not ok then return nil, message, "io" end
  end
  self.file, message = io.open(path, "ab")
  if not self.file then return nil, message, "io" end
  return self
end

---The result of a key, if it is there.
---@param key string
---@return table?
function Results:get(key) return self.records[key] end

---Adds a result. It is on its way to the disk when this returns.
---@param key string
---@param record table
---@return true?
---@return string? message
---@return string? code
function Results:add(key, record)
  record.format, record.key = self.format, key
  local line = json.encode(record)
  local ok, message = self.file:write(line, "\n")
  if ok then ok, message = self.file:flush() end
  if not ok then return nil, ("%s: %s"):format(self.path, message), "io" end
  if not self.records[key] then self.count = self.count + 1 end
  self.records[key] = decode(line)         -- as a later run will read it, to the last digit
  return true
end

---Closes the file.
function Results:close()
  if self.file then self.file:close() end
  self.file = nil
end

Results.__close = Results.close

---A short name of texts that differ: FNV-1a of 64 bits, in hexadecimal.
---@param ... string
---@return string
function results.hash(...)
  local h = 0xcbf29ce484222325
  for _, text in ipairs { ... } do
    for i = 1, #text do h = (h ~ text:byte(i)) * 0x100000001b3 end
    h = (h ~ 0xff) * 0x100000001b3         -- no byte of UTF-8: "ab", "c" is not "a", "bc"
  end
  return ("%016x"):format(h)
end

return results
