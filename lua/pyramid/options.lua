--- Checking option tables: unknown keys and wrong types are errors that say what would be right.
local options = {}

local function sorted_keys(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = tostring(key) end
  table.sort(keys)
  return keys
end

options.sorted_keys = sorted_keys

---The integer that a number is, as JSON's 2.0 is 2; anything else as it came.
---@param value any
---@return any
function options.whole(value)
  return math.type(value) == "float" and math.tointeger(value) or value
end

---What misuse raised, without its place in a source: for who asks on behalf of somebody else.
---@param raised any
---@return string
function options.without_place(raised) return (tostring(raised):gsub("^[^%s:]+:%d+: ", "")) end

---Raises unless `given` is nil or a table whose keys are all in `known` (a set, or a table of types
---by key: "string", "integer|string", "any"). Returns `given` or an empty table; where integers are
---wanted, whole numbers are integers in what is returned (a copy then: what was given stays as it
---is).
---@param what string  how messages begin: "model:cache"
---@param given table|nil
---@param known table<string, string|true>
---@param level? integer  whom errors blame; 2 is the caller's caller
---@return table
function options.check(what, given, known, level)
  level = (level or 2) + 1
  if given == nil then return {} end
  if type(given) ~= "table" then
    error(("%s: options must be a table, not a %s"):format(what, type(given)), level)
  end
  local checked = given
  for key, value in pairs(given) do
    local wanted = known[key]
    if not wanted then
      error(("%s: unknown option '%s' (known: %s)"):format(what, tostring(key),
        table.concat(sorted_keys(known), ", ")), level)
    end
    if wanted ~= true and wanted ~= "any" then
      local matches, integers = false, false
      for name in wanted:gmatch("[^|]+") do
        integers = integers or name == "integer"
        if type(value) == name or math.type(value) == name then matches = true end
      end
      if integers and not matches and math.type(options.whole(value)) == "integer" then
        if checked == given then
          checked = {}
          for k, v in pairs(given) do checked[k] = v end
        end
        checked[key], matches = options.whole(value), true
      end
      if not matches then
        error(("%s: option '%s' must be %s, not %s (%s)"):format(what, key,
          wanted:gsub("|", " or "), math.type(value) or type(value), tostring(value)), level)
      end
    end
  end
  return checked
end

local units = { [""] = 1, B = 1, KB = 1e3, MB = 1e6, GB = 1e9, KIB = 2^10, MIB = 2^20, GIB = 2^30,
  K = 2^10, M = 2^20, G = 2^30 }

---Bytes of a size such as 1048576, "512 MiB", "1.5GB" or "64k"; nil means no limit (0). Raises on
---anything else.
---@param what string
---@param size integer|string|nil
---@param level? integer  whom errors blame; 2 is the caller's caller
---@return integer
function options.bytes(what, size, level)
  if size == nil then return 0 end
  size = options.whole(size)
  if math.type(size) == "integer" and size >= 0 then return size end
  if type(size) == "string" then
    local number, unit = size:match("^%s*(%d+%.?%d*)%s*(%a*)%s*$")
    local scale = unit and units[unit:upper()]
    if scale then return math.floor(tonumber(number) * scale) end
  end
  error(("%s: '%s' is not a size (write bytes, or a text such as \"512 MiB\")"):format(what,
    tostring(size)), (level or 2) + 1)
end

return options
