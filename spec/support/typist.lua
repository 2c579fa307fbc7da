-- Somebody who sits at a terminal: starts a program there, types, and waits for what is shown.
--
--   local t <close> = typist.start("build/pyramid chat", { columns = 40 })
--   t:expect "> "
--   t:type "hello\r"
--
-- What was shown is t.shown, all of it; `expect` looks behind what it found last.
local pty = require "pyramid_specs.pty"

local typist = {}
local Typist = {}
Typist.__index = Typist

local PATIENCE = tonumber(os.getenv "PATIENCE") or 60             -- seconds: machines may be busy

---@param line string  a shell's
---@param given? { columns?: integer, rows?: integer }
function typist.start(line, given)
  given = given or {}
  return setmetatable({ pty = pty.spawn("exec " .. line, given.columns or 80, given.rows or 24),
    shown = "", seen = 1, left = "" }, Typist)
end

-- Reads what is there, and types what has room. false: the program has ended.
function Typist:look(seconds)
  if self.left ~= "" then self.left = self.left:sub(self.pty:write(self.left) + 1) end
  local bytes = self.pty:read(self.left ~= "" and 0.01 or seconds)
  if not bytes then return false end
  self.shown = self.shown .. bytes
  return true
end

--- Types bytes: "\r" is Enter, "\3" Ctrl-C.
function Typist:type(bytes)
  self.left = self.left .. bytes
  self:look(0)
end

--- Waits until a Lua pattern is shown behind what was found before; what it captures. Fails loudly.
function Typist:expect(pattern)
  local ends = os.time() + PATIENCE
  while true do
    local found = table.pack(self.shown:find(pattern, self.seen))
    if found[1] then
      self.before = self.shown:sub(self.seen, found[1] - 1)
      self.seen = found[2] + 1
      return self.shown:sub(found[1], found[2]), table.unpack(found, 3, found.n)
    end
    local alive = self:look(0.1)
    if not alive or os.time() > ends then
      error(("%s, and '%s' was not shown; the end of what was: %q"):format(
        alive and "time is over" or "the program has ended", pattern, self.shown:sub(-1500)), 2)
    end
  end
end

--- Waits until the program ends. Returns its exit status.
function Typist:finish()
  local ends = os.time() + PATIENCE
  while self:look(0.1) do
    if os.time() > ends then error("it does not end: " .. self.shown:sub(-1500), 2) end
  end
  return self.pty:wait()
end

--- A paste, as terminals type it.
function Typist:paste(text) self:type("\27[200~" .. text:gsub("\n", "\r") .. "\27[201~") end

function Typist:close() self.pty:close() end
Typist.__close = Typist.close

return typist
