--- Functions that every template can call: Jinja's range, dict, namespace, joiner and cycler, and
--- transformers' raise_exception and strftime_now.
---
--- Each is a function of (evaluator, args, named).
local fault = require "pyramid.jinja.fault"
local methods = require "pyramid.jinja.methods"
local values = require "pyramid.jinja.values"

--- Numbers of a range, as in Jinja's sandbox.
local RANGE <const> = 100000

local function dict_of(self, args, by_name)
  local dict = values.dict()
  if args[1] ~= nil then
    if not values.is_dict(args[1]) then
      fault.raise("unsupported", nil, "dict() of a value of type %s", values.type(args[1]))
    end
    for _, key in ipairs(args[1].keys) do values.set(dict, key, values.get(args[1], key)) end
  end
  local names = {}
  for name in pairs(by_name) do names[#names + 1] = name end
  table.sort(names)                          -- Lua keeps no order of names
  for _, name in ipairs(names) do values.set(dict, name, by_name[name]) end
  self:spend(32 * #dict.keys)
  return dict
end

local months = { "January", "February", "March", "April", "May", "June", "July", "August",
  "September", "October", "November",
  "December" }
local days = { "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday" }

-- strftime in English, whatever the locale; `now` is a table of os.date.
local function format_time(format, now)
  local hour12 = (now.hour + 11) % 12 + 1
  local fields = {
    Y = ("%d"):format(now.year), y = ("%02d"):format(now.year % 100),
      m = ("%02d"):format(now.month), d = ("%02d"):format(now.day),
    e = ("%2d"):format(now.day), H = ("%02d"):format(now.hour), I = ("%02d"):format(hour12),
      M = ("%02d"):format(now.min),
    S = ("%02d"):format(now.sec), p = now.hour < 12 and "AM" or "PM", j = ("%03d"):format(now.yday),
      w = ("%d"):format(now.wday - 1),
    B = months[now.month], b = months[now.month]:sub(1, 3), h = months[now.month]:sub(1, 3),
    A = days[now.wday], a = days[now.wday]:sub(1, 3), ["%"] = "%", n = "\n", t = "\t",
  }
  fields.F = ("%s-%s-%s"):format(fields.Y, fields.m, fields.d)
  fields.T = ("%s:%s:%s"):format(fields.H, fields.M, fields.S)
  fields.R = ("%s:%s"):format(fields.H, fields.M)
  fields.D = ("%s/%s/%s"):format(fields.m, fields.d, fields.y)
  local plain = { d = now.day, m = now.month, H = now.hour, I = hour12, M = now.min, S = now.sec,
    j = now.yday, e = now.day }
  return (format:gsub("%%(-?)(.?)", function(bare, c)
    local value = bare == "-" and plain[c] and ("%d"):format(plain[c]) or (bare == "" and fields[c])
    if not value then fault.raise("unsupported", nil, "strftime_now: '%%%s%s'", bare, c) end
    return value
  end))
end

local globals = {}

globals.range = function(self, args)
  local first, last, step = 0, args[1], 1
  if args[2] ~= nil then first, last, step = args[1], args[2], args[3] or 1 end
  for _, v in ipairs { first, last == nil and values.none or last, step } do
    if math.type(v) ~= "integer" then
      fault.raise("argument", nil, "range() takes whole numbers")
    end
  end
  if step == 0 then fault.raise("argument", nil, "range() by steps of zero") end
  local span = (last + 0.0 - first) / step
  if span > RANGE then
    fault.raise("unsupported", nil, "range() of more than %d numbers (the limit of a template)",
      RANGE)
  end
  local items = {}
  for i = first, last + (step > 0 and -1 or 1), step do items[#items + 1] = i end
  self:spend(16 * #items)
  return values.list(items, "range")
end

globals.dict = dict_of

globals.namespace = function(self, args, by_name)
  local space = values.namespace()
  local dict = dict_of(self, args, by_name)
  for _, key in ipairs(dict.keys) do space.map[key] = values.get(dict, key) end
  return space
end

globals.joiner = function(_, args)
  local separator, used = args[1] or ", ", false
  return values.func("joiner", function()
    if used then return separator end
    used = true
    return ""
  end)
end

globals.cycler = function(_, args)
  local at = 0
  if #args == 0 then fault.raise("argument", nil, "cycler() takes at least one value") end
  local cycler = values.func("cycler", function() fault.raise("argument", nil,
    "a cycler cannot be called") end)
  cycler.fields = function(name)
    if name == "next" then
      return values.func("next", function()
        at = at + 1
        return args[(at - 1) % #args + 1]
      end)
    elseif name == "current" then return args[at % #args + 1]
    elseif name == "reset" then
      return values.func("reset", function()
        at = 0
        return values.none
      end)
    end
  end
  return cycler
end

globals.raise_exception = function(self, args)
  local message = args[1] ~= nil and self:text(args[1]) or "the template refuses these messages"
  fault.raise("argument", nil, "%s", message:sub(1, 500))
end

-- The evaluator knows the time that a rendering is told.
globals.strftime_now = function(self, args)
  return format_time(methods.text_argument("strftime_now", args[1] or values.none), self.now)
end

return globals
