-- sessions.lua: lists a folder of saved prompts (--sessions DIR of generate and chat).
local cli = require "pyramid.tools.cli"
local files = require "pyramid.files"
local picture = require "pyramid.tools.picture"

local parser = cli.parser("[options] DIR",
  "Lists what a folder of sessions holds, what was used last first. What is stored are the rows of "
  .. "a prompt before any policy cuts them, so they serve every policy; the one shown read them "
  .. "first.",
  "To remove one, remove its file; --bytes SIZE removes those used longest ago.")
parser:argument("folder", "The folder."):argname "DIR"
cli.option(parser, "--bytes", "SIZE", "Remove what was used longest ago until no more is left.")
parser:flag("--json", "Print one JSON object.")
local args = cli.parse(parser, arg)

if files.kind(args.folder) ~= "folder" then
  cli.fail(("there is no folder '%s'"):format(args.folder), "generate --sessions DIR makes one.")
end
local store = cli.sessions { sessions = args.folder, sessions_bytes = args.bytes }
if args.bytes then store:trim() end
local found = cli.must(store:list())
local bytes = 0
for _, entry in ipairs(found) do bytes = bytes + entry.bytes end
if args.json then
  cli.json { folder = args.folder, bytes = bytes, sessions = found }
  os.exit(0, true)
end

local function age(seconds)
  local units, at = { { 60, "s" }, { 60, "min" }, { 24, "h" }, { math.huge, "d" } }, 1
  seconds = math.max(seconds, 0)
  while seconds >= units[at][1] do seconds, at = seconds / units[at][1], at + 1 end
  return ("%.0f %s"):format(seconds, units[at][2])
end

local pic = picture.new(io.stdout)
local rows = { { "tokens", "size", "used", "dtype", "policy", "model" } }
for i, title in ipairs(rows[1]) do rows[1][i] = pic:paint(title, "dim") end
for _, entry in ipairs(found) do
  rows[#rows + 1] = { cli.count(entry.tokens), cli.bytes(entry.bytes),
    age(os.time() - entry.used), entry.dtype, entry.policy, entry.model }
end
print(table.concat(picture.table(rows, ">>><<<"), "\n"))
print(("%d in %s, %s"):format(#found, args.folder, cli.bytes(bytes)))
