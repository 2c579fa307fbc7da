-- help.lua: what a command does and takes; alone, which commands there are.
local cli = require "pyramid.tools.cli"

local parser = cli.parser("[COMMAND]",
  "Says what a command does and takes, as its --help does; alone, which commands there are.")
parser:argument("name", "The command."):args "?"
local args = cli.parse(parser, arg)

local commands = require "pyramid.tools.commands"
local text, message = commands.help(args.name)
if not text then
  cli.fail(message, "Known: " .. table.concat(commands.names(), ", ") .. ".")
end
io.write(text)
