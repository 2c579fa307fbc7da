--- The largest batch that a stated memory holds, found by running batches: weights, rows, scratch
--- and activations, all that the runtime counts.
local largest = {}

---@class pyramid.Largest
---@field label string
---@field memory integer           bytes that the runtime may hold
---@field fits integer             sequences of the largest batch that ran to its end; 0: none did
---@field fails? integer
---  sequences of the smallest that did not, for want of memory; nil: none was seen
---@field rate? number             tokens a second of that largest batch
---@field kv_bytes? integer
---@field runs { count: integer, seconds?: number, message?: string }[]

-- Where to look next: beyond what fits, by steps that double, or between what fits and what does
-- not; nil if nothing is left to learn.
local function next_count(fits, fails, step)
  if not fails then return fits + step end
  if fails - fits <= 1 then return nil end
  if fits == 0 then return math.max(1, fails * 3 // 4) end
  return (fits + fails) // 2
end

---Runs batches of a baseline whose model's runtime has a limit, at most `tries` of them. nil and
---why, if something else than memory ends one.
---@param baseline pyramid.Ours
---@param given { memory: integer, guess: integer, tries: integer, prompt: integer, generated: integer }
---@return pyramid.Largest?
---@return string? message
function largest.find(baseline, given)
  local found = { label = baseline.label, memory = given.memory, fits = 0, runs = {} }
  local count = math.max(1, given.guess)
  local step = math.max(1, count // 8)
  for _ = 1, given.tries do
    local sample, message, code = baseline:batch(count, given.prompt, given.generated)
    table.insert(found.runs, { count = count, seconds = sample and sample.seconds,
      message = message })
    if sample then
      found.fits, found.kv_bytes = count, sample.kv_bytes
      found.rate = count * given.generated / sample.seconds
    elseif code == "memory" then found.fails = count
    else return nil, message end
    count, step = next_count(found.fits, found.fails, step), 2 * step
    if not count then break end
  end
  return found
end

return largest
