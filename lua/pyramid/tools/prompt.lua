--- Where people type: a line, or more of them, from a terminal, and their history in a file.
---
---   local reader <close> = prompt.open { history = "chat" }
---   local text, why = reader:read "> "      -- "end", "interrupt" or "leave", where there is none
---
--- At a terminal a line is edited by the library that pyramid.terminal finds, with keys for what
--- was said before and Tab for completion. Without it, or where TERM is dumb, a few keys do:
--- Backspace, Ctrl-U, Ctrl-D at the beginning. Either way a line is of any length, and what is
--- pasted in one piece is one text, with the lines that it has. Without a terminal a text is a line
--- of standard input.
---
--- The history is in $XDG_STATE_HOME/pyramid/NAME_history (by default ~/.local/state/…): one text a
--- line, with \n and \\ for what a line cannot hold; no other user may read it. It keeps the last
--- LINES_MOST texts, and of a longer one nothing.
local core = require "pyramid.core"
local files = require "pyramid.files"
local screen = require "pyramid.tools.screen"
local store = require "pyramid.tools.store"
local terminal = require "pyramid.terminal"

local prompt = {}

local LINES_MOST = 1000
local TEXT_MOST = 64 << 10          -- bytes of a text that is kept
local FILE_MOST = 16 << 20          -- of a history that is read

-- ---- history ------------------------------------------------------------------------------------

---The folder for what programs remember, made, with the folders above it.
---@return string?
---@return string? message
---@return string? code
function prompt.make_state_folder()
  local folder = store.user_folder("XDG_STATE_HOME", "/.local/state")
  if not folder then return nil, "neither XDG_STATE_HOME nor HOME names a folder", "io" end
  for upper in folder:gmatch "()/" do
    if upper > 1 and not files.exists(folder:sub(1, upper - 1)) then
      local ok, message, code = core.make_folder(folder:sub(1, upper - 1))
      if not ok then return nil, message, code end
    end
  end
  local ok, message, code = core.make_folder(folder)
  if not ok then return nil, message, code end
  return folder
end

local function as_line(text) return (text:gsub("[\\\n]", { ["\\"] = "\\\\", ["\n"] = "\\n" })) end
local function as_text(line) return (line:gsub("\\(.)", function(c)
  return c == "n" and "\n" or c
end)) end

