--- Pictures in a terminal: bars, pyramids, strips of positions, tables, progress. Everything is
--- built as text, so that a program can print it anywhere; widths are counted in columns of the
--- terminal.
---
---   local pic = picture.new(io.stdout)
---   print(pic:bar(0.3, 20), pic:paint("30 %", "good"))
local core = require "pyramid.core"

local picture = {}

---@class pyramid.Picture
---@field width integer     columns there are, at most 120: a wider bar says no more
---@field terminal boolean  whether it goes to a terminal
---@field colour boolean
---@field ascii boolean     only ASCII characters
local Picture = {}
Picture.__index = Picture
Picture.__name = "pyramid.tools.picture"

-- From the first layer to the last: the hue goes from deep to light, as a pyramid's steps would in
-- the sun.
local depths = { 61, 62, 68, 74, 79, 114, 150, 186, 222, 221, 215, 209 }
local colours = { dim = "2", bold = "1", good = "38;5;114", accent = "38;5;215", warn = "38;5;203",
  frame = "38;5;240" }
local shades = { utf8 = { [0] = " ", "░", "▒", "▓", "█" },
  ascii = { [0] = " ", ".", ":", "o", "#" } }
local eighths = { [0] = "", "▏", "▎", "▍", "▌", "▋", "▊", "▉" }

local function set(name)
  local value = os.getenv(name)
  return value and value ~= "" and value or nil
end

-- A locale that nobody has set says nothing, and terminals of today read UTF-8: only a locale that
-- names another charset counts.
local function speaks_utf8()
  local locale = set "LC_ALL" or set "LC_CTYPE" or set "LANG"
  return not locale or locale:lower():find("utf%-?8") ~= nil
end

---A picture for a stream: how wide it is and what it can show is asked of the terminal and the
---environment.
---@param stream? file*   io.stdout by default
---@param given? { width?: integer, colour?: boolean, ascii?: boolean }
---@return pyramid.Picture
function picture.new(stream, given)
  given = given or {}
  local columns = core.terminal(stream or io.stdout)
  local width = given.width or (columns and columns > 0 and columns)
    or math.tointeger(tonumber(set "COLUMNS")) or 80
  local self = { width = math.max(40, math.min(width, 120)), terminal = columns ~= nil,
    colour = given.colour, ascii = given.ascii }
  if self.colour == nil then
    self.colour = columns ~= nil and not set "NO_COLOR" and set "TERM" ~= "dumb"
  end
  if self.ascii == nil then self.ascii = not speaks_utf8() end
  return setmetatable(self, Picture)
end

---Columns that a text takes: its characters, without colours.
---@param text string
---@return integer
function picture.columns(text)
  text = text:gsub("\27%[[%d;]*%a", "")
  return utf8.len(text) or #text
end

---A text padded to a width: to the left ("<", the default), to the right (">") or in the middle
---("^").
---@param text string
---@param width integer
---@param align? "<"|">"|"^"
---@return string
function picture.pad(text, width, align)
  local room = math.max(0, width - picture.columns(text))
  local left = align == ">" and room or align == "^" and room // 2 or 0
  return (" "):rep(left) .. text .. (" "):rep(room - left)
end

