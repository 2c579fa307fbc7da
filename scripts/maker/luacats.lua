-- luacats.lua: reads the LuaCATS annotations of Lua files: classes with their fields, and public
-- functions (those at the first column) with parameters and returns. lua_api.lua makes a page of
-- them, and spec/tools/annotations_spec.lua checks them.
--
-- What is read, in the order in which it may stand before a declaration:
--
--   ---Prose, over any number of lines.
--   ---@class pyramid.Model: userdata      prose for fields and classes may follow the type,
--   ---@field path string                  two blanks behind it, and go on in lines of its own
--   ---@param text? string
--   ---@return integer? count   what it is
--   local Model = {}            the variable that methods of the class are defined on
--   function Model:encode(text) …
local luacats = {}

-- Where the type ends that begins at `from`: brackets are balanced, and a function's returns are
-- part of it. "fun(a: b): c?, d?   prose" -> behind "d?".
local function type_end(text, from)
  local at, depth = from, 0
  local is_function = text:find("^fun%(", from)
  while at <= #text do
    local c = text:sub(at, at)
    if c == '"' then at = text:find('"', at + 1, true) or #text
    elseif c:find "[%(%[{<]" then depth = depth + 1
    elseif c:find "[%)%]}>]" then depth = depth - 1
    elseif c == " " and depth == 0 then
      local before, after = text:sub(at - 1, at - 1), text:match("^ (%S)", at)
      local goes_on = is_function and (before == ":" or before == ",") and after
      if not goes_on then return at - 1 end
    end
    at = at + 1
  end
  return #text
end

-- "text? string   prose" -> name, type, prose, whether it may be left out.
local function named_type(rest)
  local name, optional, at = rest:match "^([%w_%.%[%]]+)(%??)%s+()"
  if not name then return nil end
  local last = type_end(rest, at)
  return { name = name, type = rest:sub(at, last), optional = optional == "?",
    doc = rest:sub(last + 1):match "^%s*(.-)%s*$" }
end

-- "integer? count   prose", also several with commas between.
local function returns_of(rest)
  local list, at = {}, 1
  while at <= #rest do
    local last = type_end(rest, at)
    local kind = rest:sub(at, last):gsub(",$", "")
    local name, past = rest:match("^%s*([%a_%.][%w_%.]*),?()", last + 1)
    local more = past and rest:sub(past - 1, past - 1) == ","
    if rest:find("^%s%s", last + 1) then name = nil end          -- two blanks: prose
    list[#list + 1] = { type = kind, name = name }
    if not more then
      local from = list[#list].name and past or last + 1
      list[#list].doc = rest:sub(from):match "^%s*(.-)%s*$"
      break
    end
    at = rest:match("^%s*()", past)
  end
  return list
end

-- What a block of comment lines says.
local function read_block(lines, place)
  local block = { doc = {}, params = {}, returns = {}, fields = {}, operators = {}, place = place }
  local last                                                     -- what lines of prose go on
  for _, line in ipairs(lines) do
    local kind, rest = line:match "^%-%-%-@(%w+)%s*(.*)"
    if kind == "param" then
      last = named_type(rest)
      block.params[#block.params + 1] = last
    elseif kind == "return" then
      local list = returns_of(rest)
      table.move(list, 1, #list, #block.returns + 1, block.returns)
      last = list[#list]
    elseif kind == "field" then
      local scope, behind = rest:match "^(%l+)%s+(.*)"
      local hidden = scope == "private" or scope == "package" or scope == "protected"
      last = named_type(hidden and behind or rest) or { doc = "", name = rest, type = "" }
      last.hidden = hidden
      block.fields[#block.fields + 1] = last
    elseif kind == "class" or kind == "alias" then
      local name, behind = rest:match "^([%w_%.]+)%s*(.*)"
      local parent, past = behind:match "^:%s*([%w_%.]+)%s*()"
      block.class, block.parent, block.alias = name, parent, kind == "alias" and behind or nil
      last = { doc = kind == "alias" and "" or behind:sub(past or 1) }
      block.about = last
    elseif kind == "overload" then
      block.overload, last = rest, { doc = "" }
    elseif kind == "operator" then
      block.operators[#block.operators + 1] = rest
      last = { doc = "" }
    elseif kind == "type" then
      block.type, last = rest, { doc = "" }
    elseif kind then
      last = { doc = "" }
    else
      local text = line:gsub("^%-%-%-?", "")
      if last then last.doc = (last.doc .. " " .. text:match "^%s*(.-)%s*$"):match "^%s*(.-)$"
      else block.doc[#block.doc + 1] = text:match "^(.-)%s*$" end
    end
  end
  return block
end

-- The lines of a function's body, from its head on.
local function body_of(lines, at)
  local body = { lines[at] }
  if lines[at]:find "%f[%w]end%s*$" then return body end
  for i = at + 1, #lines do
    body[#body + 1] = lines[i]
    if lines[i]:find "^end" then break end
  end
  return body
end

---Reads a file.
---@param path string
---@return { classes: table[], functions: table[], uses: table[], head: string[] }
function luacats.read(path)
  local lines, found = {}, { classes = {}, functions = {}, uses = {}, head = {} }
  for line in io.lines(path) do lines[#lines + 1] = line end
  local block, began, owners = {}, 1, {}
  for at, line in ipairs(lines) do
    if line:find "^%-%-%-" then
      if #block == 0 then began = at end
      block[#block + 1] = line
    else
      if #block > 0 then
        local read = read_block(block, ("%s:%d"):format(path, began))
        if began == 1 then found.head = read.doc end
        if read.class then
          read.variable = line:match "^local ([%a_][%w_]*) ="
          if read.variable then owners[read.variable] = read.class end
          found.classes[#found.classes + 1] = read
        end
        for _, list in ipairs { read.params, read.returns, read.fields } do
          for _, one in ipairs(list) do found.uses[#found.uses + 1] = { one.type, read.place } end
        end
        for _, text in ipairs { read.parent or "", read.type or "", read.overload or "",
          read.alias or "", table.unpack(read.operators) } do
          found.uses[#found.uses + 1] = { text, read.place }
        end
        block.read = read
      end
      local owner, sign, name, parameters =
        line:match "^function ([%a_][%w_%.]*)([%.:])([%a_][%w_]*)%s*%(([^)]*)%)"
      if name and not name:find "^__" then
        local f = block.read or read_block({}, ("%s:%d"):format(path, at))
        f.owner, f.method, f.name, f.path = owner, sign == ":", name, path
        f.class = owners[owner]
        f.parameters, f.body = {}, body_of(lines, at)
        f.documented = #f.doc > 0
        for parameter in parameters:gmatch "[%w_%.]+" do
          f.parameters[#f.parameters + 1] = parameter
        end
        found.functions[#found.functions + 1] = f
      end
      block = {}
    end
  end
  return found
end

return luacats
