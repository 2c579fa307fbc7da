--- Text of strangers on a terminal: what a model writes, what a file says of itself.
---
--- A terminal obeys what it is sent: an ESC in a text moves the cursor, renames the window, or has
--- the terminal type for its user. So no control character of such a text gets there. They are
--- shown: ESC as ^[, others as <U+009B>, and so are those that turn the direction of a line.
---
---   local out = screen.writer(io.stdout)
---   for piece in run do out:push(piece) end
---   out:finish()
---
--- What goes to no terminal, a pipe or a file, goes as it is.
local core = require "pyramid.core"
local terminal = require "pyramid.terminal"

local screen = {}

-- Characters that nobody sees, but in what becomes of the rest.
local function is_control(code)
  return code < 0x20 and code ~= 0x0A and code ~= 0x09 or code >= 0x7F and code < 0xA0
    or code >= 0x2028 and code <= 0x202E or code >= 0x2066 and code <= 0x2069
    or code == 0x200E or code == 0x200F or code == 0x061C or code == 0xFEFF
    or code >= 0xFFF9 and code <= 0xFFFB or code >= 0xE0000 and code <= 0xE007F
end

local function shown(code)
  if code < 0x20 then return "^" .. string.char(code + 64) end
  if code == 0x7F then return "^?" end
  return ("<U+%04X>"):format(code)
end

-- Calls f(character, code) for each; bytes that are none come as U+FFFD.
local function each_character(text, f)
  local at = 1
  while at <= #text do
    local good, bad = utf8.len(text, at, -1)
    local last = good and #text or bad - 1
    for _, code in utf8.codes(text:sub(at, last)) do f(utf8.char(code), code) end
    if not good then f("\u{FFFD}", 0xFFFD) end
    at = last + 2
  end
end

---A text that does nothing to a terminal but appear. Line breaks and tabulators stay.
---@param text string
---@return string
function screen.safe(text)
  if not text:find "[^\n\t -~]" then return text end
  local out = {}
  each_character(text:gsub("\r\n", "\n"), function(character, code)
    out[#out + 1] = is_control(code) and shown(code) or character
  end)
  return table.concat(out)
end

---Whether an open file is a terminal that control sequences mean something to.
---@param stream file*
---@return boolean
function screen.understands(stream)
  return core.terminal(stream) ~= nil and (os.getenv "TERM" or "dumb") ~= "dumb"
end

---Columns that there are on a terminal's line; nil where it is none.
---@param stream file*
---@return integer?
function screen.width(stream)
  local columns = core.terminal(stream)
  if not columns then return nil end
  return columns > 0 and columns or math.tointeger(tonumber(os.getenv "COLUMNS")) or 80
end

-- ---- text that streams --------------------------------------------------------------------------

--- Writes a text that comes in pieces, and breaks its lines at words where a terminal's end. The
--- width is asked for at each piece, so that a window may change meanwhile. Blanks and empty lines
--- stay, but for the blank that a line is broken at. A word that is wider than a line is broken
--- where that ends; characters of two columns, such as Chinese ones, are words of their own.
---
---   blank   what stands before the word, and is written with it if both have room
---   word    appears once something follows it, since more letters might
---@class pyramid.ScreenWriter
---@field package stream file*
---@field package given_width integer?
---@field package used integer   columns of the line
local Writer = {}
Writer.__index = Writer

---@param stream file*
---@param width? integer  instead of the terminal's
---@return pyramid.ScreenWriter
function screen.writer(stream, width)
  return setmetatable({ stream = stream, given_width = width, used = 0, blank = "", word = "",
    wide = 0, rest = "" }, Writer)
end

local function put(self, text, columns)
  self.stream:write(text)
  self.used = self.used + columns
end

local function new_line(self)
  self.stream:write "\n"
  self.used = 0
end

local function put_word(self)
  if self.wide == 0 and self.word == "" then return end
  if self.used + #self.blank + self.wide <= self.width then
    put(self, self.blank, #self.blank)
  elseif self.used > 0 then
    new_line(self)
  end
  put(self, self.word, self.wide)
  self.blank, self.word, self.wide = "", "", 0
end

local function take(self, character, code)
  if code == 0x0A then
    put_word(self)
    new_line(self)
    self.blank = ""
    return
  end
  if code == 0x20 or code == 0x09 then
    put_word(self)
    local place = self.used + #self.blank
    local more = code == 0x20 and 1 or 8 - place % 8
    -- one stands between words even where the line is full: the next word then has no room. More
    -- than fit are not kept
    more = math.min(more, math.max(self.width - place, self.blank == "" and 1 or 0))
    self.blank = self.blank .. (" "):rep(more)
    return
  end
  if is_control(code) then character = shown(code) end
  local columns = terminal.columns(character)
  if columns == 2 and not is_control(code) then
    put_word(self)
    self.word, self.wide = character, 2
    return
  end
  if columns > 0 and self.wide + columns > self.width then put_word(self) end
  self.word, self.wide = self.word .. character, self.wide + columns
end

---How many bytes at the end of a text are the beginning of a character.
---@param text string
---@return integer
function screen.begun(text)
  local lead = text:match "[\xC2-\xF4][\x80-\xBF]*$"
  if not lead then return 0 end
  local first = lead:byte()
  local whole = first >= 0xF0 and 4 or first >= 0xE0 and 3 or 2
  return #lead < whole and #lead or 0
end

---Writes what is whole of it.
---@param piece string
function Writer:push(piece)
  local columns = self.given_width or screen.width(self.stream)
  if not columns then self.stream:write(piece)
  else
    self.width = math.max(columns, 4)
    local text = self.rest .. piece
    self.rest = text:sub(#text - screen.begun(text) + 1)
    each_character(text:sub(1, #text - #self.rest):gsub("\r\n", "\n"),
      function(...) take(self, ...) end)
  end
  self.last = piece ~= "" and piece:sub(-1) or self.last
  self.stream:flush()
end

---A text with the lines that a writer would give it, without the last one's end.
---@param text string
---@param width integer
---@return string
function screen.fold(text, width)
  local parts = {}
  local writer = screen.writer({ write = function(_, part) parts[#parts + 1] = part end,
    flush = function() end }, width)
  writer:push(text)
  writer:finish()
  return (table.concat(parts):gsub("\n$", ""))
end

---Writes the rest, and ends the line, if one has begun.
---@return boolean ended
function Writer:finish()
  local begun_line = not self.width and self.last and self.last ~= "\n"
  if self.width then
    each_character(self.rest, function(...) take(self, ...) end)
    put_word(self)
    begun_line = self.used > 0
  end
  if begun_line then new_line(self) end
  self.blank, self.rest, self.last = "", "", nil
  self.stream:flush()
  return begun_line or false
end

return screen
