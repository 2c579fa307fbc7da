--- Caches that are kept after, and beside, the requests that read them: so that prompts which begin
--- alike are read once, and so that one can still look at what a request left.
---
--- An entry of the first kind holds all rows of its ids, before any plan has cut them. A request of
--- the same user (or of anybody, where the operator shares) and the same row format takes a fork of
--- the entry that shares most with its prompt, and drops what is not shared: ids are compared one
--- by one. An entry of the second kind is what a request ended with; it is found by its id alone.
---
--- Pages are shared with whoever was forked from an entry, so that what an entry costs is known
--- only when it goes. What was used longest ago goes first, whenever the engine needs room.
local sessions = require "pyramid.sessions"

local shelf = {}

---@class pyramid.ServeEntry
---@field cache pyramid.Cache
---@field owner? string    whose rows they are; "" everybody's
---@field shares? string   row format and policy: who may take them
---@field packed? string   their ids, as sessions.pack has them; nil: rows have left
---@field id? string       of the request that left it
---@field ids? integer[]   … and its tokens

---@class pyramid.ServeShelf
---@field package entries table[]    used longest ago first
---@field most integer       entries at most
local Shelf = {}
Shelf.__index = Shelf

---@param most integer
---@return pyramid.ServeShelf
function shelf.new(most) return setmetatable({ entries = {}, most = most }, Shelf) end

local function drop(self, at)
  local entry = table.remove(self.entries, at)
  entry.cache:close()
end

---Lets the entry go that was used longest ago. False: there is none.
---@return boolean
function Shelf:let_go()
  if #self.entries == 0 then return false end
  drop(self, 1)
  return true
end

---Keeps a cache, which is the shelf's from here on. Of uncut rows: entries that it makes
---superfluous go, those whose ids begin its own, of caches that can go back to any of them.
---@param entry pyramid.ServeEntry
---@param goes_back? boolean   it can be truncated to any of its tokens
function Shelf:keep(entry, goes_back)
  local packed = entry.packed
  for at = packed and #self.entries or 0, 1, -1 do
    local other = self.entries[at]
    if other.packed and other.owner == entry.owner and other.shares == entry.shares
      and #other.packed <= #packed and (goes_back or #other.packed == #packed)
      and packed:sub(1, #other.packed) == other.packed then
      drop(self, at)
    end
  end
  self.entries[#self.entries + 1] = entry
  while #self.entries > self.most do drop(self, 1) end
end

---What a request of this id ended with.
---@param id string
---@return pyramid.ServeEntry?
function Shelf:recall(id)
  for at = #self.entries, 1, -1 do
    if self.entries[at].id == id then return self.entries[at] end
  end
end

---How many of the first `most` tokens of a prompt the best entry has.
---@param owner string
---@param shares string
---@param packed string
---@param most integer
---@return integer shared
---@return integer? place
local function find(self, owner, shares, packed, most)
  local best, place = 0, nil
  for at = #self.entries, 1, -1 do
    local entry = self.entries[at]
    if entry.packed and entry.owner == owner and entry.shares == shares then
      local shared = math.min(sessions.shared(entry.packed, packed), most)
      if shared > best then best, place = shared, at end
    end
  end
  return best, place
end

---@param owner string
---@param shares string
---@param packed string
---@param most integer
---@return integer
function Shelf:shares(owner, shares, packed, most)
  return (find(self, owner, shares, packed, most))
end

---A fork of the entry that shares most with a prompt, with what it shares, at least `least` tokens
---and `most` of them at most. nil: there is none, or it cannot go back to what is shared (a sliding
---window has left rows behind).
---@param owner string
---@param shares string
---@param packed string
---@param least integer
---@param most integer
---@return pyramid.Cache?
---@return integer? tokens
function Shelf:take(owner, shares, packed, least, most)
  local shared, at = find(self, owner, shares, packed, most)
  if not at or shared < least then return nil end
  local entry = table.remove(self.entries, at)
  self.entries[#self.entries + 1] = entry          -- used last
  local fork = entry.cache:fork()
  if not fork then return nil end
  if shared < #entry.packed // 4 and not fork:truncate(shared) then
    fork:close()
    return nil
  end
  return fork, shared
end

---Entries held, and how many of them prompts can begin with.
---@return integer entries
---@return integer prompts
function Shelf:count()
  local prompts = 0
  for _, entry in ipairs(self.entries) do prompts = prompts + (entry.packed and 1 or 0) end
  return #self.entries, prompts
end

---Lets all of them go.
function Shelf:close()
  while self:let_go() do end
end

return shelf
