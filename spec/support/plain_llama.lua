--- A Llama in plain Lua and double precision, one token at a time, over rows that a spec may drop
--- and change: what the engine is held against where lanes differ in length. Weights and arithmetic
--- are spec.support.transformer's.
local reference = require "spec.support.ops_reference"
local transformer = require "spec.support.transformer"

local times, add, normed, heads_of = transformer.times, transformer.add, transformer.normed,
  transformer.heads_of

local plain = {}
plain.__index = plain

--- The model of a folder; fields that may be set: cap, slopes [head], sinks [layer][head], temper,
--- temper_length; watch(row, position of the query, its head, score, weight), called for each
--- row that it sees; and reads(lane, queries of its heads, layer, position), the rows that they
--- see of it.
function plain.open(folder) return setmetatable({ model = transformer.load(folder) }, plain) end

--- Lanes without rows: lanes[layer][head] is a sequence of { position, k (before rotation), turned
--- (rotated), v, history (attention so far), seen = { [position of a query] = attention } }.
function plain:lanes()
  local lanes = { tokens = 0 }
  for layer = 1, #self.model.layers do
    lanes[layer] = {}
    for head = 1, self.model.kv_heads do lanes[layer][head] = {} end
  end
  return lanes
end

--- A head's key, rotated to `position`.
function plain:rotated(key, position) return heads_of(key, 1, position, self.model.base)[1] end

-- how: the head's cap, slope and sink, where it has any
local function attend(q, lane, scale, position, share, how)
  local sink = how.sink or -math.huge
  local p, scores, top, out = {}, {}, sink, {}
  for j, row in ipairs(lane) do
    local s = 0.0
    for i = 1, #q do s = s + q[i] * row.turned[i] end
    p[j] = reference.bent(s * scale, how.cap, how.slope, position - row.position)
    scores[j] = p[j]
    top = math.max(top, p[j])
  end
  local sum = sink > -math.huge and math.exp(sink - top) or 0.0
  for j = 1, #p do
    p[j] = math.exp(p[j] - top)
    sum = sum + p[j]
  end
  for i = 1, #q do out[i] = 0.0 end
  for j, row in ipairs(lane) do
    local weight = p[j] / sum
    if how.watch then how.watch(row, position, how.head, scores[j], weight) end
    row.history = row.history + weight * share
    row.seen[position] = (row.seen[position] or 0) + weight * share
    for i = 1, #q do out[i] = out[i] + weight * row.v[i] end
  end
  return out
end

--- Reads one token; returns its logits (from 1), and the state that they are made of. turned(lane):
--- what its q and k are rotated to in a layer; its position unless given.
function plain:step(lanes, id, turned)
  local model, position = self.model, lanes.tokens
  local x, group = model.embed[id + 1], model.heads // model.kv_heads
  for layer, w in ipairs(model.layers) do
    local h, mixed = normed(x, w.attn_norm, model.eps), {}
    local to = turned and turned(lanes[layer][1]) or position
    local keys, values = heads_of(times(w.k, h), model.kv_heads),
      heads_of(times(w.v, h), model.kv_heads)
    for head, lane in ipairs(lanes[layer]) do
      lane[#lane + 1] = { position = position, history = 0, seen = {}, k = keys[head],
        turned = self:rotated(keys[head], to), v = values[head] }
    end
    local sharp = 1 + (self.temper or 0) * math.log(1 + to // (self.temper_length or 1))
    local queries, seen = heads_of(times(w.q, h), model.heads, to, model.base), {}
    for g, lane in ipairs(lanes[layer]) do
      seen[g] = self.reads and self.reads(lane, table.move(queries, (g - 1) * group + 1, g * group,
        1, {}), layer, position) or lane
    end
    for head, q in ipairs(queries) do
      local out = attend(q, seen[(head - 1) // group + 1], sharp * (#q) ^ -0.5, position,
        1 / group, { head = head, watch = self.watch, cap = self.cap,
          slope = self.slopes and self.slopes[head],
          sink = self.sinks and self.sinks[layer][head] })
      table.move(out, 1, #out, #mixed + 1, mixed)
    end
    x = add(x, times(w.o, mixed))
    x = add(x, transformer.feed_forward(w, x, model.eps))
  end
  lanes.tokens = position + 1
  local state = normed(x, model.norm, model.eps)
  return times(model.output, state), state
end

--- Drops the rows of one lane whose positions are not listed; returns the indices (from 0) of those
--- that stay.
function plain.keep(lane, positions)
  local listed, kept, idx = {}, {}, {}
  for _, position in ipairs(positions) do listed[position] = true end
  for j, row in ipairs(lane) do
    if listed[row.position] then
      kept[#kept + 1] = row
      idx[#idx + 1] = j - 1
    end
  end
  assert(#kept == #positions, "a row that was dropped before is held")
  for j = 1, #lane do lane[j] = kept[j] end
  return idx
end

return plain
