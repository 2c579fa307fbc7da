--- Results of long measurements: a file of JSON lines that grows as they come, so that a run that
--- was ended goes on.
---
--- Each line is one object with `format`, which says whose results these are, and a `key`, which
--- says what was measured under which circumstances. A line that was cut off by the end of a run is
--- measured again; anything else that does not belong there is refused, so that no other file is
--- ever written into.
---
--- Shards: workers of one run that share a folder. Worker 2 of 8 adds to "results.2-of-8.jsonl"
--- what falls to it by its key, and whoever opens "results.jsonl" later has what all of them have
--- added.
local core = require "pyramid.core"
local files = require "pyramid.files"
local json = require "pyramid.json"
local transfer = require "pyramid.tools.get.transfer"

local results = {}

---@class pyramid.Results
---@field path string
---@field count integer                  results in the file
---@field package records table<string, table>
---@field package format string
---@field package shard { index: integer, count: integer }?
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

-- What others of the same run have added: workers, and to a worker whoever joined them before. A
-- last line that one is writing, or was when it ended, is left to it.
local function read_shards(self, path)
  local folder, stem = path:match "^(.-)([^/]+)%.jsonl$"
  if not stem then return true end
  folder = folder == "" and "./" or folder
  local pipe <close> = assert(io.popen(("LC_ALL=C ls -- %s 2>/dev/null"):format(
    transfer.quote(folder))))
  for name in pipe:lines() do
    local rest = name:sub(1, #stem) == stem and name:sub(#stem + 1) or ""
    local other = folder .. name
    if (rest == ".jsonl" or rest:find "^%.%d+%-of%-%d+%.jsonl$")
      and name ~= self.path:match "[^/]+$" then
      local text, message = read(other)
      if not text then return nil, message, "io" end
      for line in text:gmatch "([^\n]*)\n" do
        local record = decode(line)
        if not record or record.format ~= self.format or type(record.key) ~= "string" then
          return nil, ("%s: not results of %s"):format(other, self.format), "format"
        end
        if not self.records[record.key] then self.count = self.count + 1 end
        self.records[record.key] = self.records[record.key] or record
      end
    end
  end
  return true
end

---Opens a file of results, which need not be there yet; with those that shards have added beside
---it. A shard has a file of its own.
---@param path string
---@param format string
---@param shard? { index: integer, count: integer }
---@param silent? boolean        nothing is written: another process of the run does
---@return pyramid.Results?
---@return string? message
---@return string? code
function results.open(path, format, shard, silent)
  local _ <close> = core.plain_locale()
  local whole_path = path
  if shard then
    path = path:gsub("%.jsonl$", "") .. (".%d-of-%d.jsonl"):format(shard.index, shard.count)
  end
  local text, message = read(path)
  if not text then return nil, message, "io" end
  local self = setmetatable({ path = path, format = format, records = {}, count = 0,
    shard = shard }, Results)
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
  if whole < #text and not silent then
    local ok
    ok, message = files.write(path, text:sub(1, whole))
    if not ok then return nil, message, "io" end
  end
  local done, why, code = read_shards(self, whole_path)
  if not done then return nil, why, code end
  if silent then return self end
  self.file, message = io.open(path, "ab")
  if not self.file then return nil, message, "io" end
  return self
end

---Whether what a key stands for is this worker's to measure: of everything, where there is one.
---@param key string
---@return boolean
function Results:mine(key)
  local shard = self.shard
  if not shard then return true end
  return tonumber(results.hash(key):sub(-8), 16) % shard.count == shard.index - 1
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
  local ok, message = true, nil
  if self.file then ok, message = self.file:write(line, "\n") end
  if ok and self.file then ok, message = self.file:flush() end
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
