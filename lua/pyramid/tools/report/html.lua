--- HTML and SVG as text: everything that comes from outside is escaped here, and nowhere else.
local core = require "pyramid.core"

local html = {}

local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;",
  ["'"] = "&#39;" }

---A text as it stands between tags or in an attribute.
---@param text any
---@return string
function html.text(text) return (tostring(text):gsub("[&<>\"']", entities)) end

local function number(value)
  if math.type(value) == "float" then return (("%.2f"):format(value):gsub("%.?0+$", "")) end
  return tostring(value)
end

---An element. Attributes are escaped and sorted, floats rounded to what a screen shows; false
---leaves one out and true has no value. Content is HTML: a string, or a list of them.
---@param name string
---@param attributes? table<string, string|number|boolean>
---@param content? string|string[]
---@return string
function html.element(name, attributes, content)
  local _ <close> = core.plain_locale()
  local keys, parts = {}, { "<" .. name }
  for key, value in pairs(attributes or {}) do
    if value then keys[#keys + 1] = key end
  end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local value = attributes[key]
    parts[#parts + 1] = value == true and " " .. key
      or (' %s="%s"'):format(key, html.text(type(value) == "number" and number(value) or value))
  end
  parts[#parts + 1] = ">"
  if type(content) == "table" then content = table.concat(content) end
  if content then parts[#parts + 1] = content end
  parts[#parts + 1] = ("</%s>"):format(name)
  return table.concat(parts)
end

return html