---A text cut to a width, with an ellipsis if something is lost.
---@param text string
---@param width integer
---@return string
function Picture:cut(text, width)
  if picture.columns(text) <= width then return text end
  local mark = self.ascii and "..." or "…"
  local stop = utf8.offset(text, width - picture.columns(mark) + 1)
  return text:sub(1, (stop or #text + 1) - 1) .. mark
end

---A text in a colour: "dim", "bold", "good", "accent", "warn", "frame", or a depth from 0 to 1.
---@param text string
---@param how string|number
---@return string
function Picture:paint(text, how)
  if not self.colour or text == "" then return text end
  local code = colours[how]
  if type(how) == "number" then
    code = "38;5;" .. depths[math.min(#depths, 1 + math.floor(math.max(0, how) * #depths))]
  end
  return ("\27[%sm%s\27[0m"):format(code, text)
end

-- What a bar leaves free of its width.
local function field(self, width)
  return self:paint((self.ascii and "." or "·"):rep(width), "frame")
end

local function clamp(share) return share == share and math.max(0, math.min(share, 1)) or 0 end

---A bar from the left: `share` (0 to 1) of `width` columns, to an eighth of a column.
---@param share number
---@param width integer
---@param how? string|number   its colour
---@return string
function Picture:bar(share, width, how)
  local steps = self.ascii and 1 or 8
  local units = math.floor(clamp(share) * width * steps + 0.5)
  local full, rest = units // steps, units % steps
  local text = ((self.ascii and "#" or "█"):rep(full)) .. (rest > 0 and eighths[rest] or "")
  return self:paint(text, how or "good") .. field(self, width - full - (rest > 0 and 1 or 0))
end

---A bar from the left of what was and what is left of it: `after` solid, the rest up to `before`
---shaded (both 0 to 1 of `width` columns).
---@param after number
---@param before number
---@param width integer
---@param how? string|number   the colour of what stayed
---@return string
function Picture:loss(after, before, width, how)
  local set_of = self.ascii and shades.ascii or shades.utf8
  local was = math.floor(clamp(before) * width + 0.5)
  local stays = math.min(math.floor(clamp(after) * width + 0.5), was)
  return self:paint(set_of[4]:rep(stays), how or "good")
    .. self:paint(set_of[2]:rep(was - stays), "warn") .. field(self, width - was)
end

---A bar from the middle to both sides, to half a column: layers of these make a pyramid. `width`
---should be even.
---@param share number
---@param width integer
---@param how? string|number
---@return string
function Picture:step(share, width, how)
  local side = width // 2
  local halves = math.floor(clamp(share) * side * 2 + 0.5)
  if halves == 0 and share > 0 then halves = 1 end
  local full, half = halves // 2, halves % 2 == 1
  if self.ascii then full, half = (halves + 1) // 2, false end
  local free = field(self, side - full - (half and 1 or 0))
  local body = (self.ascii and "#" or "█"):rep(2 * full)
  if half then body = "▐" .. body .. "▌" end
  return free .. self:paint(body, how or "good") .. free
end

---Where rows lie among `total` positions: `width` columns from the first to the last, shaded by the
---share of a column's positions that are there: none, some, a third, two thirds, all. `lanes` is a
---list of sequences of positions from 0 (one for each KV head); they are averaged.
---@param lanes integer[][]
---@param total integer
---@param width integer
---@param how? string|number
---@return string
function Picture:strip(lanes, total, width, how)
  local counts, cells, set_of = {}, {}, self.ascii and shades.ascii or shades.utf8
  local wanted = width
  width = math.min(width, math.max(total, 1))   -- fewer positions than columns: one column each
  for column = 0, width - 1 do counts[column] = 0 end
  for _, positions in ipairs(lanes) do
    for _, position in ipairs(positions) do
      if position < total then
        local column = position * width // total
        counts[column] = counts[column] + 1
      end
    end
  end
  for column = 0, width - 1 do
    -- positions p with p * width // total == column
    local first, past = (column * total + width - 1) // width,
      ((column + 1) * total + width - 1) // width
    local share = past > first and counts[column] / ((past - first) * math.max(1, #lanes)) or 0
    cells[column + 1] = set_of[share <= 0 and 0 or share < 1 and 1 + math.floor(share * 3) or 4]
  end
  return self:paint(table.concat(cells), how or "good") .. (" "):rep(wanted - width)
end

---What `strip` shades mean, from no row to all.
---@return string
function Picture:legend()
  local s = self.ascii and shades.ascii or shades.utf8
  return ("%s few %s %s most %s all"):format(s[1], s[2], s[3], s[4])
end

---A horizontal rule with a title in it.
---@param title? string
---@param width? integer
---@return string
function Picture:rule(title, width)
  local line = self.ascii and "-" or "─"
  width = width or self.width
  if not title then return self:paint(line:rep(width), "frame") end
  local free = math.max(0, width - picture.columns(title) - 4)
  return ("%s %s %s"):format(self:paint(line:rep(2), "frame"), self:paint(title, "bold"),
    self:paint(line:rep(free), "frame"))
end

---Lines of a table whose columns are as wide as what is in them. Cells are texts; `aligns` is one
---character a column.
---@param rows string[][]
---@param aligns string     such as "<>>": the last one holds for the rest
---@param gap? integer
---@return string[]
function picture.table(rows, aligns, gap)
  local widths, lines = {}, {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do widths[i] = math.max(widths[i] or 0, picture.columns(cell)) end
  end
  for r, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do
      local align = aligns:sub(math.min(i, #aligns), math.min(i, #aligns))
      cells[i] = picture.pad(cell, widths[i], align)
    end
    lines[r] = table.concat(cells, (" "):rep(gap or 2)):gsub("%s+$", "")
  end
  return lines
end

---What a cache holds, layer by layer: rows (the mean over KV heads), and the positions of each
---head.
---@param cache pyramid.Cache
---@param config pyramid.Config
---@return { rows: number, lanes: integer[][] }[]
function picture.survey(cache, config)
  local layers = {}
  for layer = 1, config.layers do
    local lanes, rows = {}, 0
    for head = 1, config.kv_heads do
      lanes[head] = assert(cache:positions(layer, head))
      rows = rows + #lanes[head]
    end
    layers[layer] = { rows = rows / config.kv_heads, lanes = lanes }
  end
  return layers
end

-- ---- text that streams --------------------------------------------------------------------------

---@class pyramid.Writer   wraps a text that comes in pieces between two margins
local Writer = {}
Writer.__index = Writer

---@param given? { stream?: file*, indent?: integer, width?: integer, how?: string|number }
---@return pyramid.Writer
function Picture:writer(given)
  given = given or {}
  local indent = given.indent or 0
  return setmetatable({ picture = self, stream = given.stream or io.stdout,
    indent = (" "):rep(indent), how = given.how, room = (given.width or self.width) - indent,
      used = 0, word = "" }, Writer)
end

local function put_word(self)
  local width = picture.columns(self.word)
  if width == 0 then return end
  local space = self.used > 0 and self.space
  if self.used > 0 and self.used + (space and 1 or 0) + width > self.room then
    self.stream:write "\n"
    self.used, space = 0, false
  end
  if self.used == 0 then self.stream:write(self.indent) end
  self.stream:write(space and " " or "", self.how and self.picture:paint(self.word, self.how)
    or self.word)
  self.used = self.used + (space and 1 or 0) + width
  self.word, self.space = "", false
end

---Writes what is whole of it: a word appears when its end is known.
---@param piece string
function Writer:push(piece)
  for text, blank in piece:gmatch "([^%s]*)(%s?)" do
    self.word = self.word .. text
    if blank ~= "" then
      put_word(self)
      self.space = true
      if blank == "\n" then
        if self.used > 0 then self.stream:write "\n" end
        self.used = 0
      end
    end
  end
  self.stream:flush()
end

---Writes the rest and ends the line.
function Writer:finish()
  put_word(self)
  if self.used > 0 then self.stream:write "\n" end
  self.used = 0
  self.stream:flush()
end

-- ---- progress -----------------------------------------------------------------------------------

---@class pyramid.Progress
---@field update fun(done: integer, total: integer)   as cache:prefill and pyramid.model call it
---@field note string?                                shown behind the bar
local Progress = {}
Progress.__index = Progress

local shown                                  -- the bar that is on the terminal's line now, if any

---Seconds as people read them.
---@param seconds number
---@return string
function picture.seconds(seconds)
  if seconds < 0.0995 then return ("%.0f ms"):format(seconds * 1000) end
  if seconds < 9.95 then return ("%.2f s"):format(seconds) end
  if seconds < 99.5 then return ("%.0f s"):format(seconds) end
  if seconds < 5970 then
    return ("%d min %02d s"):format(seconds // 60, math.floor(seconds % 60))
  end
  return ("%d h %02d min"):format(seconds // 3600, math.floor(seconds % 3600 / 60))
end

-- Fits the terminal as it is now: a line that is wider than it would stay when it is erased.
local function line(self, done, total, elapsed)
  local share = total > 0 and done / total or 0
  local columns = core.terminal(self.stream) or 0
  if columns > 0 then self.picture.width = math.min(columns, 120) end
  if self.picture.width < 24 + 8 + picture.columns(self.label) then
    return ("%s %d %%"):format(self.picture:cut(self.label, math.max(1, self.picture.width - 7)),
      math.floor(share * 100))
  end
  local left = ""
  if share > 0 and share < 1 and elapsed > 0.5 then
    left = picture.seconds(elapsed / share * (1 - share)) .. " left"
  end
  local text = ("%3d %%"):format(math.floor(share * 100))
  local room = self.picture.width - picture.columns(self.label) - 24
  local note = self.note and self.picture:cut(self.note, math.max(0, room - 12)) or ""
  local wide = math.max(8, math.min(40, room - picture.columns(note)))
  return table.concat({ self.label, self.picture:bar(share, wide, "accent"), text,
    self.picture:paint(picture.pad(left, 12), "dim"), note }, " ")
end

---A progress bar on a terminal's line that cleans up after itself; nothing at all where there is no
---terminal. It appears only after `after` seconds, so that short work shows nothing.
---@param label string
---@param given? { stream?: file*, after?: number }
---@return pyramid.Progress
function picture.progress(label, given)
  local stream = given and given.stream or io.stderr
  local self = setmetatable({ picture = picture.new(stream), stream = stream, label = label,
    after = given and given.after or 0.4, began = core.clock(), drawn = 0 }, Progress)
  self.update = function(done, total)
    if not self.picture.terminal or self.ended or set "TERM" == "dumb" then return end
    local now = core.clock()
    if now - self.began < self.after or now - self.drawn < 0.05 then return end
    self.drawn, shown = now, self
    self.stream:write("\r", line(self, done, total, now - self.began), "\27[K")
    self.stream:flush()
  end
  return self
end

local function erase(self)
  if self.drawn > 0 then
    self.stream:write("\r\27[K")
    self.stream:flush()
  end
  self.drawn = 0
  if shown == self then shown = nil end
end

---Removes the bar, for good: who is still told of progress draws nothing more.
function Progress:close()
  erase(self)
  self.ended = true
end

---Removes the bar that is shown, whosever it is: for a program that has something more important to
---say.
function picture.clear_progress()
  if shown then erase(shown) end
end

Progress.__close = Progress.close

return picture
