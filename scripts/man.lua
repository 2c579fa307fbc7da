-- man.lua: a command's manual page.
local cli = require "pyramid.tools.cli"
local pyramid = require "pyramid"

local parser = cli.parser("[options] COMMAND",
  "Writes a command's manual page in roff, made of the same tables as its --help.", [[
pyramid man generate | man -l -
pyramid man --folder ~/.local/share/man/man1      all pages, pyramid-NAME.1]])
parser:argument("name", "Whose page."):args "?"
cli.option(parser, "--folder", "DIR", "Write the pages of all commands there.")
local args = cli.parse(parser, arg)

local commands = require "pyramid.tools.commands"
local files = require "pyramid.files"
if not args.name and not args.folder then
  cli.fail("no command", "Name one: " .. table.concat(commands.names(), ", ") .. ".")
end
local written = 0
for _, command in ipairs(commands.list()) do
  local page = commands.manual(command, pyramid.version)
  if args.folder then
    cli.must(files.write(("%s/pyramid-%s.1"):format(args.folder, command.name),
      function(write) write(page) end))
    written = written + 1
  elseif command.name == args.name then
    io.write(page)
    written = 1
  end
end
if written == 0 then
  cli.fail(("there is no command '%s'"):format(args.name),
    "Known: " .. table.concat(commands.names(), ", ") .. ".")
end
