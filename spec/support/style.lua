-- style.lua: how wide lines are, and how much of the sources is comment.
--
-- A line has at most 100 columns, also of pages, styles and browsers' scripts. Free of it are
-- generated tables, texts and patterns that a literal holds, and annotations (---@), whose types
-- cannot be broken. Where the work is (see `work`), 25 to 40 of 100 lines that are not empty hold a
-- comment, in each room as a whole. Prints the shares of all rooms; each violation goes to standard
-- error, and exits 1.
local COLUMNS, LEAST, MOST = 100, 25, 40
local work = { ["core/policy"] = true, ["core/cache"] = true, ["core/cpu"] = true, kernels = true,
  ["core/model"] = true, ["core/sample"] = true }

local bad = 0
local function complain(...)
  bad = bad + 1
  io.stderr:write(string.format(...), "\n")
end

local function width(line) return utf8.len(line) or #line end

-- Whether a literal alone makes the line too long: what is left of it without its longest literal
-- and what stands before it is short.
local function holds_literal(line)
  for _, literal in ipairs { '"[^"]*"', "'[^']*'", "%[=*%[.*%]=*%]" } do
    for found in line:gmatch(literal) do
      if width(found) > COLUMNS - 36 then return true end
    end
  end
  return false
end

-- Lines of a file that hold a comment, and that are not empty. C's block comments and Lua's lines.
local function look(path)
  local lua, comments, lines, inside, long = path:find "%.lua$", 0, 0, false, nil
  local number = 0
  for line in io.lines(path) do
    number = number + 1
    local text = line:match "^%s*(.-)%s*$"
    local free = line:find "^%s*%-%-%-@" or long or line:find "%[=*%[[^%]]*$" or holds_literal(line)
    if width(line) > COLUMNS and not free then
      complain("%s:%d: %d columns, at most %d", path, number, width(line), COLUMNS)
    end
    if text ~= "" then
      lines = lines + 1
      if lua then
        if not long and (text:find "^%-%-" or text:find "%s%-%- %S") then
          comments = comments + 1
        end
      elseif inside or text:find "/%*" or text:find "//" then comments = comments + 1 end
    end
    if lua then
      if long then
        if line:find(long, 1, true) then long = nil end
      else
        local equals = line:match "%[(=*)%[[^%]]*$"
        if equals then long = "]" .. equals .. "]" end
      end
    elseif inside then inside = not line:find "%*/"
    else inside = text:find "/%*" and not text:find "/%*.*%*/" end
  end
  return comments, lines
end

local function room_of(path)
  local first, second = path:match "^([^/]+)/([^/]+)/"
  if first == "core" or second == "proofs" then return first .. "/" .. second end
  return path:match "^([^/]+)/"
end

local files = io.popen("git ls-files core kernels lua policies scripts spec 2>/dev/null")
local rooms, names = {}, {}
for path in files:lines() do
  local source = path:find "%.[ch]$" or path:find "%.inc$" or path:find "%.cuh?$"
    or path:find "%.cpp$" or path:find "%.lua$"
  if source and not path:find "^spec/fixtures/" and not path:find "_tables%." then
    local name = room_of(path)
    if not rooms[name] then
      rooms[name] = { 0, 0 }
      names[#names + 1] = name
    end
    local comments, lines = look(path)
    rooms[name][1], rooms[name][2] = rooms[name][1] + comments, rooms[name][2] + lines
  elseif path:find "^lua/.*%.html$" or path:find "^lua/.*%.css$" or path:find "^lua/.*%.js$" then
    look(path)
  end
end
files:close()

table.sort(names)
for _, name in ipairs(names) do
  local share = 100 * rooms[name][1] / rooms[name][2]
  print(("%-14s %6d lines, %4.1f %% comments"):format(name, rooms[name][2], share))
  if work[name] and (share < LEAST or share > MOST) then
    complain("%s: %.1f %% of its lines are comments, not between %d and %d", name, share, LEAST,
      MOST)
  end
end
if bad > 0 then os.exit(1) end
