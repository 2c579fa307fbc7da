--- Texts to stop before, in text that comes in pieces.
local stops = {}

---How many bytes at a text's end could be the beginning of one of the texts, so that they must be
---held back: of "the en" and "end", 2.
---@param text string
---@param texts string[]
---@return integer
function stops.held_back(text, texts)
  local most = 0
  for _, stop in ipairs(texts) do
    for length = math.min(#stop - 1, #text), most + 1, -1 do
      if text:sub(-length) == stop:sub(1, length) then
        most = length
        break
      end
    end
  end
  return most
end

---Where the first of the texts begins; nil: none is there.
---@param text string
---@param texts string[]
---@return integer?
function stops.first(text, texts)
  local at
  for _, stop in ipairs(texts) do
    local found = text:find(stop, 1, true)
    if found and (not at or found < at) then at = found end
  end
  return at
end

return stops