-- The texts of a file, the oldest first, and whether there are so many that it is to be cut.
local function read_history(path)
  local whole = files.read(path, FILE_MOST)
  if not whole then return {}, files.exists(path) end
  local texts = {}
  for line in whole:gmatch "[^\n]+" do texts[#texts + 1] = as_text(line) end
  local extra = #texts - LINES_MOST
  if extra <= 0 then return texts, false end
  return table.move(texts, extra + 1, #texts, 1, {}), true
end

-- nil where there can be no file: then the history ends with the program.
local function open_history(name)
  local folder = prompt.make_state_folder()
  if not folder then return nil, {} end
  local path = ("%s/%s_history"):format(folder, name)
  if not terminal.private(path) then return nil, {} end
  local texts, long = read_history(path)
  if long then
    local lines = {}
    for i, text in ipairs(texts) do lines[i] = as_line(text) end
    files.write(path, #lines > 0 and table.concat(lines, "\n") .. "\n" or "")
    terminal.private(path)
  end
  return path, texts
end

-- ---- a terminal's keys, where nothing edits them ------------------------------------------------

local PASTE_BEGINS, PASTE_ENDS = "\27[200~", "\27[201~"

-- Takes what the keys say next: a character, "\n" and true for Alt-Enter, or what a paste holds and
-- true. nil: more of them must come.
local function take_key(self)
  local keys = self.keys
  if self.pasting then
    local ends = keys:find(PASTE_ENDS, 1, true)
    if not ends then return nil end
    self.keys, self.pasting = keys:sub(ends + #PASTE_ENDS), false
    return keys:sub(1, ends - 1):gsub("\r\n?", "\n"), true
  end
  if keys:sub(1, #PASTE_BEGINS) == PASTE_BEGINS then
    self.keys, self.pasting = keys:sub(#PASTE_BEGINS + 1), true
    return take_key(self)
  end
  -- an escape sequence or a character whose rest has not come yet is waited for
  local partial = #keys < #PASTE_BEGINS and PASTE_BEGINS:sub(1, #keys) == keys
  if partial or screen.begun(keys) == #keys then return nil end
  if keys:find "^\27[\r\n]" then                             -- Alt-Enter
    self.keys = keys:sub(3)
    return "\n", true
  end
  local sequence = keys:match "^\27%[[0-9;]*[@-~]" or keys:match "^\27O."
  local last = sequence and #sequence or #(keys:match "^[\xC2-\xFD][\x80-\xBF]+" or " ")
  self.keys = keys:sub(last + 1)
  if sequence then return take_key(self) end                -- a key that does nothing here
  return keys:sub(1, last), false
end

-- The same, once it has come; nil and why it will not.
local function next_key(self)
  while true do
    local key, other = take_key(self)
    if key then return key, other end
    local more, why = terminal.keys()
    if not more then return nil, why end
    self.keys = self.keys .. more
  end
end

-- Reads keys, and shows them itself.
local function read_keys(self, asking)
  local parts, brackets = {}, screen.understands(self.stream)
  local function show(text) self.stream:write(text) self.stream:flush() end
  local function rub()
    local gone = table.remove(parts)
    if not gone then return false end
    if gone ~= "\n" then
      local wide = terminal.columns(screen.safe(gone))
      show(("\b"):rep(wide) .. (" "):rep(wide) .. ("\b"):rep(wide))
    end
    return true
  end
  terminal.raw(true, brackets)
  local _ <close> = setmetatable({}, { __close = function()
    if brackets then show "\27[?2004l" end
    terminal.raw(false)
  end })
  show((brackets and "\27[?2004h" or "") .. asking)
  while true do
    local key, other = next_key(self)
    if not key then return nil, other, #parts > 0 end
    if other then                                          -- a paste
      for character in key:gmatch "[%z\1-\x7F\xC2-\xFD][\x80-\xBF]*" do
        parts[#parts + 1] = character
      end
      show(screen.safe(key))
    elseif key == "\r" or key == "\n" then
      show "\n"
      return table.concat(parts)
    elseif key == "\4" then
      if #parts == 0 then return nil, "end" end
    elseif key == "\8" or key == "\127" then rub()
    elseif key == "\21" then while rub() do end
    elseif key ~= "\27" then
      parts[#parts + 1] = key
      show(screen.safe(key))
    end
  end
end

-- ---- readers ------------------------------------------------------------------------------------

---@class pyramid.Prompt
---@field terminal boolean      whether somebody types
---@field library? string       what edits lines
---@field history_path? string
local Prompt = {}
Prompt.__index = Prompt

---@param given? { history?: string, edit?: boolean, complete?: fun(word: string, before: string): string[]? }
---  history: the name of its file, else nothing is kept; edit = false: without the library
---@return pyramid.Prompt
function prompt.open(given)
  given = given or {}
  local self = setmetatable({ keys = "", complete = given.complete, stream = io.stdout,
    terminal = core.terminal(io.stdin) ~= nil }, Prompt)
  if not self.terminal then return self end
  if not core.terminal(io.stdout) then self.stream = io.stderr end
  if given.edit ~= false and self.stream == io.stdout and screen.understands(io.stdout) then
    self.library = terminal.library()
  end
  if given.history then
    local texts
    self.history_path, texts = open_history(given.history)
    for _, text in ipairs(texts) do terminal.remember(text) end
    self.last = texts[#texts]
  end
  return self
end

---Keeps a text for the keys of the past, here and in later sessions; not twice in a row.
---@param text string
function Prompt:remember(text)
  if not text:find "%S" or text == self.last or #text > TEXT_MOST or text:find "\0" then return end
  self.last = text
  terminal.remember(text)
  local file <close> = self.history_path and io.open(self.history_path, "a") or nil
  if file then file:write(as_line(text), "\n") end
end

-- For the library: what takes no columns stands between 1 and 2.
local function marked(asking) return (asking:gsub("\27%[[%d;]*m", "\1%0\2")) end

---Reads a text.
---@param asking string  what is shown before it, at a terminal; may be in colours
---@return string?
---@return "end"|"interrupt"|"leave"|nil why
---@return boolean? filled  an interrupt: whether something had been typed
function Prompt:read(asking)
  if not self.terminal then
    local line = io.read "l"
    return line, not line and "end" or nil
  end
  self.stream:flush()
  local text, why, filled
  if self.library then text, why, filled = terminal.edit(marked(asking), self.complete)
  else text, why, filled = read_keys(self, asking)
  end
  if not text then self.stream:write "\n" end
  return text, why, filled
end

return prompt
