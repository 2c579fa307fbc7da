--- Sessions: a folder of saved caches, so that a prompt whose beginning was read before, by any
--- process, is read from there on.
---
---   local store = assert(pyramid.sessions("sessions", { bytes = "8 GiB" }))
---   local cache = assert(model:cache { sessions = store })     -- or sessions = "sessions"
---   assert(cache:prefill(ids))             -- takes what is stored, reads the rest, stores that
---
--- What is stored. Rows before any cut: under a policy with plans for prompts, the prompt's first
--- piece is read whole and stored, and the plans then judge all rows together when the last piece
--- is read, as those of a prompt that was read at once (pieces.lua: what they need of it). So one
--- entry serves all policies, and what is left does not depend on what was found. A policy that
--- needs the whole prompt at once (all its queries, its hidden states, a second reading) takes
--- nothing and stores nothing; the store says why.
---
--- One file an entry, a cache's own (core/cache/session.c), whose note ends the file but for a
--- check sum:
---
---   name   IDENTITY-HEAD-TOKENS-IDS.session    what a cache must be to take it; hashes of the
---                                              first 32 ids and of all; how many there are
---   note   a line, then in string.pack's words the model, the dtype and the policy it was read
---          under, the time, the ids; its own length and a mark
---
--- What is found. Entries of the same identity and head are looked at: those whose ids, as the name
--- has their hash, begin the prompt, and the newest others, whose ids are read and compared. The
--- one that shares most is loaded and goes back to what is shared. Ids are compared one by one, and
--- the check sum covers them: a hash alone is never believed.
---
--- Who shares. Any number of processes, without locks: a file is written beside its place and
--- renamed into it, a file that vanishes is passed over, and one that was removed while it is read
--- stays until it is closed. A process that is killed leaves a temporary file, which is removed
--- after an hour. What was used last is what was changed last; beyond `bytes` the oldest go. A
--- store that cannot be read or written costs a warning, never a prompt.
local core = require "pyramid.core"
local files = require "pyramid.files"
local options = require "pyramid.options"
local pieces = require "pyramid.pieces"

local sessions = {}

---A folder of saved caches, which prompts that begin alike share.
---@class pyramid.Sessions
---@field path string
---@field bytes integer       the most that its files may take; 0: any
---@field least integer       an entry is stored where it saves reading so many tokens
---@field every integer       and at each multiple of so many, too; 0: not
---@field warnings string[]   what went wrong, or could not be shared, each once
---@field package tell? fun(message: string)
local Sessions = {}
Sessions.__index = Sessions
Sessions.__name = "pyramid.sessions"

local HEAD = 32                          -- ids that a name has the hash of
local HEADLINE, MARK = "pyramid session 1\n", "PYRSESS1"
local NOTE_MOST = 64 << 20               -- as a saved cache's
local LOOKED_AT = 64                     -- entries of which ids are read, in one search
local TRIED = 3                          -- entries that may fail to load, in one search
local LEFT_BEHIND = 3600 * 10 ^ 9        -- nanoseconds: a temporary file so old is nobody's
local DEFAULT_BYTES = 4 << 30

local store_keys = { bytes = "integer|string", least = "integer", every = "integer",
  warn = "function" }

---@class pyramid.SessionsOptions
---@field bytes? integer|string   the most that its files may take (4 GiB; 0: any)
---@field least? integer
---  tokens that an entry must save beyond what is stored already (128, and at least 32)
---@field every? integer          stores at each multiple of so many tokens, too (0: not)
---@field warn? fun(message: string)   told what goes into `warnings`

---A store in a folder, which is made unless it is there.
---@param path string
---@param given? pyramid.SessionsOptions
---@return pyramid.Sessions?
---@return string? message
---@return string? code
function sessions.open(path, given)
  given = options.check("pyramid.sessions", given, store_keys)
  if type(path) ~= "string" or path == "" or path:find("\0", 1, true) then
    error("pyramid.sessions: a folder's path is wanted", 2)
  end
  local least = given.least or 128
  if least < HEAD or (given.every or 0) < 0 then
    error(("pyramid.sessions: least must be %d or more, and every not negative"):format(HEAD), 2)
  end
  local bytes = given.bytes == nil and DEFAULT_BYTES
    or options.bytes("pyramid.sessions", given.bytes)
  if files.kind(path) ~= "folder" then
    local made, message, code = core.make_folder(path)
    if not made then return nil, message, code end
  end
  return setmetatable({ path = path, bytes = bytes, least = least, every = given.every or 0,
    warnings = {}, tell = given.warn }, Sessions)
