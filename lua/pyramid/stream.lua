--- Texts of any length as ids, block by block: what cache:read reads by.
---
--- A text is encoded piece by piece, and the pieces' ids are those of the whole text: it is cut
--- only where encoding what stands around the place, at once and in two, gives the same ids. Such
--- places lie before most words, and between most characters of scripts without blanks. Where none
--- of some tries is one (a tokenizer that puts a blank before every text), it is cut before a word
--- all the same: then a piece, of 8 KiB, may begin with another id than it would within the text. A
--- character is never cut, whatever the pieces in which it comes.
local stream = {}

local PIECE = 8 << 10      -- bytes that are encoded at a time
local AROUND = 96          -- bytes on either side of a place that are encoded to try it
local TRIES = 24
local READ = 64 << 10      -- bytes that are read of a file at a time

-- Where a character begins at or before `at`, if one does: continuing bytes are 10xxxxxx.
local function character(text, at)
  while at > 1 and text:byte(at) and text:byte(at) & 0xc0 == 0x80 do at = at - 1 end
  return at
end

local function same(one, two, all)
  if #one + #two ~= #all then return false end
  for i, id in ipairs(all) do
    if id ~= (one[i] or two[i - #one]) then return false end
  end
  return true
end

-- Whether the ids before `at` and from it on are those of both together.
local function is_free(self, text, at)
  local first, last = character(text, math.max(at - AROUND, 1)),
    character(text, math.min(at + AROUND, #text + 1)) - 1
  local one, two = self.encode(text:sub(first, at - 1)), self.encode(text:sub(at, last))
  local all = self.encode(text:sub(first, last))
  return one and two and all and same(one, two, all)
end

-- The place before which a text is cut: the last free one before a word, then the last free one
-- between characters, then before a word, free or not.
local function place(self, text, most)
  local at, word, tries = most, nil, 0
  while at > PIECE // 2 and tries < TRIES do
    local found
    for back = at, PIECE // 2, -1 do
      if text:find("^%s[%w\x80-\xff]", back) and text:find("^%S", back - 1) then
        found = back
        break
      end
    end
    if not found then break end
    if is_free(self, text, found) then return found end
    word, at, tries = word or found, found - 1, tries + 1
  end
  at = character(text, most)
  for _ = 1, TRIES do
    if at <= PIECE // 2 then break end
    if is_free(self, text, at) then return at end
    at = character(text, at - 1)
  end
  return word or character(text, most)
end

---@class pyramid.StreamReader
---@field encode fun(text: string, begins?: boolean): integer[]?, string?, string?
local Reader = {}
Reader.__index = Reader

-- Texts and ids out of whatever gives them.
local function source_of(given)
  if io.type(given) == "file" then
    return function()
      local text, message = given:read(READ)
      if not text and message then return nil, message, "io" end
      return text
    end
  end
  if type(given) == "string" or type(given) == "table" then
    local waiting = given
    return function()
      local now = waiting
      waiting = nil
      return now
    end
  end
  if type(given) == "function" then return given end
  local class = getmetatable(given)
  if class and class.__call then return function() return given() end end
end

---What gives a stream's ids.
---@param given pyramid.Stream
---@param encode fun(text: string, begins?: boolean): integer[]?, string?, string?
---@param begins boolean   what begins a text is put before the first piece
---@return pyramid.StreamReader?   nil: it is no stream
function stream.open(given, encode, begins)
  local next_item = source_of(given)
  return next_item and setmetatable({ next_item = next_item, encode = encode, begins = begins,
    text = "", ids = {}, first = 1 }, Reader)
end

local function waiting(self) return #self.ids - self.first + 1 end

local function add(self, ids)
  -- what was taken goes, so that memory is bounded by what waits
  self.ids = table.move(self.ids, self.first, #self.ids, 1, {})
  table.move(ids, 1, #ids, #self.ids + 1, self.ids)
  self.first = 1
end

local function encode(self, text)
  if text == "" then return true end
  local ids, message, code = self.encode(text, self.begins)
  if not ids then return nil, message, code end
  self.begins = false
  add(self, ids)
  return true
end

-- Takes in one item; nil, message, code where it cannot be.
local function take(self, item)
  if type(item) == "string" then
    self.text = self.text .. item
    while #self.text > 2 * PIECE do
      local at = place(self, self.text, PIECE)
      local ok, message, code = encode(self, self.text:sub(1, at - 1))
      if not ok then return nil, message, code end
      self.text = self.text:sub(at)
    end
    return true
  end
  if type(item) ~= "table" then
    return nil, ("cache:read: the stream gave a %s, and neither a text nor ids"):format(type(item)),
      "argument"
  end
  local text = self.text
  self.text = ""
  local ok, message, code = encode(self, text)
  if not ok then return nil, message, code end
  add(self, item)
  self.begins = false
  return true
end

---The next block of ids: `size` of them, or up to a quarter more where the stream ends with it, so
---that no block but the only one is short. An empty one at the end.
---@param size integer
---@return integer[]?
---@return string? message
---@return string? code
function Reader:block(size)
  local enough = size + size // 4 + 1
  while not self.ended and waiting(self) < enough do
    local item, message, code = self.next_item()
    local ok
    if item == nil and message ~= nil then return nil, tostring(message), code or "io" end
    if item == nil then
      self.ended = true
      ok, message, code = encode(self, self.text)
      self.text = ""
    else
      ok, message, code = take(self, item)
    end
    if not ok then return nil, message, code end
  end
  local count = waiting(self) < enough and waiting(self) or size
  local out = table.move(self.ids, self.first, self.first + count - 1, 1, {})
  self.first = self.first + count
  return out
end

return stream
