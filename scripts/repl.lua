-- repl.lua: a prompt for Lua, with the library at hand.
local cli = require "pyramid.tools.cli"
local interrupts = require "pyramid.interrupts"
local picture = require "pyramid.tools.picture"
local prompt = require "pyramid.tools.prompt"
local pyramid = require "pyramid"
local repl = require "pyramid.tools.repl"
local screen = require "pyramid.tools.screen"

local parser = cli.parser("[options]",
  "Reads Lua, runs it and shows its values. The global `pyramid` is the library; a model that is "
  .. "named is `model`.", [[
   > model = assert(pyramid.model "models/tiny")
   > model:encode "Once"
A chunk goes on over several lines until it is whole; Ctrl-C ends what runs, or clears what is typed.
Ctrl-D, or Ctrl-C twice, ends the program. What standard input holds is read the same way where it is no terminal.]])
cli.option(parser, "--model", "PATH", "Open it, as `model`.", { short = "-m" })
parser:flag("--no-edit", "Read what is typed without a library that edits lines.")
parser:flag("--no-history", "Keep no file of what was typed.")
local args = cli.parse(parser, arg)

_G.pyramid = pyramid
_G.model = args.model and cli.open_model(args) or nil

local out, err = picture.new(io.stdout), picture.new(io.stderr)
local reader = prompt.open { history = not args.no_history and "repl" or nil,
  edit = not args.no_edit, complete = repl.complete }
local failed = false

local function complain(message)
  failed = true
  if message == "interrupted" then print() end               -- the terminal has shown ^C
  io.stdout:flush()
  local ok, text = pcall(tostring, message)
  text = ok and text or ("(an error that is a %s)"):format(type(message))
  io.stderr:write(err:paint(screen.safe(text), "warn"), "\n")
end

local function show(ok, ...)
  if not ok then return complain((...)) end
  local parts = table.pack(...)
  for i = 1, parts.n do parts[i] = repl.show(parts[i]) end
  if parts.n > 0 then print(table.concat(parts, "  ")) end
end

-- Where nobody types, Ctrl-C ends the program as it does any script.
local run = reader.terminal and interrupts.run or pcall

if reader.terminal then
  print(out:paint(("Pyramid %s, %s; Ctrl-D ends"):format(pyramid.version, _VERSION), "dim"))
end
interrupts.asks(reader.terminal)
local lines, warned = "", false
while true do
  local text, why, filled = reader:read(out:paint(lines == "" and "> " or ">> ", "accent"))
  if text then
    warned = false
    lines = lines == "" and text or lines .. "\n" .. text
    local chunk, message, incomplete = repl.chunk(lines)
    if not incomplete then
      reader:remember(lines)
      if chunk then show(run(chunk))
      elseif lines:find "%S" then complain(message)
      end
      lines = ""
    end
  elseif why == "interrupt" then
    interrupts.take()
    filled = filled or lines ~= ""
    if warned and not filled then break end
    lines, warned = "", not filled
    if warned then print "Ctrl-C once more, or Ctrl-D, ends the program" end
  else
    if lines ~= "" then complain(select(2, repl.chunk(lines))) end
    break
  end
end
interrupts.asks(false)
if not reader.terminal and failed then os.exit(1, true) end
