--- Files of JSON lines and of comma-separated values, read whole, with messages that name the line.
local json = require "pyramid.json"

local lines = {}

---The values of JSON lines; empty lines are skipped.
---@param path string     for messages
---@param text string
---@return table[]?
---@return string? message
---@return string? code
function lines.json(path, text)
  local out, number = {}, 0
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    number = number + 1
    if line:find "%S" then
      local value, message = json.decode(line)
      if type(value) ~= "table" then
        return nil, ("%s, line %d: %s"):format(path, number, message or "no JSON object"), "format"
      end
      value.line = number
      out[#out + 1] = value
    end
  end
  if #out == 0 then return nil, path .. ": it has no lines", "format" end
  return out
end

---The rows of comma-separated values (RFC 4180): sequences of fields.
---@param path string
---@param text string
---@return string[][]?
---@return string? message
---@return string? code
function lines.csv(path, text)
  local rows, row, at = {}, {}, 1
  while at <= #text do
    local field
    if text:sub(at, at) == '"' then
      local parts, from = {}, at + 1
      while true do
        local quote = text:find('"', from, true)
        if not quote then
          return nil, ("%s: row %d: a quotation mark has no end"):format(path, #rows + 1), "format"
        end
        parts[#parts + 1] = text:sub(from, quote - 1)
        from = quote + 1
        if text:sub(from, from) ~= '"' then break end
        parts[#parts + 1], from = '"', from + 1
      end
      field, at = table.concat(parts), from
    else
      local past = text:find("[,\r\n]", at) or #text + 1
      field, at = text:sub(at, past - 1), past
    end
    row[#row + 1] = field
    local following = text:sub(at, at)
    if following == "," then
      at = at + 1
      if at > #text then row[#row + 1] = "" end
    else
      at = text:match("^\r?\n?()", at)
      if #row > 1 or row[1] ~= "" then rows[#rows + 1] = row end
      row = {}
    end
  end
  if #row > 0 then rows[#rows + 1] = row end
  return rows
end

---A field as comma-separated values have it.
---@param value any
---@return string
function lines.field(value)
  local text = tostring(value)
  if text:find '[",\r\n]' then return '"' .. text:gsub('"', '""') .. '"' end
  return text
end

return lines