end

---Whether a value is a store.
---@param value any
---@return boolean
function sessions.is(value) return getmetatable(value) == Sessions end

-- What went wrong, said once.
local function warn(self, message)
  for _, said in ipairs(self.warnings) do
    if said == message then return end
  end
  self.warnings[#self.warnings + 1] = message
  if self.tell then self.tell(message) end
end

-- ---- entries ------------------------------------------------------------------------------------

---Ids as a text, 4 bytes each, so that beginnings are compared as texts.
---@param ids integer[]
---@return string
local function pack_ids(ids)
  local parts = {}
  for first = 1, #ids, 128 do
    local last = math.min(first + 127, #ids)
    parts[#parts + 1] = string.pack("<" .. ("i4"):rep(last - first + 1),
      table.unpack(ids, first, last))
  end
  return table.concat(parts)
end

sessions.pack = pack_ids

---How many ids two packed lists have in common at their beginnings: by halves, so that texts are
---compared and not ids.
---@param one string
---@param other string
---@return integer
local function shared(one, other)
  local low, high = 0, math.min(#one, #other) // 4
  while low < high do
    local middle = (low + high + 1) // 2
    if one:sub(4 * low + 1, 4 * middle) == other:sub(4 * low + 1, 4 * middle) then low = middle
    else high = middle - 1
    end
  end
  return low
end

sessions.shared = shared

local function name_of(identity, packed)
  return ("%s-%s-%d-%s.session"):format(identity, core.hash_text(packed:sub(1, 4 * HEAD)),
    #packed // 4, core.hash_text(packed))
end

-- The entries that names tell of, and temporary files.
local function scan(self)
  local listed, message, code = core.list_files(self.path)
  if not listed then return nil, message, code end
  local found, left = {}, {}
  for _, file in ipairs(listed) do
    local identity, head, tokens, hash = file.name:match "^(%x+)%-(%x+)%-(%d+)%-(%x+)%.session$"
    if identity and #identity == 16 then
      found[#found + 1] = { path = self.path .. "/" .. file.name, bytes = file.bytes,
        changed = file.changed, identity = identity, head = head, tokens = math.tointeger(tokens),
        hash = hash }
    elseif file.name:find "^%.pyramid%-%x+%.tmp$" then
      left[#left + 1] = { path = self.path .. "/" .. file.name, changed = file.changed }
    end
  end
  return found, left
end

-- What an entry's note says, from the file's end; nil where it says nothing that can be.
local function read_note(path)
  local file <close>, size, code = files.open(path)
  if not file then return nil, size, code end
  local function part(at, bytes)
    return at >= 0 and file:seek("set", at) and file:read(bytes) or ""
  end
  local function broken() return nil, path .. ": is no whole session", "format" end
  local ending = part(size - 24, 16)
  if #ending ~= 16 or ending:sub(9) ~= MARK then return broken() end
  local length = string.unpack("<i8", ending)
  if length < #HEADLINE + 16 or length > NOTE_MOST or length > size - 8 then return broken() end
  local note = part(size - 8 - length, length)
  if #note ~= length or note:sub(1, #HEADLINE) ~= HEADLINE then return broken() end
  local ok, model, dtype, policy, made, ids = pcall(string.unpack, "<s4s4s4i8s8", note,
    #HEADLINE + 1)
  if not ok or #ids % 4 ~= 0 then return broken() end
  return { model = model, dtype = dtype, policy = policy, made = made, ids = ids }
end

local function write_note(what, packed)
  local note = HEADLINE .. string.pack("<s4s4s4i8s8", what.model, what.dtype, what.policy,
    os.time(), packed)
  return note .. string.pack("<i8", #note + 16) .. MARK
end

-- A file that is no whole entry is of no use to anybody.
local function discard(self, entry, message)
  os.remove(entry.path)
  warn(self, ("%s; removed"):format(message))
end

---@class pyramid.StoredSession
---@field path string
---@field tokens integer
---@field bytes integer
---@field used number      when it was last used, in seconds as os.time has them
---@field made integer     when it was stored, likewise
---@field model string     the name of its file or folder
---@field dtype string     of its rows
---@field policy string    under which it was read first; the rows serve any

---What is stored, what was used last first. Files that cannot be read are left out, and in
---`warnings`.
---@return pyramid.StoredSession[]?
---@return string? message
---@return string? code
function Sessions:list()
  local found, message, code = scan(self)
  if not found then return nil, message, code end
  table.sort(found, function(a, b)
    if a.changed ~= b.changed then return a.changed > b.changed end
    return a.path < b.path
  end)
  local out = {}
  for _, entry in ipairs(found) do
    local note, why = read_note(entry.path)
    if note then
      out[#out + 1] = { path = entry.path, tokens = entry.tokens, bytes = entry.bytes,
        used = entry.changed / 1e9, made = note.made, model = note.model, dtype = note.dtype,
        policy = note.policy }
    elseif files.exists(entry.path) then
      warn(self, why)
    end
  end
  return out
end

-- Removes what was used longest ago until the rest fits, and what nobody will finish. `newest`, the
-- one just stored, goes last.
local function trim(self, newest)
  local found, left = scan(self)
  if not found then return end
  local latest = 0
  for _, entry in ipairs(found) do latest = math.max(latest, entry.changed) end
  for _, file in ipairs(left) do
    if latest - file.changed > LEFT_BEHIND then os.remove(file.path) end
  end
  local held = 0
  for _, entry in ipairs(found) do held = held + entry.bytes end
  table.sort(found, function(a, b)
    if (a.path == newest) ~= (b.path == newest) then return b.path == newest end
    if a.changed ~= b.changed then return a.changed < b.changed end
    return a.path < b.path
  end)
  for _, entry in ipairs(found) do
    if self.bytes == 0 or held <= self.bytes then break end
    os.remove(entry.path)
    held = held - entry.bytes
  end
end

---Removes what was used longest ago until no more than its bytes are left.
function Sessions:trim() trim(self) end

---What a store keeps of a cache beside its rows.
---@class pyramid.SessionAbout
---@field identity string   a cache takes only what has its own
---@field dtype string
---@field model string
---@field policy string

---What a store is to know of a cache, to keep it or to find what it may take.
---@param cache pyramid.Cache
---@param model pyramid.Model
---@param dtype string
---@param chosen? pyramid.Policy
---@param owner? string    who alone may take it; nil: anybody
---@return pyramid.SessionAbout
function sessions.about(cache, model, dtype, chosen, owner)
  return { identity = core.hash_text(table.concat({ cache:identity(), model.precision,
    model.converted or "", owner }, " ")), dtype = dtype,
      model = model.path:match "([^/]+)/*$" or model.path,
        policy = chosen and tostring(chosen):gsub("%(%)$", "") or "full" }
end

---Stores what a cache holds, which are the rows of all these ids, as sessions.pack has them, before
---any cut.
---@param cache pyramid.Cache
---@param what pyramid.SessionAbout
---@param packed string
function Sessions:put(cache, what, packed)
  local path = self.path .. "/" .. name_of(what.identity, packed)
  if core.touch(path) then return end
  if self.bytes > 0 and cache:bytes() > self.bytes then
    warn(self, ("%s: %d tokens take more than its %d bytes, and were not stored"):format(self.path,
      #packed // 4, self.bytes))
    return
  end
  local ok, message = cache:save(path, write_note(what, packed))
  if not ok then
    warn(self, "nothing was stored: " .. message)
    return
  end
  trim(self, path)
end

-- The entries that share most with a prompt of which `most` tokens may be taken, best first.
local function search(self, identity, packed, most)
  local found, message = scan(self)
  if not found then
    warn(self, message)
    return {}
  end
  local head, near = core.hash_text(packed:sub(1, 4 * HEAD)), {}
  for _, entry in ipairs(found) do
    if entry.identity == identity and entry.head == head then near[#near + 1] = entry end
  end
  table.sort(near, function(a, b) return a.changed > b.changed end)
  local out, looked = {}, 0
  for _, entry in ipairs(near) do
    local begins = entry.tokens <= most
      and core.hash_text(packed:sub(1, 4 * entry.tokens)) == entry.hash
    looked = looked + (begins and 0 or 1)
    if begins or looked <= LOOKED_AT then
      local note, why, code = read_note(entry.path)
      if note then
        entry.shared = math.min(shared(note.ids, packed), most)
        if entry.shared >= self.least then out[#out + 1] = entry end
      elseif code == "format" then
        discard(self, entry, why)
      end
    end
  end
  table.sort(out, function(a, b)
    if a.shared ~= b.shared then return a.shared > b.shared end
    if a.tokens ~= b.tokens then return a.tokens < b.tokens end
    return a.path < b.path
  end)
  return out
end

---Lets an empty cache take what is stored of a prompt: how many tokens it has then.
---@param cache pyramid.Cache
---@param identity string   sessions.about's
---@param packed string     the prompt, as sessions.pack has it
---@param most integer      tokens that may be taken
---@return integer
function Sessions:take(cache, identity, packed, most)
  local tried = 0
  for _, entry in ipairs(search(self, identity, packed, most)) do
    if tried == TRIED then break end
    local ok, message, code = cache:load_prefix(entry.path, entry.shared)
    if ok then
      core.touch(entry.path)
      return entry.shared
    end
    if code == "format" then
      discard(self, entry, message)
    elseif code == "memory" or code == "budget" then
      return 0                            -- reading the prompt will say so
    elseif files.exists(entry.path) then
      warn(self, message)                 -- a sliding window that cannot go back, mostly
    end
    tried = tried + 1
  end
  return 0
end

-- ---- prompts ------------------------------------------------------------------------------------

---What a cache shares with a store.
---@class pyramid.SessionUse
---@field store pyramid.Sessions
---@field policy? pyramid.Policy
---@field dtype string
---@field reused integer     tokens of the last prompt that came from the store

---Checks a `sessions` option: a store, or the path of one.
---@param given pyramid.Sessions|string
---@return pyramid.Sessions?
---@return string? message
---@return string? code
function sessions.of(given)
  if sessions.is(given) then return given end
  return sessions.open(given)
end

-- Where a prompt of n tokens is cut: boundaries that were named, multiples, and the last place that
-- leaves the plans what they need; ascending, each once.
local function cuts(self, named, last)
  local set, out = { [last] = true }, {}
  for _, at in ipairs(named or {}) do set[at] = true end
  for at = self.every, self.every > 0 and last or 0, math.max(self.every, 1) do set[at] = true end
  for at in pairs(set) do
    if at >= self.least and at <= last then out[#out + 1] = at end
  end
  table.sort(out)
  return out
end

---Reads a prompt into an empty cache, of which the store may have a beginning.
---@param cache pyramid.Cache
---@param use pyramid.SessionUse
---@param ids integer[]
---@param given pyramid.PrefillOptions
---@param read fun(ids: integer[], prune?: boolean, whole: boolean, progress?: function): any, string?, string?
---@return any logits
---@return string? message
---@return string? code
function sessions.prefill(cache, use, ids, given, read)
  local self, n = use.store, #ids
  local model = cache:owner()
  local judged = given.prune ~= false
  local needed, why = 0, nil
  if judged then needed, why = pieces.needs(use.policy, model.config, n) end
  use.reused = 0
  if not needed then
    warn(self, ("policy %s shares no sessions: %s"):format(use.policy.name, why))
    return read(ids, given.prune, false, given.progress)
  end
  -- a cut of old rows, or a trigger, is asked for with the last piece; else all is as it is stored
  local d = use.policy and use.policy.definition
  local plain = not judged or not d or not (d.prefill or d.trigger)
  local most = n - math.max(needed, 1)
  if most < self.least then return read(ids, given.prune, false, given.progress) end
  local packed = pack_ids(ids)
  local what = sessions.about(cache, model, tostring(use.dtype), use.policy)
  local at = self:take(cache, what.identity, packed, most)
  use.reused = at
  local total, first = model.config.layers * (n - at), at
  local function go(to, prune)
    local progress = given.progress and function(done)
      return given.progress(math.min(model.config.layers * (at - first) + done, total), total)
    end
    local logits, message, code = read(table.move(ids, at + 1, to, 1, {}), prune, true, progress)
    if not logits then
      cache:clear()                       -- as it was, and what it took is in the store
      use.reused = 0
      return nil, message, code
    end
    at = to
    return logits
  end
  local stored = at
  for _, to in ipairs(cuts(self, given.boundaries, most)) do
    if to - stored >= self.least and not (plain and to == most) then
      local logits, message, code = go(to, false)
      if not logits then return nil, message, code end
      self:put(cache, what, packed:sub(1, 4 * to))
      stored = to
    end
  end
  local logits, message, code = go(n, given.prune)
  if not logits then return nil, message, code end
  if plain and n - stored >= self.least then self:put(cache, what, packed) end
  return logits
end

return sessions
