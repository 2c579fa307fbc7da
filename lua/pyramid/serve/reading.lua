--- How a prompt is read while others go on writing: as pieces, or at once with steps in between.
---
--- Pieces. Where the policy's plans can judge all rows with the last piece (pyramid.pieces), the
--- prompt is read by at most 256 tokens at a time, and prompts take turns, so that a short one is
--- not kept waiting by a long one. The pieces before the last leave all their rows; what others may
--- begin with is forked from there.
---
---   full       [ 256 ][ 256 ][ 188 ]                 700 tokens; each piece is a turn
---   snapkv     [ 256 ][ 256 ][ 156 ] | [ 32 ]        plans judge with the last 32, whose queries
---                                                    they rank by; | is kept for others
---   h2o        [              700            ]       ranks by all queries: at once
---
--- At once, and within a piece, the core asks between layers and chunks (512 tokens) whether to go
--- on. Steps of those who write are taken there, and a policy that needs the whole prompt lets
--- shorter prompts be read there, too, piece by piece.
---
--- What is left of a prompt does not depend on what was found of it, nor on the pieces, but for the
--- last bits of sums: the core multiplies pieces of different sizes by different kernels.
local pieces = require "pyramid.pieces"
local sessions = require "pyramid.sessions"

local reading = {}

reading.PIECE = 256
local ECHO = 32            -- of all of these the logits are held at once
local LEAST = 32           -- tokens that others may begin with

-- Where a prompt is cut: after so many tokens, whether plans judge then, and whether what is there
-- is for others.
local function parts_of(request, at)
  local n, parts = #request.ids, {}
  local size = request.echo and ECHO or reading.PIECE
  local function to(last, keep)
    while at < last do
      at = math.min(at + size, last)
      parts[#parts + 1] = { to = at, judged = at == n }
    end
    if keep and #parts > 0 then parts[#parts].keep = true end
  end
  -- under pressure the core makes pieces of its own; a call that finds rows keeps them twice
  -- until it is sure
  if not request.needed or request.pressure == "demote" then
    return { { to = n, judged = true } }
  end
  if not request.plain then
    local last = n - math.max(request.needed, 1)
    -- a short prompt is not worth a pass of its own for its beginning
    if n - at <= size and n < 2 * LEAST then return { { to = n, judged = true } } end
    to(last, last >= LEAST)
  end
  for _, boundary in ipairs(request.windowed and request.boundaries or {}) do
    if boundary > at and boundary < n and request.plain then to(boundary, boundary >= LEAST) end
  end
  to(n, request.plain and n >= LEAST)
  return parts
end

---What is to be known of a request before it is read: whether its plans let it be read in pieces,
---and why not.
---@param request pyramid.ServeRequest
function reading.look(request)
  local p, config = request.policy, request.model.config
  local d = p and p.definition
  request.plain = not d or not (d.prefill or d.trigger or d.prepare)
  request.needed, request.whole = pieces.needs(p, config, #request.ids)
  request.packed = sessions.pack(request.ids)
end

---How many tokens of the prompt may be taken from elsewhere.
---@param request pyramid.ServeRequest
---@return integer
function reading.may_take(request)
  if not request.needed or request.every or request.budget then return 0 end
  return #request.ids - math.max(request.needed, 1)
end

---Begins: with what the shelf has of it, or from nothing.
---@param engine pyramid.ServeEngine
---@param request pyramid.ServeRequest
---@return true?
---@return string? message
---@return string? code
function reading.begin(engine, request)
  local cache, at = nil, 0
  local most = reading.may_take(request)
  if most >= LEAST then
    cache, at = engine.shelf:take(request.owner, request.shares, request.packed, LEAST, most)
  end
  local store = most >= LEAST and engine.sessions
  if not cache or store and most - at >= store.least then
    local other, message, code = engine:new_cache(request)
    if not other then
      if cache then cache:close() end
      return nil, message, code
    end
    local found = 0
    if store then
      request.about = sessions.about(other, engine.model, request.format, request.policy,
        not engine.share and request.owner or nil)
      found = store:take(other, request.about.identity, request.packed, most)
    end
    if not cache or found > at then
      if cache then cache:close() end
      cache, at = other, found
    else
      other:close()
    end
  end
  request.cache, request.at, request.reused, request.stored = cache, at, at, at
  request.parts, request.part = parts_of(request, at), 1
  return true
end

-- What the logits of an echoed piece say of the ids that follow each.
local function echo(request, all, at)
  for i, logits in ipairs(all) do
    local next_id = request.ids[at + i + 1]
    if next_id then
      local said = { id = next_id, logprob = logits:logprob(next_id) }
      if request.logprobs > 0 then said.ids, said.logprobs = logits:top(request.logprobs) end
      request.echoed[at + i + 1] = said
    end
  end
  return all[#all]
end

---Reads the next part. Gives the logits after the prompt, or the hidden states of its last part,
---once all is read; true before that.
---@param engine pyramid.ServeEngine
---@param request pyramid.ServeRequest
---@return pyramid.Logits|pyramid.Vector|true|nil
---@return string? message
---@return string? code
function reading.next(engine, request)
  local part, at = request.parts[request.part], request.at
  local wants_all = request.every and (request.states or request.logprobs ~= nil)
  local got, message, code = request.cache:read_ids(
    table.move(request.ids, at + 1, part.to, 1, {}), wants_all, part.judged, true,
    request.states)
  if not got then return nil, message, code end
  if request.states then request.choices[1]:add(got)
  elseif wants_all then got = echo(request, got, at)
  end
  request.at, request.part = part.to, request.part + 1
  if part.keep and not request.own and not request.every and part.to > request.reused then
    local fork = request.cache:fork()
    if fork then
      engine.shelf:keep({ owner = request.owner, shares = request.shares, cache = fork,
        packed = request.packed:sub(1, 4 * part.to) }, not request.windowed)
    end
    if request.about and part.to - request.stored >= engine.sessions.least then
      engine.sessions:put(request.cache, request.about, request.packed:sub(1, 4 * part.to))
      request.stored = part.to
    end
  end
  return request.part > #request.parts and got or true
end

return reading
