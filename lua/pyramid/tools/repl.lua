--- A prompt for Lua: chunks of one line or more, their values shown so that people can read them.
---
---   repl.chunk "1 + 1"       a function that returns 2; or nil, message, whether it lacks its end
---   repl.show { 1, a = "b" } '{ 1, a = "b" }'
local screen = require "pyramid.tools.screen"

local repl = {}

-- ---- chunks -------------------------------------------------------------------------------------

---A chunk of Lua, or an expression, whose values it returns.
---@param text string
---@return function?
---@return string? message
---@return boolean? incomplete  it only lacks its end
function repl.chunk(text)
  local chunk, as_expression = load("return " .. text, "=repl", "t")
  if chunk then return chunk end
  local message
  chunk, message = load(text, "=repl", "t")
  if chunk then return chunk end
  return nil, message, message:find "<eof>$" ~= nil or as_expression:find "<eof>$" ~= nil
end

-- ---- values -------------------------------------------------------------------------------------

local ENTRIES_MOST, DEPTH_MOST, TEXT_MOST, WIDE = 100, 5, 4000, 76

local names = { ["\n"] = "\\n", ["\t"] = "\\t", ["\r"] = "\\r", ["\\"] = "\\\\", ['"'] = '\\"' }

-- As Lua would read it; bytes that are no text, and characters that a terminal would obey, by
-- number.
local function quoted(text)
  local more = #text > TEXT_MOST and (" .. %d bytes more"):format(#text - TEXT_MOST) or ""
  text = text:sub(1, TEXT_MOST):gsub('[%c\\"]', function(c)
    return names[c] or ("\\x%02X"):format(c:byte())
  end)
  if not utf8.len(text) then
    text = text:gsub("[\x80-\xFF]", function(c) return ("\\x%02X"):format(c:byte()) end)
  end
  return '"' .. screen.safe(text) .. '"' .. more
end

local keywords = {}
for word in ("and break do else elseif end false for function goto if in local nil not or repeat "
  .. "return then true until while"):gmatch "%a+" do
  keywords[word] = true
end

local function less(a, b)
  local kind, other = math.type(a) or type(a), math.type(b) or type(b)
  if type(a) == "number" and type(b) == "number" then return a < b end
  if kind ~= other then return kind < other end
  if kind == "string" then return a < b end
  return tostring(a) < tostring(b)
end

-- Keys in order: those of the sequence are left out. At most so many are looked at.
local function keys_of(t, length)
  local keys, more = {}, false
  for key in next, t do
    if not (math.type(key) == "integer" and key >= 1 and key <= length) then
      if #keys == ENTRIES_MOST then
        more = true
        break
      end
      keys[#keys + 1] = key
    end
  end
  table.sort(keys, less)
  return keys, more
end

local show

local function show_table(t, depth, above)
  if above[t] then return "{ … }" end                      -- it holds itself
  if depth > DEPTH_MOST then return next(t) == nil and "{}" or "{ … }" end
  above[t] = true
  local parts, length, broken = {}, rawlen(t), false
  for i = 1, math.min(length, ENTRIES_MOST) do parts[i] = show(rawget(t, i), depth + 1, above) end
  if length > ENTRIES_MOST then parts[#parts + 1] = ("… %d more"):format(length - ENTRIES_MOST) end
  local keys, more = keys_of(t, length)
  for _, key in ipairs(keys) do
    local name = type(key) == "string" and key:find "^[%a_][%w_]*$" and not keywords[key] and key
      or "[" .. show(key, depth + 1, above) .. "]"
    parts[#parts + 1] = name .. " = " .. show(rawget(t, key), depth + 1, above)
  end
  if more then parts[#parts + 1] = "…" end
  above[t] = nil
  if #parts == 0 then return "{}" end
  local wide = 2 * depth + 4
  for _, part in ipairs(parts) do
    wide, broken = wide + #part + 2, broken or part:find "\n" ~= nil
  end
  if wide <= WIDE and not broken then return "{ " .. table.concat(parts, ", ") .. " }" end
  local indent = ("  "):rep(depth)
  return "{\n" .. indent .. table.concat(parts, ",\n" .. indent) .. "\n"
    .. ("  "):rep(depth - 1) .. "}"
end

function show(value, depth, above)
  if type(value) == "string" then return quoted(value) end
  local meta = getmetatable(value)
  if type(value) == "table" and not (type(meta) == "table" and rawget(meta, "__tostring")) then
    local name = type(meta) == "table" and rawget(meta, "__name")
    return (type(name) == "string" and screen.safe(name) .. " " or "")
      .. show_table(value, depth, above)
  end
  local ok, text = pcall(tostring, value)
  return screen.safe(ok and text or ("(a %s that cannot be shown)"):format(type(value)))
end

---A value as a text, at most so deep and so long; tables with their keys in order.
---@param value any
---@return string
function repl.show(value) return show(value, 1, {}) end

-- ---- completion ---------------------------------------------------------------------------------

---What a word could become: names of globals, and of what tables hold: "pyramid.mo".
---@param word string
---@return string[]
function repl.complete(word)
  local found, at, path = {}, _G, ""
  for name, mark in word:gmatch "([%a_][%w_]*)([.:])" do
    if type(at) ~= "table" then return found end
    at, path = rawget(at, name), path .. name .. mark
  end
  local meta = getmetatable(at)
  local index = type(meta) == "table" and rawget(meta, "__index") or nil
  for _, holder in ipairs { type(at) == "table" and at or {}, type(index) == "table" and index
    or {} } do
    for key in next, holder do
      if type(key) == "string" and key:find "^[%a_][%w_]*$"
        and key:sub(1, #word - #path) == word:sub(#path + 1) then
        found[#found + 1] = path .. key
      end
    end
  end
  table.sort(found)
  return found
end

return repl
